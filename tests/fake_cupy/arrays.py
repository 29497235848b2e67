"""The stand-in's array: a NumPy array inside, CuPy's manners outside."""

from __future__ import annotations

import itertools
from math import prod

import numpy as np

from tests.fake_cupy.api import api
from tests.fake_cupy.counting import count
from tests.fake_cupy.memory import Buffer, generator, sync

SCALARS = (bool, int, float, complex, np.generic)
IMPLICIT = (
    "Implicit conversion to a NumPy array is not allowed. "
    "Please use `.get()` to construct a NumPy array explicitly."
)


def unsupported(value) -> TypeError:
    return TypeError(f"Unsupported type {type(value)}")


def poison(array: np.ndarray) -> np.ndarray:
    """What uninitialised memory holds: nothing anybody would want."""
    array.reshape(-1).view(np.uint8)[...] = 0xFF if array.dtype.kind in "fc" else 0x5B
    return array if array.dtype.kind != "b" else np.logical_not(array, out=array)


def wrap(result, sources=()):
    """NumPy's result as a result of CuPy: arrays, also of no dimensions, in tuples and lists too."""
    if isinstance(result, (tuple, list)):
        return type(result)(wrap(r, sources) for r in result) if type(result) in (tuple, list) else result
    if isinstance(result, ndarray) or not isinstance(result, (np.ndarray, np.generic, bool, int, float)):
        return result
    result = np.asarray(result)
    new = object.__new__(ndarray)
    new._a, new._base = result, None
    for source in sources:
        if np.may_share_memory(result, source._a):
            new._buffer, new._base = source._buffer, source if source._base is None else source._base
            return new
    new._buffer = Buffer(result.nbytes)
    return new


def unwrap(value, sources: list | None = None):
    """A CuPy array's NumPy array, or a number; nothing else may be computed with."""
    if isinstance(value, ndarray):
        if sources is not None:
            sources.append(value)
        return value._a
    if not isinstance(value, SCALARS):
        raise unsupported(value)
    return value


def quiet(function, *args, **kwargs):
    """Call; a GPU has no floating-point warnings."""
    with np.errstate(all="ignore"):
        return function(*args, **kwargs)


class Ufunc:
    """An elementwise function: arrays of CuPy and numbers, no `where=`, results C-contiguous."""

    def __init__(self, name: str):
        self.name, self.__name__ = f"cupy_{name}", name
        self._numpy = getattr(np, name)
        self.nin, self.nout = map(int, api()["ufunc"].get(name, "2 1").split())
        self.nargs = self.nin + self.nout

    def __repr__(self) -> str:
        return f"<ufunc '{self.name}'>"

    def __call__(self, *args, out=None, dtype=None, casting="same_kind", **kwargs):
        if kwargs:
            raise TypeError(f"Wrong arguments {kwargs}")
        if not self.nin <= len(args) <= self.nargs:
            raise TypeError(
                f"Wrong number of arguments for {self.name!r}. It must be either {self.nin} or {self.nargs} "
                f"(with outputs), but given {len(args)}."
            )
        if self.__name__ == "matmul" and len(args) > self.nin:  # a generalized ufunc of CuPy, unlike NumPy's
            raise TypeError("_try_fastcall_matmul() got multiple values for argument 'out'")
        if out is None and len(args) > self.nin:
            args, out = args[: self.nin], args[self.nin :]
        outs = out if isinstance(out, tuple) else (out,) * (out is not None)
        for o in outs:
            if not isinstance(o, ndarray):
                raise TypeError(f"Output arguments type must be cupy.ndarray, is {type(o)}")
        values = [unwrap(a) for a in args]
        options = {} if dtype is None else {"dtype": dtype}
        if outs:
            options["out"] = tuple(o._a for o in outs)
        if isinstance(self._numpy, np.ufunc):
            options |= {"casting": casting, "order": "C"}
        result = quiet(self._numpy, *values, **options)
        first = result[0] if isinstance(result, tuple) else result
        count("product" if self.__name__ == "matmul" else "cupy", self.__name__, int(np.size(first) > 0))
        if outs:
            return outs[0] if self.nout == 1 else outs
        return wrap(result)

    def at(self, a, indices, b=None) -> None:
        if self.__name__ not in ("add", "maximum", "minimum"):
            raise NotImplementedError(f"`{self.name}.at` is not supported yet")
        a._scatter(indices, b, self.__name__)

    def reduce(self, array, axis=0, dtype=None, out=None, keepdims=False):
        if self.__name__ not in ("add", "multiply"):
            raise NotImplementedError(f"`{self.name}.reduce` is not supported yet")
        method = array.sum if self.__name__ == "add" else array.prod
        return method(axis, dtype, out, keepdims)

    def accumulate(self, array, axis=0, dtype=None, out=None):
        if self.__name__ not in ("add", "multiply"):
            raise NotImplementedError(f"`{self.name}.accumulate` is not supported yet")
        return (array.cumsum if self.__name__ == "add" else array.cumprod)(axis, dtype, out)


