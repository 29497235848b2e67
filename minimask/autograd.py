"""Tensor, Function, and the arithmetic of Tensors; `minimask.tape` has the backward pass.

A Function object is one call: options in ``__init__``, arrays in ``forward``, upstream gradients in
``backward``. The graph holds (creator, slot) edges and never an input Tensor, so an array stays alive only
where some backward pass will read it.

``gy`` is the gradient of a Function's output, ``gx`` that of an input. Constants may be numbers or arrays.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
from collections.abc import Iterator
from numbers import Real

import numpy as np

from minimask import backend
from minimask.errors import OutOfMemory
from minimask.kernels.elementwise import unbroadcast
from minimask.tape import accumulate, holds, run_backward

_recording = contextvars.ContextVar("recording", default=True)
_created = itertools.count()
_HALF = np.dtype(np.float16)
_LOSES_GRADIENT = "an array of this Tensor would lose its gradient: take .numpy() if you want that"


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
        Whether `backward` leaves a gradient here.

    Attributes
    ----------
    data : numpy.ndarray or cupy.ndarray
        Assign to it, or change it by ``t.data -= ...``, and a backward pass that still needs the old values
        raises. Writing into the array itself, as in ``t.data[0] = 1``, goes unnoticed: do not do so between a
        forward pass and its backward pass.
    grad : array of data's shape and dtype, or None
        d(output)/d(this), added up over calls of `backward` until set to None.

    Notes
    -----
    Each operator and method that computes runs a Function below, where it stands beside its derivative.
    """

    __slots__ = ("_data", "_edits", "creator", "grad", "requires_grad", "slot")
    __array_ufunc__ = None  # numpy_array + tensor calls Tensor.__radd__ instead of looping over the elements

    def __init__(self, data, requires_grad: bool = False):
        # How often the data was replaced, in a list shared by all Tensors of the same data.
        self._edits = data._edits if isinstance(data, Tensor) else [0]
        data = data.data if isinstance(data, Tensor) else data
        self._data = data if hasattr(data, "dtype") and hasattr(data, "ndim") else np.asarray(data)
        if requires_grad and self.data.dtype.kind != "f":
            raise TypeError(f"Tensor: only floating point data can require gradients, not {self.data.dtype}")
        self.requires_grad = requires_grad
        self.grad = None
        self.creator: Function | None = None
        self.slot = 0

    @property
    def data(self):
        return self._data

    @data.setter
    def data(self, data) -> None:
        self._data = data
        self._edits[0] += 1

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
        """This Tensor on "cpu" or "cuda": itself if it is there already, else a copy, which is a new leaf.

        Raises
        ------
        RuntimeError
            If it was computed: no gradient would find its way back through the copy.
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
        """The same data, without the graph behind it."""
        return Tensor(self)

    def item(self) -> float:
        """The only element as a Python number."""
        return self.data.item()  # sync

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(
                f"bool: a Tensor of shape {self.shape} is neither true nor false; compare elements"
            )
        return bool(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __round__(self, digits: int | None = None):
        return round(self.item(), digits)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if self.requires_grad and _recording.get():
            raise TypeError(_LOSES_GRADIENT)
        return np.array(self.numpy(), dtype, copy=copy)

    def __array_function__(self, function, types, args, kwargs):
        try:
            return function(*_arrays(args), **_arrays(kwargs))
        except TypeError as error:
            if str(error) != _LOSES_GRADIENT:
                raise
        name = getattr(function, "__name__", "this function")
        raise TypeError(f"numpy.{name} has no gradient: use minimask.functions, or .numpy() if you need none")

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __getattr__(self, name: str):
        raise AttributeError(
            f"a Tensor has no {name!r}: use minimask.functions, which have gradients, or .numpy()"
        )

    def __getstate__(self) -> dict:
        if self.creator:
            raise TypeError("a Tensor that was computed cannot be copied or pickled: detach() it first")
        return {"data": self.data, "requires_grad": self.requires_grad, "grad": self.grad}

    def __setstate__(self, state: dict) -> None:
        Tensor.__init__(self, state["data"], state["requires_grad"])
        self.grad = state["grad"]

    # Comparisons say where something holds, as an array of bool, and have no gradient.

    def __eq__(self, other):
        return self.data == _array(other)

    def __ne__(self, other):
        return self.data != _array(other)

    def __lt__(self, other):
        return self.data < _array(other)

    def __le__(self, other):
        return self.data <= _array(other)

    def __gt__(self, other):
        return self.data > _array(other)

    def __ge__(self, other):
        return self.data >= _array(other)

    __hash__ = object.__hash__  # by identity, though == compares elements

    def backward(self, gradient=None) -> None:
        """Add d(self)/d(leaf), weighted by `gradient`, to ``.grad`` of every leaf that self depends on.

        Parameters
        ----------
        gradient : array of self's shape, optional
            The upstream gradient; 1 by default, for a Tensor of one element.

        Raises
        ------
        RuntimeError
            If self has no graph, or its graph was freed by an earlier backward pass.
        ValueError
            If the shape of `gradient` is not self's, or it is left out though self has more than one element.
        """
        if not self.requires_grad:
            raise RuntimeError("backward: this Tensor was computed from nothing that requires a gradient")
        xp = backend.array_module(self.data)
        if gradient is None:
            if self.size != 1:
                raise ValueError(
                    f"backward: give a gradient of shape {self.shape}; only a single number needs none"
                )
            gradient = xp.ones_like(self.data)
        gradient = xp.asarray(_array(gradient), self.dtype)
        if gradient.shape != self.shape:
            raise ValueError(f"backward: gradient has shape {gradient.shape}, the Tensor {self.shape}")
        backward([self], [gradient])

    def __add__(self, other) -> Tensor:
        return Add.apply(self, other)

    def __radd__(self, other) -> Tensor:
        return Add.apply(other, self)

    def __sub__(self, other) -> Tensor:
        return Subtract.apply(self, other)

    def __rsub__(self, other) -> Tensor:
        return Subtract.apply(other, self)

    def __mul__(self, other) -> Tensor:
        return Multiply.apply(self, other)

    def __rmul__(self, other) -> Tensor:
        return Multiply.apply(other, self)

    def __truediv__(self, other) -> Tensor:
        return Divide.apply(self, other)

    def __rtruediv__(self, other) -> Tensor:
        return Divide.apply(other, self)

    def __neg__(self) -> Tensor:
        return Multiply.apply(self, -1.0)

    def __pow__(self, exponent: float) -> Tensor:
        return Power.apply(self, exponent=exponent)

    def __matmul__(self, other) -> Tensor:
        return MatMul.apply(self, other)

    def __rmatmul__(self, other) -> Tensor:
        return MatMul.apply(other, self)

    def __getitem__(self, index) -> Tensor:
        return GetItem.apply(self, index=index)

    def sum(self, axis=None, keepdims: bool = False) -> Tensor:
        """Sum over an axis, a tuple of axes, or everything."""
        return Sum.apply(self, axis=axis, keepdims=keepdims)

    def mean(self, axis=None, keepdims: bool = False) -> Tensor:
        """Mean over an axis, a tuple of axes, or everything; 0 where there is nothing to average."""
        return Mean.apply(self, axis=axis, keepdims=keepdims)

    def reshape(self, *shape) -> Tensor:
        """The same elements in another shape, given as numbers or a sequence; one of them may be -1."""
        return Reshape.apply(self, shape=_numbers(shape))

    def transpose(self, *axes) -> Tensor:
        """The axes in another order, given as numbers or a sequence; reversed by default."""
        return Transpose.apply(self, axes=_numbers(axes) or None)

    @property
    def T(self) -> Tensor:
        """The axes in reversed order."""
        return self.transpose()


def backward(tensors, gradients) -> None:
    """One backward pass from several Tensors, which may share a graph.

    Parameters
    ----------
    tensors : sequence of Tensor
        Each requires a gradient.
    gradients : sequence of array
        The upstream gradient of each, of its shape and dtype.
    """
    for tensor, gradient in zip(tensors, gradients):
        if tensor.creator is None:
            accumulate(tensor, gradient, owned=False)
    run_backward([(t.creator, t.slot, g) for t, g in zip(tensors, gradients) if t.creator])


class Function:
    """One call of a differentiable operation.

    A subclass takes options in ``__init__``, computes arrays from arrays in ``forward`` and gradients from
    gradients in ``backward``; a lower-case function beside it calls ``Class.apply(*inputs, **options)``.

    Attributes
    ----------
    xp : module
        numpy or cupy, whichever the inputs belong to.
    needs : tuple of bool
        For each input, whether its gradient is wanted.
    saved : tuple
        What `forward` gave to `save`; empty unless a backward pass may come.
    input_kinds : list
        For `backward`: shape and dtype of each input whose gradient is wanted, None for the others.
    giving_dtype : slice
        A class attribute: the inputs whose dtype decides the results'. No Function computes in float16, in
        which sums overflow at 65504: float16 inputs are cast to float32, and the results are cast back if all
        floating point inputs in this slice were float16.
    """

    giving_dtype = slice(None)
    xp = np
    needs: tuple[bool, ...] = ()
    saved: tuple = ()

    @classmethod
    def apply(cls, *inputs, **options):
        """Run the operation on Tensors or arrays; gives a Tensor, or a tuple of them if forward gives one."""
        return cls(**options)(*inputs)

    def __call__(self, *inputs):
        arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
        half = any([getattr(a, "dtype", None) is _HALF for a in arrays])
        return self._in_float32(inputs, arrays) if half else self._run(inputs, arrays)

    def _run(self, inputs, arrays):
        self.xp = backend.array_module(*arrays)
        recording = _recording.get()
        self.needs = tuple(recording and isinstance(x, Tensor) and x.requires_grad for x in inputs)
        try:
            results = self.forward(*arrays)
        except MemoryError as error:
            raise self.out_of_memory("forward", arrays, error) from error
        if results is None:
            raise TypeError(f"{type(self).__name__}.forward gave None: is a return missing?")
        several = isinstance(results, (tuple, list))
        outputs = [Tensor(self.xp.asarray(r)) for r in (results if several else (results,))]
        _share_edits(inputs, outputs)
        if any(self.needs):
            self._record(inputs, outputs)
        return tuple(outputs) if several else outputs[0]

    def _in_float32(self, inputs, arrays):
        """The call with float32 in place of float16; `giving_dtype` decides what the results are."""
        is_half = [getattr(a, "dtype", None) is _HALF for a in arrays]
        wide = [_Cast.apply(x, dtype=np.float32) if half else x for x, half in zip(inputs, is_half)]
        results = self(*wide)
        floats = [a.dtype for a in arrays[self.giving_dtype] if hasattr(a, "dtype") and a.dtype.kind == "f"]
        if not floats or any(dtype is not _HALF for dtype in floats):
            return results
        back = [_Cast.apply(y, dtype=_HALF) for y in (results if isinstance(results, tuple) else (results,))]
        return tuple(back) if isinstance(results, tuple) else back[0]

    def _record(self, inputs, outputs) -> None:
        if hasattr(self, "order"):
            name = type(self).__name__
            raise RuntimeError(f"{name}: an object is good for one call; use {name}.apply(...) for each")
        self.order = next(_created)
        # An edge is (creator, slot) of a computed input, the Tensor itself of a leaf, None for a constant.
        self.edges = [
            None if not need else (x.creator, x.slot) if x.creator else x
            for x, need in zip(inputs, self.needs)
        ]
        self.input_kinds = [(x.shape, x.dtype) if need else None for x, need in zip(inputs, self.needs)]
        # Of each input that was saved: its position, its counter of edits, and the count at this moment.
        self._watched = [
            (i, x._edits, x._edits[0])
            for i, x in enumerate(inputs)
            if isinstance(x, Tensor) and holds(self.saved, x.data)
        ]
        self.output_kinds = [(y.shape, y.dtype) for y in outputs]
        for slot, y in enumerate(outputs):
            y.requires_grad, y.creator, y.slot = True, self, slot

    def out_of_memory(self, what: str, arrays, error: MemoryError) -> OutOfMemory:
        """The error to raise when `what`, "forward" or "backward", found no memory: it names the shapes."""
        shapes = ", ".join(str(tuple(a.shape)) for a in arrays if hasattr(a, "shape"))
        return OutOfMemory(f"{error} in {type(self).__name__}.{what} of {shapes}".strip())

    def check_saved(self) -> None:
        """Raise RuntimeError if an input that `backward` will read was edited since `forward` saved it."""
        for i, edits, then in self._watched:
            if edits[0] != then:
                raise RuntimeError(
                    f"backward: the data of input {i} of {type(self).__name__} was changed after the forward "
                    "pass (by an optimizer, load_state_dict or an assignment); compute the output again"
                )

    def save(self, *values) -> None:
        """Keep what `backward` will read, unless no gradient is needed."""
        if any(self.needs):
            self.saved = values

    def forward(self, *arrays):
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, *gradients):
        raise NotImplementedError(f"{type(self).__name__} has no backward")


class _Cast(Function):
    """The same numbers in another floating point dtype; the gradient comes back in the original one."""

    def __init__(self, dtype):
        self.dtype = dtype

    def _in_float32(self, inputs, arrays):
        return self._run(inputs, arrays)  # float16 is what this Function is for

    def forward(self, x):
        self.save(x.dtype)
        return x.astype(self.dtype)

    def backward(self, gy):
        return gy.astype(self.saved[0])


def _array(value):
    return value.data if isinstance(value, Tensor) else value


def _arrays(value):
    """Arguments with arrays in place of Tensors, at any depth."""
    if isinstance(value, dict):
        return {name: _arrays(entry) for name, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(map(_arrays, value))
    return np.asarray(value) if isinstance(value, Tensor) else value


def _numbers(arguments: tuple) -> tuple:
    """``f(2, 3)``, ``f((2, 3))`` and ``f([2, 3])`` alike: (2, 3)."""
    is_sequence = len(arguments) == 1 and isinstance(arguments[0], (tuple, list))
    return tuple(arguments[0]) if is_sequence else arguments


def _share_edits(inputs, outputs) -> None:
    """Let an output that is a view of an input, as from `reshape`, share that input's counter of edits."""
    for y in outputs:
        owner = y.data if y.data.base is None else y.data.base
        for x in inputs:
            if isinstance(x, Tensor) and (x.data is owner or x.data is y.data or x.data.base is owner):
                y._edits = x._edits


