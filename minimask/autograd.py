"""The tape: Tensor, Function, and the backward pass over the graph they leave behind.

A Function object is one call: options in ``__init__``, arrays in ``forward``, upstream gradients in
``backward``. The graph holds (creator, slot) edges and never an input Tensor, so an array stays alive only
where some backward pass will read it.
"""

from __future__ import annotations

import contextlib
import contextvars
import heapq
import itertools
from collections.abc import Iterator

import numpy as np

from minimask import backend
from minimask.errors import OutOfMemory

_recording = contextvars.ContextVar("recording", default=True)
_created = itertools.count()


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Inside, no graph is recorded and nothing is kept for a backward pass. Also a decorator."""
    token = _recording.set(False)
    try:
        yield
    finally:
        _recording.reset(token)


class Tensor:
    """An array that remembers how it was computed.

    Parameters
    ----------
    data : array, Tensor or nested sequence of numbers
        Held as it is, not copied; floating point data keeps its dtype, Python floats become float64.
    requires_grad : bool
        Whether `backward` shall leave a gradient here.

    Attributes
    ----------
    data : numpy.ndarray or cupy.ndarray
    grad : array of data's shape and dtype, or None
        d(output)/d(this), added up over calls of `backward` until set to None.

    Notes
    -----
    Arithmetic operators, ``reshape``, ``sum`` and the like are attached by `minimask.functions.array`, where
    each stands beside its derivative.
    """

    __slots__ = ("creator", "data", "grad", "requires_grad", "slot")
    __array_ufunc__ = None  # numpy_array + tensor calls Tensor.__radd__ instead of going through elements

    def __init__(self, data, requires_grad: bool = False):
        data = data.data if isinstance(data, Tensor) else data
        self.data = data if hasattr(data, "dtype") and hasattr(data, "ndim") else np.asarray(data)
        if requires_grad and self.data.dtype.kind != "f":
            raise TypeError(f"Tensor: only floating point data can require gradients, not {self.data.dtype}")
        self.requires_grad = requires_grad
        self.grad = None
        self.creator: Function | None = None
        self.slot = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self):
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        note = f", from {type(self.creator).__name__}" if self.creator else ""
        note = note or (", requires_grad" if self.requires_grad else "")
        return f"Tensor({np.array2string(self.numpy(), threshold=20, precision=4)}, {self.dtype}{note})"

    @property
    def device(self) -> str:
        """Where the data is: "cpu" or "cuda"."""
        return backend.device_of(self.data)

    def to(self, device: str) -> Tensor:
        """This Tensor on "cpu" or "cuda": itself where it is there already, else a copy of it, a new leaf.

        Raises
        ------
        RuntimeError
            If it was computed: a gradient does not find its way back through a copy.
        InputError
            If there is no such device.
        """
        device = backend.device(device)
        if device == self.device:
            return self
        if self.creator:
            raise RuntimeError("to: this Tensor was computed; move what it came from, or detach() it first")
        return Tensor(backend.to_device(self.data, device), self.requires_grad)

    def numpy(self) -> np.ndarray:
        """The data as a NumPy array, without a copy where it already is one."""
        return backend.to_cpu(self.data)  # sync

    def detach(self) -> Tensor:
        """The same data, cut off from the graph."""
        return Tensor(self.data)

    def item(self) -> float:
        """The only element as a Python number."""
        return self.data.item()  # sync

    def __float__(self) -> float:
        return float(self.item())

    def backward(self, gradient=None) -> None:
        """Add d(self)/d(leaf), weighted by `gradient`, to ``.grad`` of every leaf that self came from.

        Parameters
        ----------
        gradient : array of self's shape, optional
            The upstream gradient; 1 by default, for a Tensor of one element.

        Raises
        ------
        RuntimeError
            If self has no graph, or its graph was freed by an earlier backward pass.
        ValueError
            If `gradient` is left out and self has more than one element, or has another shape.
        """
        if not self.requires_grad:
            raise RuntimeError("backward: this Tensor was computed from nothing that requires a gradient")
        xp = backend.array_module(self.data)
        if gradient is None:
            if self.size != 1:
                raise ValueError(
                    f"backward: give a gradient of shape {self.shape}; only one number needs none"
                )
            gradient = xp.ones_like(self.data)
        gradient = gradient.data if isinstance(gradient, Tensor) else gradient
        gradient = xp.asarray(gradient, self.dtype)
        if gradient.shape != self.shape:
            raise ValueError(f"backward: gradient has shape {gradient.shape}, the Tensor {self.shape}")
        if self.creator is None:
            _accumulate_leaf(self, gradient, owned=False)
        else:
            _run_backward(self.creator, self.slot, gradient)


class Function:
    """One call of a differentiable operation.

    A subclass takes options in ``__init__``, computes arrays from arrays in ``forward`` and gradients from
    gradients in ``backward``; a lower-case function beside it calls ``Class.apply(*inputs, **options)``.

    Attributes
    ----------
    xp : module
        numpy or cupy, whichever the inputs are of.
    needs : tuple of bool
        For each input, whether its gradient is wanted.
    saved : tuple
        What `forward` gave to `save`; empty unless a backward pass may come.
    """

    xp = np
    needs: tuple[bool, ...] = ()
    saved: tuple = ()

    @classmethod
    def apply(cls, *inputs, **options):
        """Run the operation on Tensors or arrays; gives a Tensor, or a tuple where forward gives one."""
        return cls(**options)(*inputs)

    def __call__(self, *inputs):
        arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
        self.xp = backend.array_module(*arrays)
        recording = _recording.get()
        self.needs = tuple(recording and isinstance(x, Tensor) and x.requires_grad for x in inputs)
        try:
            results = self.forward(*arrays)
        except MemoryError as error:
            raise self._out_of_memory("forward", arrays, error) from error
        several = isinstance(results, tuple)
        outputs = [Tensor(self.xp.asarray(r)) for r in (results if several else (results,))]
        if any(self.needs):
            self._record(inputs, outputs)
        return tuple(outputs) if several else outputs[0]

    def _record(self, inputs, outputs) -> None:
        self.order = next(_created)
        # An edge is (creator, slot) of a computed input, the Tensor itself of a leaf, None for a constant.
        self.edges = [
            None if not need else (x.creator, x.slot) if x.creator else x
            for x, need in zip(inputs, self.needs)
        ]
        self.input_kinds = [(x.shape, x.dtype) if need else None for x, need in zip(inputs, self.needs)]
        self.output_kinds = [(y.shape, y.dtype) for y in outputs]
        for slot, y in enumerate(outputs):
            y.requires_grad, y.creator, y.slot = True, self, slot

    def _out_of_memory(self, what: str, arrays, error: MemoryError) -> OutOfMemory:
        shapes = ", ".join(str(tuple(a.shape)) for a in arrays if hasattr(a, "shape"))
        return OutOfMemory(f"{error} in {type(self).__name__}.{what} of {shapes}".strip())

    def save(self, *values) -> None:
        """Keep what `backward` will read, unless no gradient is needed."""
        if any(self.needs):
            self.saved = values

    def forward(self, *arrays):
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, *gradients):
        raise NotImplementedError(f"{type(self).__name__} has no backward")


# ------------------------------------------------------------------------------------------ backward pass


def _run_backward(creator: Function, slot: int, gradient) -> None:
    """Visit the graph from `creator` against the order of creation, freeing each node on the way."""
    pending: dict[
        Function, list
    ] = {}  # for each node reached, [gradient, owned] or None for each of its outputs
    heap: list[tuple[int, Function]] = []

    def deliver(node: Function, slot: int, gradient, owned: bool) -> None:
        if node not in pending:
            if node.edges is None:
                raise RuntimeError(
                    f"backward: the graph was freed by an earlier backward pass (at {type(node).__name__}); "
                    "compute the output again"
                )
            pending[node] = [None] * len(node.output_kinds)
            heapq.heappush(heap, (-node.order, node))
        pending[node][slot] = _add(pending[node][slot], gradient, owned)

    deliver(creator, slot, gradient, owned=False)
    while heap:
        node = heapq.heappop(heap)[1]
        upstream = [
            entry[0] if entry else node.xp.zeros(shape, dtype)
            for entry, (shape, dtype) in zip(pending.pop(node), node.output_kinds)
        ]
        try:
            gradients = _checked(node, node.backward(*upstream))
        except MemoryError as error:
            raise node._out_of_memory("backward", upstream, error) from error
        for i, (edge, g) in enumerate(zip(node.edges, gradients)):
            if edge is None or g is None:
                continue
            owned = _is_fresh(g, i, gradients, upstream, node.saved)
            if isinstance(edge, Tensor):
                _accumulate_leaf(edge, g, owned)
            else:
                deliver(*edge, g, owned)
        node.saved, node.edges = (), None


def _checked(node: Function, gradients) -> tuple:
    name = type(node).__name__
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    if len(gradients) != len(node.edges):
        raise RuntimeError(f"{name}.backward gave {len(gradients)} gradients for {len(node.edges)} inputs")
    for i, (g, kind) in enumerate(zip(gradients, node.input_kinds)):
        if kind is None:
            continue
        if g is None:
            raise RuntimeError(f"{name}.backward gave no gradient for input {i}, which needs one")
        if (g.shape, g.dtype) != kind:
            raise RuntimeError(
                f"{name}.backward gave a gradient of {g.shape} {g.dtype} for input {i} of {kind[0]} {kind[1]}"
            )
    return gradients


def _is_fresh(g, i: int, gradients, upstream, saved) -> bool:
    """Whether nobody else holds this array, so that it may be added to in place."""
    others = [*upstream, *saved, *gradients[:i], *gradients[i + 1 :]]
    return g.base is None and all(g is not other for other in others)


def _add(entry, gradient, owned: bool):
    """Sum of gradients; only a sum or a gradient that is ours alone is written to."""
    if entry is None:
        return [gradient, owned]
    total, total_owned = entry
    if total_owned:
        total += gradient
        return [total, True]
    return [total + gradient, True]


def _accumulate_leaf(leaf: Tensor, gradient, owned: bool) -> None:
    if leaf.grad is None:
        leaf.grad = gradient if owned else gradient.copy()
    else:
        leaf.grad = leaf.grad + gradient