class Flags:
    """What CuPy tells of an array's layout; there is no `writeable`."""

    def __init__(self, array: ndarray):
        self.c_contiguous = array._a.flags.c_contiguous
        self.f_contiguous = array._a.flags.f_contiguous
        self.owndata = array._base is None
        self.forc = self.c_contiguous or self.f_contiguous
        self.fnc = self.f_contiguous and not self.c_contiguous

    def __getitem__(self, name: str) -> bool:
        return getattr(self, name.lower())


class MemoryPointer:
    """Where an array begins."""

    def __init__(self, array: ndarray):
        self.ptr = array._a.ctypes.data
        self.mem = array._buffer


class ndarray:
    """An array of the device."""

    __slots__ = ("__weakref__", "_a", "_base", "_buffer")
    __module__ = "cupy"
    __array_priority__ = 100
    __hash__ = None

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        if memptr is not None or strides is not None:
            raise NotImplementedError("tests/fake_cupy does not model memptr and strides")
        self._a, self._base = poison(np.empty(shape, dtype, order)), None
        self._buffer = Buffer(self._a.nbytes)

    # ------------------------------------------------------------------------- what NumPy may not do

    def __array__(self, dtype=None, copy=None):
        raise TypeError(IMPLICIT)

    def __array_function__(self, function, types, args, kwargs):
        raise TypeError(
            f"np.{function.__name__} of a CuPy array: say {function.__name__} of its array module"
        )

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if ufunc.__name__ in COMPARISONS:  # numpy.float32(2) < array comes as an array of no dimensions
            inputs = tuple(x[()] if isinstance(x, np.ndarray) and x.ndim == 0 else x for x in inputs)
        for value in inputs:
            unwrap(value)  # NumPy arrays beside ours
        scalar = isinstance(inputs[0], np.generic) or isinstance(inputs[-1], np.generic)
        if method != "__call__" or kwargs or not scalar or ufunc.__name__ not in BINARY.values():
            raise TypeError(f"np.{ufunc.__name__} of a CuPy array: say {ufunc.__name__} of its array module")
        return UFUNCS[ufunc.__name__](*inputs)  # numpy.float32(2) * array

    # --------------------------------------------------------------------------------- about the array

    shape = property(
        lambda self: self._a.shape, lambda self, shape: setattr(self, "_a", self._view_of(shape))
    )
    dtype = property(lambda self: self._a.dtype)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)
    nbytes = property(lambda self: self._a.nbytes)
    itemsize = property(lambda self: self._a.itemsize)
    strides = property(lambda self: self._a.strides)
    base = property(lambda self: self._base)
    flags = property(Flags)
    data = property(MemoryPointer)
    T = property(lambda self: wrap(self._a.T, (self,)))
    mT = property(lambda self: wrap(self._a.mT, (self,)))
    real = property(lambda self: wrap(self._a.real, (self,)))
    imag = property(lambda self: wrap(self._a.imag, (self,)))

    @property
    def device(self):
        from tests.fake_cupy.cuda import Device

        return Device(0)

    def _view_of(self, shape) -> np.ndarray:
        view = self._a.view()
        view.shape = shape
        return view

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of unsized object")
        return len(self._a)

    def __iter__(self):
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self._a)))

    # --------------------------------------------------------------------------- what the host waits for

    def get(self, stream=None, order="C", out=None, blocking=True) -> np.ndarray:
        if blocking:
            sync("get")
        count("cupy", "get")
        if out is not None:
            out[...] = self._a
            return out
        return self._a.copy(order)

    def set(self, arr, stream=None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype or arr.shape != self.shape:
            raise TypeError(f"{arr.dtype} array of {arr.shape} cannot be set to {self.dtype} of {self.shape}")
        self._a[...] = arr
        count("cupy", "upload")

    def item(self):
        sync("item")
        return self._a.item()

    def tolist(self):
        sync("tolist")
        return self._a.tolist()

    def tobytes(self, order="C") -> bytes:
        sync("tobytes")
        return self._a.tobytes(order)

    def __bool__(self) -> bool:
        sync("bool")
        return bool(self._a)

    def __int__(self) -> int:
        sync("int")
        return int(self._a)

    def __float__(self) -> float:
        sync("float")
        return float(self._a)

    def __complex__(self) -> complex:
        sync("complex")
        return complex(self._a)

    def __repr__(self) -> str:
        sync("repr")
        return repr(self._a)

    def __str__(self) -> str:
        sync("str")
        return str(self._a)

    def __format__(self, form: str) -> str:
        sync("format")
        return format(self._a, form)

    # ------------------------------------------------------------------------------------------ copies

    def copy(self, order="C"):
        count("cupy", "copy", int(self.size > 0))
        return wrap(self._a.copy(order))

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        if subok is not None:
            raise TypeError("subok is not supported yet")
        result = quiet(self._a.astype, dtype, order=order, casting=casting or "unsafe", copy=copy)
        count("cupy", "astype", int(result is not self._a and self.size > 0))
        return self if result is self._a else wrap(result)

    def view(self, dtype=None, type=None):
        if type is not None:
            raise NotImplementedError("tests/fake_cupy does not model view(type=...)")
        return wrap(self._a.view() if dtype is None else self._a.view(dtype), (self,))

    def fill(self, value) -> None:
        count("cupy", "fill", int(self.size > 0))
        self._a.fill(unwrap(value))

    # ---------------------------------------------------------------------------------------- indexing

    def __getitem__(self, key):
        given = key
        key, advanced = self._key(key)
        result = self._a[key]
        if advanced:
            _count_index("take", given, result)
        return wrap(np.array(result, order="C")) if advanced else wrap(result, (self,))

    def __setitem__(self, key, value) -> None:
        value, given = unwrap(value), key
        key, advanced = self._key(key)
        if advanced:
            _count_index("put", given, self._a[key])
        else:
            count("cupy", "assign", int(self._a[key].size > 0))
        if advanced and np.ndim(value):
            key, value = self._scrambled(key, value)
        quiet(self._a.__setitem__, key, value)

    def _key(self, key) -> tuple[tuple, bool]:
        """The key as NumPy takes it, ending in `...`; array indices wrapped; whether there are any."""
        parts = [self._part(p) for p in (key if isinstance(key, tuple) else (key,))]
        if not any(p is Ellipsis for p in parts):
            parts.append(Ellipsis)
        takes = [p.ndim if _is_mask(p) else int(p is not None and p is not Ellipsis) for p in parts]
        if sum(takes) > self.ndim:
            raise IndexError(
                f"too many indices for array: array is {self.ndim}-dimensional, but {sum(takes)} were indexed"
            )
        axis = 0
        for i, part in enumerate(parts):
            if isinstance(part, np.ndarray) and not _is_mask(part):
                if part.size and not self.shape[axis]:
                    raise IndexError("cannot do a non-empty take from an empty axes.")
                parts[i] = np.asarray(part % self.shape[axis]) if part.size else part
            axis += self.ndim - sum(takes) if part is Ellipsis else takes[i]
        return tuple(parts), any(isinstance(p, np.ndarray) for p in parts)

    def _part(self, part):
        if part is None or part is Ellipsis or isinstance(part, slice):
            return part
        if isinstance(part, SCALARS) and not isinstance(part, (bool, np.bool_)):
            return part
        array = part._a if isinstance(part, ndarray) else np.asarray(part)
        if array.size == 0 and isinstance(part, (list, tuple)):
            array = array.astype(np.int32)
        if array.dtype.kind not in "biu":
            raise IndexError(
                f"arrays used as indices must be of integer or boolean type. (actual: {array.dtype.type})"
            )
        if array.dtype.kind == "b" and array.size:
            sync("mask")
        # NumPy takes an array of no dimensions for an integer and gives a view; CuPy copies
        return array.astype(np.int64) if array.dtype.kind != "b" else array

    def _scrambled(self, key: tuple, value: np.ndarray) -> tuple[tuple, np.ndarray]:
        """The same assignment in another order: of values for one place a random one lasts, as on a GPU."""
        parts: list = []
        for part in key:
            parts += np.nonzero(part) if _is_mask(part) else [part]
        is_index = [isinstance(p, (np.ndarray, *SCALARS)) for p in parts]
        indices = np.broadcast_arrays(*(np.asarray(p) for p, flag in zip(parts, is_index) if flag))
        count = prod(indices[0].shape)
        if count < 2 or (any(_is_mask(p) for p in key) and len(indices) == len(key) - 1):
            return key, value
        runs = [flag for flag, _ in itertools.groupby(is_index)]
        first = is_index.index(True) if runs.count(True) == 1 else 0
        order = generator().permutation(count)
        shuffled = [i.reshape(-1)[order] for i in indices]
        rest = iter(shuffled)
        flat = tuple(next(rest) if flag else p for p, flag in zip(parts, is_index))
        # dimensions that the key's other parts give, before and behind those of the indices
        size = [1 if p is None else 0 if p is Ellipsis or flag else 1 for p, flag in zip(parts, is_index)]
        taken = sum(p is not None and p is not Ellipsis for p in parts)
        size = [self.ndim - taken if p is Ellipsis else s for p, s in zip(parts, size)]
        before = sum(size[:first])
        shape = np.broadcast_shapes(value.shape, self._a[key].shape)
        value = np.broadcast_to(value, shape)
        extra = len(shape) - indices[0].ndim - sum(size)  # leading ones of a value with too many dimensions
        start = before + extra
        end = start + indices[0].ndim
        value = value.reshape(shape[:start] + (count,) + shape[end:])
        return flat, np.take(value, order, axis=start)

    def _scatter(self, key, value, ufunc: str) -> None:
        """cupyx.scatter_add and its like: every duplicate counts."""
        allowed = "ilILQqefd" if ufunc == "add" else "iILQfd"
        given = key
        key, advanced = self._key(key)
        _count_index(f"scatter_{ufunc}", given, self._a[key])
        if advanced and self.dtype.char not in allowed.replace("l", "").replace("q", ""):
            raise TypeError(f"scatter_{ufunc[:3]} does not support {self.dtype}")
        getattr(np, ufunc).at(self._a, key, unwrap(value))

    def scatter_add(self, slices, value) -> None:
        self._scatter(slices, value, "add")

    def scatter_max(self, slices, value) -> None:
        self._scatter(slices, value, "maximum")

    def scatter_min(self, slices, value) -> None:
        self._scatter(slices, value, "minimum")


def _count_index(name: str, key, result) -> None:
    """An index with arrays: k + 2 kernels for k of them, which work out places first; uploads of NumPy's."""
    parts = [
        p for p in (key if isinstance(key, tuple) else (key,)) if isinstance(p, (ndarray, np.ndarray, list))
    ]
    count("cupy", "upload", sum(not isinstance(p, ndarray) and np.size(p) > 0 for p in parts))
    if any(_is_mask(p._a if isinstance(p, ndarray) else np.asarray(p)) for p in parts):
        count("cupy", "mask", 2)  # a scan, whose last number comes back
    if np.size(result):
        count("cupy", name, len(parts) + 2 if len(parts) > 1 else 1)


def _is_mask(part) -> bool:
    return isinstance(part, np.ndarray) and part.dtype.kind == "b"


# ------------------------------------------------------------------------------------------------ operators

BINARY = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "power", "matmul": "matmul", "and": "bitwise_and", "or": "bitwise_or",
    "xor": "bitwise_xor", "lshift": "left_shift", "rshift": "right_shift", "divmod": "divmod",
    "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater",
    "ge": "greater_equal",
}  # fmt: skip
COMPARISONS = [BINARY[name] for name in ("eq", "ne", "lt", "le", "gt", "ge")]
UNARY = {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}
UFUNCS = {name: Ufunc(name) for name in [*api()["ufunc"], "matmul"] if hasattr(np, name)}


def _operator(ufunc: Ufunc, kind: str):
    if kind == "i":
        return lambda self, other: ufunc(self, other, out=self)
    if kind == "r":
        return lambda self, other: ufunc(other, self)
    return lambda self, *other: ufunc(self, *other)


def _add_operators() -> None:
    for short, name in (BINARY | UNARY).items():
        for kind in ("", "r", "i"):
            if f"__{kind}{short}__" in api()["operator"]:
                setattr(ndarray, f"__{kind}{short}__", _operator(UFUNCS[name], kind))


_add_operators()