# ------------------------------------------------------------------------------------------------- arithmetic


class Add(Function):
    """y = a + b."""

    def forward(self, a, b):
        return a + b

    def backward(self, gy):
        return tuple(unbroadcast(gy, *kind) if kind else None for kind in self.input_kinds)


class Subtract(Function):
    """y = a - b."""

    def forward(self, a, b):
        return a - b

    def backward(self, gy):
        ga = unbroadcast(gy, *self.input_kinds[0]) if self.needs[0] else None
        gb = unbroadcast(-gy, *self.input_kinds[1]) if self.needs[1] else None
        return ga, gb


class Multiply(Function):
    """y = a b."""

    def forward(self, a, b):  # dy/da = b and dy/db = a: each is kept for the other's gradient alone
        self.save(a if self.needs[1] else None, b if self.needs[0] else None)
        return a * b

    def backward(self, gy):
        a, b = self.saved
        ga = unbroadcast(gy * b, *self.input_kinds[0]) if self.needs[0] else None
        gb = unbroadcast(gy * a, *self.input_kinds[1]) if self.needs[1] else None
        return ga, gb


class Divide(Function):
    """y = a / b."""

    def forward(self, a, b):
        self.save(a if self.needs[1] else None, b)
        return a / b

    def backward(self, gy):
        a, b = self.saved
        ga = unbroadcast(gy / b, *self.input_kinds[0]) if self.needs[0] else None
        gb = unbroadcast(-gy * a / (b * b), *self.input_kinds[1]) if self.needs[1] else None
        return ga, gb


