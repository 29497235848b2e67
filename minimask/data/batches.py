"""Which images a training step sees, as a function of only the step, and a thread that prepares them."""

import math
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

import numpy as np

from minimask.data.augmentation import Augmentation, augment, carry_out, draw_plan
from minimask.data.sample import Sample
from minimask.errors import InputError
from minimask.randomness import Draws, Purpose

PATIENCE = 0.25  # seconds to wait for the thread's end


class Batches:
    """``batches(step)`` is the list of samples of that step, whatever was asked for before.

    In each epoch every image occurs once, or as often as `repeats` says, in an order that depends on the seed
    and the epoch; the augmentation depends on the seed, the step and the place in the batch. So a resumed
    run, or a loader that runs ahead, sees what an uninterrupted run sees.

    Parameters
    ----------
    dataset
        Has ``len(dataset)`` and ``dataset[i] -> Sample``. If it also has ``outline`` and ``load``, as
        `CocoDataset` does, only the part that the augmentation shows is decoded.
    batch_size : int
    augmentation : Augmentation
    seed : int, >= 0
    part : range, optional
        The places in the batch that this process takes, if several share it; by default all.
    by_aspect : bool
        Whether wide and tall images go into separate batches, which need less padding. In an epoch, one batch
        may mix what is left over of both, and another may span two epochs. Needs a dataset with ``outline``.
    repeats : (N,) array of int, optional
        How often each image occurs in an epoch; see `repeats_by_size`.
    """

    def __init__(
        self,
        dataset,
        batch_size: int,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        part: range | None = None,
        by_aspect: bool = False,
        repeats: np.ndarray | None = None,
    ):
        if len(dataset) == 0:
            raise InputError(f"{getattr(dataset, 'name', 'dataset')}: has no images to train on")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, is {batch_size}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.augmentation = augmentation or Augmentation()
        self.seed = seed
        self.part = part or range(batch_size)
        once = np.arange(len(dataset))
        self.images = once if repeats is None else np.repeat(once, repeats)  # of an epoch
        self.wide = _wide(dataset) if by_aspect and hasattr(dataset, "outline") else None  # (N,) bool

    def indices(self, step: int) -> list[int]:
        """Indices into the dataset for the images of a step; steps count from 0."""
        n = len(self.images)
        places = [step * self.batch_size + place for place in self.part]
        orders = {epoch: self._order(epoch) for epoch in range(places[0] // n, places[-1] // n + 1)}
        return [int(orders[place // n][place % n]) for place in places]

    def _order(self, epoch: int) -> np.ndarray:
        """The images of an epoch in order, each as often as it occurs: int."""
        rng = Draws(self.seed, epoch).rng(Purpose.ORDER)
        order = self.images[rng.permutation(len(self.images))]
        if self.wide is None:
            return order
        size = self.batch_size
        first = min(-epoch * len(order) % size, len(order))  # what the previous epoch's last batch lacks
        last = first + (len(order) - first) // size * size  # where a batch that spans two epochs begins
        whole, rest = [], []
        for group in (True, False):
            mine = order[first:last][self.wide[order[first:last]] == group]
            full = len(mine) // size * size
            whole += list(mine[:full].reshape(-1, size))
            rest.append(mine[full:])
        whole += list(np.concatenate(rest).reshape(-1, size))
        mixed = [whole[i] for i in rng.permutation(len(whole))]  # otherwise all wide ones would come first
        return np.concatenate([order[:first], *mixed, order[last:]])

    def describe(self, step: int) -> str:
        """The images of a step, for messages."""
        return ", ".join(map(self.dataset.describe, self.indices(step)))

    def __call__(self, step: int) -> list[Sample]:
        draws = Draws(self.seed, step)
        return [
            self._sample(index, draws.rng(Purpose.AUGMENT, image))
            for image, index in zip(self.part, self.indices(step))
        ]

    def _sample(self, index: int, rng: np.random.Generator) -> Sample:
        if not hasattr(self.dataset, "outline"):
            return augment(self.dataset[index], self.augmentation, rng)
        plan = draw_plan(self.augmentation, *self.dataset.outline(index), rng)
        return carry_out(self.dataset.load(index, plan.window), plan)


def repeats_by_size(dataset, crop: int) -> np.ndarray:
    """How often the crop's side fits into the square root of each image's area, rounded, and at least 1:
    (N,) int.

    A crop shows a small part of a large image: with one crop per epoch, its objects would be seen too seldom.
    With as many as cover it, the image would crowd out the others, since its crops are much alike.
    """
    if not hasattr(dataset, "outline") or crop == 0:
        return np.ones(len(dataset), np.int64)
    sides = np.array([np.sqrt(math.prod(dataset.outline(index)[:2])) for index in range(len(dataset))])
    return np.maximum(1, np.round(sides / crop)).astype(np.int64)


def _wide(dataset) -> np.ndarray:
    """Which images are wider than they are high: (N,) bool."""
    sizes = (dataset.outline(index)[:2] for index in range(len(dataset)))
    return np.array([width > height for height, width in sizes])


class Loader:
    """Iterates over (step, samples) for the steps in ``range(first_step, last_step)``, prepared by a thread.

    ::

        with Loader(batches, state.step, config.steps) as loader:
            for step, samples in loader:
                ...

    An error in preparing a step is raised when that step's turn comes. Leaving the ``with`` block ends the
    thread once the step being prepared is done. The block waits `PATIENCE` seconds for that, not for however
    long a batch of large images takes, since nobody would after Ctrl-C. Nor does the interpreter's exit wait.

    Parameters
    ----------
    batches : callable, step -> list of Sample
    first_step, last_step : int
        As in ``range``: `last_step` itself is not prepared.
    ahead : int
        How many steps are prepared in advance.
    """

    def __init__(
        self, batches: Callable[[int], list[Sample]], first_step: int, last_step: int, ahead: int = 2
    ):
        self._batches = batches
        self._steps = iter(range(first_step, last_step))
        self._pending: deque[tuple[int, Future]] = deque()
        self._wanted: SimpleQueue[tuple[int, Future] | None] = SimpleQueue()  # None ends the thread
        # Not a pool's thread: the interpreter would wait for it, however long a batch takes.
        self._thread = threading.Thread(target=self._work, name="minimask-loader", daemon=True)
        self._thread.start()
        for _ in range(max(1, ahead)):
            self._submit()

    def _submit(self) -> None:
        step = next(self._steps, None)
        if step is not None:
            self._pending.append((step, Future()))
            self._wanted.put(self._pending[-1])

    def _work(self) -> None:
        for step, future in iter(self._wanted.get, None):
            if future.set_running_or_notify_cancel():  # False: the loader was closed
                try:
                    future.set_result(self._batches(step))
                except BaseException as error:
                    future.set_exception(error)

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> tuple[int, list[Sample]]:
        if not self._pending:
            self.close()
            raise StopIteration
        step, future = self._pending.popleft()
        samples = future.result()
        self._submit()
        return step, samples

    def close(self) -> None:
        """Discard what has been prepared and end the thread; may be called twice."""
        self._steps = iter(())
        for _, future in self._pending:
            future.cancel()
        self._pending.clear()
        self._wanted.put(None)
        self._thread.join(PATIENCE)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_) -> None:
        self.close()
