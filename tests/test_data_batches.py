"""A step's samples depend on the step alone; the loader hides no error and leaves no thread behind."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from minimask.data import Augmentation, Batches, Loader, Shapes, augment, nuclei_sample, repeats_by_size
from minimask.errors import InputError
from minimask.randomness import Draws, Purpose

EVERYTHING = Augmentation(96, True, True, True, (0.5, 2.0), 0.3, 0.3, 0.3)


def digest(samples):
    return [
        (s.image_id, s.image.tobytes(), s.boxes.tobytes(), s.labels.tobytes(), s.masks.tobytes())
        for s in samples
    ]


@pytest.fixture(scope="module")
def nuclei():
    return nuclei_sample("val")


@pytest.mark.parametrize("batch_size", [1, 3, 4, 11, 25])
def test_every_epoch_shows_every_image_once_in_an_order_of_its_own(batch_size):
    batches = Batches(Shapes(11, 0, size=32), batch_size, seed=5)
    order = [index for step in range(44) for index in batches.indices(step)]
    epochs = [order[k : k + 11] for k in range(0, 44, 11)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_another_seed_gives_another_order():
    dataset = Shapes(50, 0, size=32)
    assert Batches(dataset, 50, seed=0).indices(0) != Batches(dataset, 50, seed=1).indices(0)


def test_images_that_repeat_occur_so_often_in_every_epoch_and_else_the_order_is_as_before():
    dataset, repeats = Shapes(5, 0, size=32), np.array([1, 3, 1, 2, 1])
    batches = Batches(dataset, 4, seed=5, repeats=repeats)
    order = [index for step in range(8) for index in batches.indices(step)]
    for epoch in range(4):
        assert np.bincount(order[8 * epoch : 8 * epoch + 8]).tolist() == repeats.tolist()
    once = Batches(dataset, 4, seed=5, repeats=np.ones(5, int))
    assert [once.indices(step) for step in range(10)] == [
        Batches(dataset, 4, seed=5).indices(step) for step in range(10)
    ]


def test_an_image_repeats_as_often_as_the_crop_goes_into_the_root_of_its_area():
    class Sized:
        sizes = ((256, 256), (520, 696), (603, 1272), (100, 120), (1024, 1024))

        def __len__(self):
            return len(self.sizes)

        def outline(self, index):
            return *self.sizes[index], np.zeros((0, 4))

    assert repeats_by_size(Sized(), 256).tolist() == [1, 2, 3, 1, 4]
    assert repeats_by_size(Sized(), 128).tolist() == [2, 5, 7, 1, 8]
    assert repeats_by_size(Sized(), 0).tolist() == [1, 1, 1, 1, 1]
    assert repeats_by_size([1, 2, 3], 64).tolist() == [1, 1, 1]  # nothing is known of their size


def test_a_step_is_the_same_whatever_was_asked_for_before(nuclei):
    first = Batches(nuclei, 3, EVERYTHING, seed=1)
    forwards = [digest(first(step)) for step in range(6)]
    second = Batches(nuclei_sample("val"), 3, EVERYTHING, seed=1)
    backwards = [digest(second(step)) for step in reversed(range(6))][::-1]
    assert forwards == backwards
    assert digest(Batches(nuclei, 3, EVERYTHING, seed=2)(0)) != forwards[0]


def test_the_same_image_is_changed_differently_in_each_place_and_epoch(nuclei):
    batches = Batches(nuclei, 2 * len(nuclei), EVERYTHING, seed=0)
    samples = batches(0) + batches(1)
    assert len({sample.image.tobytes() for sample in samples}) == len(samples)


def test_decoding_the_window_alone_gives_what_augmenting_the_whole_image_gives(nuclei):
    batches = Batches(nuclei, 5, EVERYTHING, seed=3)
    for step in range(4):
        whole = [
            augment(nuclei[index], EVERYTHING, Draws(3, step).rng(Purpose.AUGMENT, place))
            for place, index in enumerate(batches.indices(step))
        ]
        assert digest(batches(step)) == digest(whole)


def test_a_dataset_without_outlines_is_augmented_whole():
    dataset = Shapes(4, 0, size=64)
    assert not hasattr(dataset, "outline")
    samples = Batches(dataset, 4, Augmentation(crop=48), seed=0)(0)
    assert all(sample.image.shape == (3, 48, 48) for sample in samples)


def test_an_empty_dataset_and_an_empty_batch_are_refused():
    with pytest.raises(InputError, match=r"shapes .*: has no images"):
        Batches(Shapes(0, 0), 2)
    with pytest.raises(InputError, match="batch_size must be at least 1, is 0"):
        Batches(Shapes(1, 0), 0)


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("minimask-loader")]


@pytest.mark.parametrize("ahead", [0, 1, 2, 50])
def test_the_loader_gives_the_steps_of_the_range_in_order(nuclei, ahead):
    batches = Batches(nuclei, 2, EVERYTHING, seed=1)
    with Loader(batches, 3, 9, ahead) as loader:
        seen = [(step, digest(samples)) for step, samples in loader]
    assert seen == [(step, digest(batches(step))) for step in range(3, 9)]
    assert not loader_threads()


def test_a_loader_without_steps_ends_at_once():
    with Loader(lambda step: [], 5, 5) as loader:
        assert list(loader) == []
        assert list(loader) == []


def test_the_loader_works_ahead_as_far_as_asked_and_no_further():
    done = []
    with Loader(lambda step: done.append(step) or [], 0, 100, ahead=3) as loader:
        deadline = time.monotonic() + 5
        while len(done) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        assert done == [0, 1, 2]
        next(loader)
        while len(done) < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        assert done == [0, 1, 2, 3]


def test_an_error_is_raised_when_its_step_comes():
    def prepare(step):
        if step == 2:
            raise InputError("a.png: damaged")
        return [step]

    seen = []
    with pytest.raises(InputError, match=r"a\.png: damaged"), Loader(prepare, 0, 10, ahead=5) as loader:
        for step, _ in loader:
            seen.append(step)
    assert seen == [0, 1]
    assert not loader_threads()


def test_leaving_early_ends_the_thread_without_preparing_the_rest():
    done = []

    def prepare(step):
        time.sleep(0.01)
        done.append(step)
        return []

    with pytest.raises(KeyboardInterrupt), Loader(prepare, 0, 1000, ahead=100) as loader:
        next(loader)
        raise KeyboardInterrupt
    assert not loader_threads()
    assert len(done) < 50
    loader.close()
    assert list(loader) == []


def test_neither_leaving_nor_the_end_of_the_interpreter_waits_for_a_batch_that_takes_long():
    code = """
import threading
from minimask.data import Loader

begun, never = threading.Event(), threading.Event()

def prepare(step):
    begun.set()
    never.wait()

try:
    with Loader(prepare, 0, 10):
        begun.wait()
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print("left")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")


def test_the_loader_prepares_in_one_other_thread():
    threads = set()
    with Loader(lambda step: threads.add(threading.get_ident()) or [], 0, 20) as loader:
        assert len(list(loader)) == 20
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_many_threads_may_read_one_dataset(nuclei):
    expected = [digest([nuclei_sample("val")[i]]) for i in range(len(nuclei))]
    nuclei._cache.limit = 300_000  # a few images, so that threads push out one another's
    results, errors = {}, []

    def read(thread):
        try:
            order = np.random.default_rng(thread).permutation(len(nuclei))
            results[thread] = {int(i): digest([nuclei[int(i)]]) for i in order}
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(results[k][i] == expected[i] for k in range(4) for i in range(len(nuclei)))