class Power(Function):
    """y = x ** exponent, for a constant exponent."""

    def __init__(self, exponent: float):
        if not isinstance(exponent, Real):
            raise TypeError(f"power: the exponent must be a constant number, not a {type(exponent).__name__}")
        self.exponent = exponent

    def forward(self, x):
        self.save(x)
        return x**self.exponent

    def backward(self, gy):
        (x,) = self.saved
        if self.exponent == 0:
            return self.xp.zeros_like(x)  # x^0 = 1 at 0 too, where 0 x^-1 would be 0 times infinity
        return unbroadcast(gy * self.exponent * x ** (self.exponent - 1), *self.input_kinds[0])


class MatMul(Function):
    """y = a @ b, for stacks of matrices too."""

    def forward(self, a, b):  # (..., I, J), (..., J, K) -> (..., I, K)
        if a.ndim < 2 or b.ndim < 2:
            raise ValueError(
                f"matmul: both sides must be matrices or stacks of them, not {a.shape} @ {b.shape}"
            )
        self.save(a if self.needs[1] else None, b if self.needs[0] else None)
        return a @ b

    def backward(self, gy):
        a, b = self.saved
        # y_ik = sum_j a_ij b_jk, so dL/da_ij = sum_k gy_ik b_jk and dL/db_jk = sum_i a_ij gy_ik
        ga = unbroadcast(gy @ b.swapaxes(-1, -2), *self.input_kinds[0]) if self.needs[0] else None
        gb = unbroadcast(a.swapaxes(-1, -2) @ gy, *self.input_kinds[1]) if self.needs[1] else None
        return ga, gb


# ------------------------------------------------------------------------------------------------- reductions


class Sum(Function):
    """y = sum of x over some axes."""

    def __init__(self, axis=None, keepdims: bool = False):
        self.axis, self.keepdims = axis, keepdims

    def forward(self, x):
        self.save(x.shape)
        return x.sum(axis=self.axis, keepdims=self.keepdims)

    def backward(self, gy):
        (shape,) = self.saved
        if self.axis is not None and not self.keepdims:
            gy = self.xp.expand_dims(gy, self.axis)
        return self.xp.broadcast_to(gy, shape).copy()


class Mean(Function):
    """y = mean of x over some axes; the mean of nothing is 0."""

    def __init__(self, axis=None, keepdims: bool = False):
        self.axis, self.keepdims = axis, keepdims

    def forward(self, x):
        y = x.sum(axis=self.axis, keepdims=self.keepdims)
        count = max(x.size // max(y.size, 1), 1)
        self.save(x.shape, count)
        return y / count

    def backward(self, gy):
        shape, count = self.saved
        if self.axis is not None and not self.keepdims:
            gy = self.xp.expand_dims(gy, self.axis)
        return self.xp.broadcast_to(gy / count, shape).copy()


# ------------------------------------------------------------------------------------------- shapes and parts


class Reshape(Function):
    """The same elements in the same order in another shape."""

    def __init__(self, shape):
        self.shape = shape

    def forward(self, x):
        self.save(x.shape)
        return x.reshape(self.shape)

    def backward(self, gy):
        return gy.reshape(self.saved[0])


class Transpose(Function):
    """The axes in another order; reversed by default."""

    def __init__(self, axes=None):
        self.axes = axes

    def forward(self, x):
        self.save(x.ndim)
        return x.transpose(self.axes)

    def backward(self, gy):
        if self.axes is None:
            return gy.transpose()
        back = [0] * self.saved[0]
        for i, axis in enumerate(self.axes):  # y's axis i is x's axis axes[i]
            back[axis] = i
        return gy.transpose(back)


class GetItem(Function):
    """y = x[index]: slices, integers, and arrays of integers, in which an index may occur more than once."""

    def __init__(self, index):
        self.index = index

    def forward(self, x):
        self.save(x.shape)
        y = x[self.index]
        return y.copy() if y.base is not None else y  # a view would keep all of x alive

    def backward(self, gy):
        (shape,) = self.saved
        gx = self.xp.zeros(shape, gy.dtype)
        parts = self.index if isinstance(self.index, tuple) else (self.index,)
        if all(isinstance(part, (int, slice, type(None), type(Ellipsis))) for part in parts):
            gx[self.index] = gy
        else:
            self.xp.add.at(gx, self.index, gy)  # x_j was read once for each time j occurs
        return gx
