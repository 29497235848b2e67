"""The table of what a pickle of weights may call; the calls give descriptions of tensors and arrays.

A tensor in a ``.pth`` is a view: a storage, which is a row of numbers kept outside the pickle, an offset into
it, and a shape with strides. Tied weights, slices and transposed tensors share a storage; an expanded tensor
steps through it by 0. detectron2's ``.pkl`` has NumPy arrays, whose bytes are in the pickle itself. Neither
is made at once: each is checked against its storage or its bytes, and made when it is known to be wanted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from minimask.errors import one_line
from minimask.weights.pickles import Name, Row, Shell, set_items
from minimask.weights.raw import Refusal, damaged

_DIMENSIONS_MOST = 8
_LENGTH_MOST = 2**48  # along one axis, or as an offset or stride; in elements

# torch's names for its types, and how their bytes are read; bfloat16 is the upper half of a float32.
STORAGES = {
    "torch.FloatStorage": "<f4",
    "torch.DoubleStorage": "<f8",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "|i1",
    "torch.ByteStorage": "|u1",
    "torch.BoolStorage": "bool",
}
_RAW = {"bfloat16": "<u2", "bool": "|u1"}  # how bytes are read for which NumPy has no type, or no safe one


def raw_dtype(kind: str) -> np.dtype:
    """The dtype to read a storage's bytes with; `decoded` then converts them."""
    return np.dtype(_RAW.get(kind, kind))


def decoded(raw: np.ndarray, kind: str) -> np.ndarray:
    """The numbers as a new array, or the one given if nothing has to change; bfloat16 exactly as float32."""
    if kind == "bfloat16":
        wide = raw.astype("<u4", order="C")
        wide <<= 16
        raw = wide.view("<f4")
    elif kind == "bool":
        raw = raw.astype(bool, order="C")  # a byte may hold more than 0 and 1
    return raw.astype(raw.dtype.newbyteorder("="), order="C", copy=False)


def decoded_size(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of an array of this shape after `decoded`."""
    return math.prod(shape) * {"bfloat16": 4, "bool": 1}.get(kind, raw_dtype(kind).itemsize)


def check_shape(shape: Any) -> tuple[int, ...]:
    """The shape as a tuple of whole numbers that NumPy accepts; raises a Refusal for any other."""
    if not isinstance(shape, tuple | list) or len(shape) > _DIMENSIONS_MOST:
        raise damaged(f"a shape that is not a list of at most {_DIMENSIONS_MOST} numbers")
    if not all(type(n) is int and 0 <= n <= _LENGTH_MOST for n in shape):
        raise damaged("a shape that is not of whole numbers from 0 to 2^48")
    if math.prod(max(n, 1) for n in shape) > _LENGTH_MOST:
        raise damaged("a shape of more than 2^48 numbers")
    return tuple(shape)


@dataclass(frozen=True)
class Storage:
    """A row of `count` numbers outside the pickle, under the name `key`."""

    kind: str  # a value of STORAGES
    key: str
    count: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * raw_dtype(self.kind).itemsize


@dataclass(frozen=True)
class Strided:
    """A tensor: element (i, j) is number ``offset + i strides[0] + j strides[1]`` of the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return decoded_size(self.storage.kind, self.shape)

    def array(self, raw: np.ndarray, shared: bool) -> np.ndarray:
        """The tensor made of the storage's numbers, in C order; in memory of its own if others share them."""
        if math.prod(self.shape) == 0:
            return decoded(np.empty(self.shape, raw.dtype), self.storage.kind)
        size = raw.dtype.itemsize
        steps = tuple(step * size for step in self.strides)
        view = np.ndarray(self.shape, raw.dtype, raw, self.offset * size, steps)  # checks the bounds again
        result = decoded(view, self.storage.kind)
        lends = np.may_share_memory(result, raw)
        return result.copy() if lends and (shared or result.size < raw.size) else result


def storage_of(reference: Any) -> Storage:
    """The storage a pickle refers to by ('storage', its type, key, device, count), and None in legacy files.

    The device is where the tensor was, such as "cuda:0", and does not matter.
    """
    match reference:
        case ("storage", Name(text), str(key), str(), int(count)) if type(count) is int:
            pass
        case ("storage", Name(text), str(key), str(), int(count), None) if type(count) is int:
            pass
        case ("storage", Name(), str(), str(), int(), tuple()):
            raise Refusal("is from torch before 0.4 (storages in storages); save it again with a newer torch")
        case ("module", *_):
            raise Refusal(
                "is a pickled model, which needs the code of its classes; nothing was run. Where you have "
                'it, save the weights alone: torch.save(model.state_dict(), "weights.pth")'
            )
        case _:
            raise damaged("its pickle refers to something other than a storage")
    if text not in STORAGES or not 0 <= count <= _LENGTH_MOST:
        raise damaged(f"a storage of {count:,} numbers of type {one_line(text, 80)}")
    return Storage(STORAGES[text], key, count)


def _rebuild_tensor(arguments: tuple) -> Strided:
    """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)."""
    match arguments:
        case (Storage() as storage, int(offset), tuple(size), tuple(stride), *_) if len(size) == len(stride):
            pass
        case _:
            raise damaged("a tensor without storage, offset, shape and strides")
    shape = check_shape(size)
    if not all(type(n) is int and 0 <= n <= _LENGTH_MOST for n in (offset, *stride)):
        raise damaged("a tensor with an offset or a stride that is not a whole number from 0 to 2^48")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride))
    if math.prod(shape) and last >= storage.count:
        raise damaged(f"a tensor that reads number {last:,} of a storage of {storage.count:,}")
    return Strided(storage, offset, shape, stride)


def _rebuild_parameter(arguments: tuple) -> Strided:
    """torch._utils._rebuild_parameter(data, requires_grad, hooks)."""
    match arguments:
        case (Strided() as tensor, *_):
            return tensor
    raise damaged("a parameter that is not a tensor")


class NumpyType(Shell):
    """A dtype: made with its name, such as f4; BUILD then gives its byte order."""

    def __init__(self, name: str):
        self.kind = "bool" if name == "b1" else f"<{name}"

    def build(self, state: Any) -> None:
        match state:
            case (int(), "<" | "|" | "=", None, None, None, *_):
                return
            case (int(), ">", *_):
                raise Refusal("is big-endian; write it again on a machine that is not")
        raise damaged("a dtype of NumPy that no array of numbers has")


def _numpy_type(arguments: tuple) -> NumpyType:
    """numpy.dtype("f4", False, True)."""
    match arguments:
        case (str(name), *_) if name in ("f2", "f4", "f8", "b1", *(f"{k}{n}" for k in "iu" for n in "1248")):
            return NumpyType(name)
        case (str(name), *_):
            raise Refusal(
                f"has an array of dtype {one_line(name, 40)}, but weights are numbers; save them alone"
            )
    raise damaged("a dtype of NumPy without a name")


class NumpyArray(Shell):
    """An array: made empty; BUILD then gives its shape, dtype and bytes, which are in the pickle."""

    def __init__(self):
        self.kind, self.shape, self.fortran, self.content = "<f4", (0,), False, b""

    def build(self, state: Any) -> None:
        match state:
            case (int(), tuple(shape), NumpyType(kind=kind), bool(fortran), bytes(content)):
                pass
            case (int(), tuple(shape), NumpyType(kind=kind), bool(fortran), str(text)):  # of Python 2
                content = _encoded((text, "latin1"))
            case _:
                raise damaged("an array of NumPy without shape, dtype and bytes")
        self._set(kind, shape, fortran, content)

    def _set(self, kind: str, shape: Any, fortran: bool, content: bytes) -> None:
        shape = check_shape(shape)
        if math.prod(shape) * raw_dtype(kind).itemsize != len(content):
            raise damaged(f"an array of shape {shape} with {len(content):,} bytes")
        self.kind, self.shape, self.fortran, self.content = kind, shape, fortran, content

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return decoded_size(self.kind, self.shape)

    def array(self) -> np.ndarray:
        """The array, in C order and in memory of its own."""
        raw = np.frombuffer(self.content, raw_dtype(self.kind))
        raw = raw.reshape(self.shape[::-1]).T if self.fortran else raw.reshape(self.shape)
        result = decoded(raw, self.kind)
        return result.copy() if np.may_share_memory(result, raw) else result


def _reconstruct(arguments: tuple) -> NumpyArray:
    """numpy._core.multiarray._reconstruct(ndarray, (0,), b"b"): an empty array, for BUILD to fill."""
    match arguments:
        case (Name("numpy.ndarray"), (0,), b"b" | "b"):
            return NumpyArray()
    raise damaged("an array of NumPy that is not made the way NumPy does")


def _from_buffer(arguments: tuple) -> NumpyArray:
    """numpy._core.numeric._frombuffer(bytes, dtype, shape, order), which protocol 5 writes."""
    match arguments:
        case (bytes(content), NumpyType(kind=kind), tuple(shape), "C" | "F" as order):
            array = NumpyArray()
            array._set(kind, shape, order == "F", content)
            return array
    raise damaged("an array of NumPy without bytes, dtype, shape and order")


def _encoded(arguments: tuple) -> bytes:
    """_codecs.encode(text, "latin1"): how protocol 2 of Python 3 writes bytes."""
    match arguments:
        case (str(text), "latin1" | "latin-1"):
            pass
        case (bytes(content), "latin1" | "latin-1"):  # a long text, which the machine leaves as bytes
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError as error:
                raise damaged("a text in its pickle is not UTF-8") from error
        case _:
            raise damaged("bytes that are not written as their latin-1 text")
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise damaged("bytes with more than 8 bits") from error


def _no_bytes(arguments: tuple) -> bytes:
    """bytes(), which is how protocol 2 writes empty bytes."""
    if arguments:
        raise damaged("a call of bytes with arguments")
    return b""


def _ordered_dict(arguments: tuple) -> dict:
    """collections.OrderedDict(), empty, or with a list of pairs as written by Python 2."""
    made: dict = {}
    match arguments:
        case ():
            return made
        case (list(pairs),) if all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
            set_items(made, pairs)
            return made
    raise damaged("an OrderedDict that is not made of a list of pairs")


def _left_out(arguments: tuple) -> Left:
    """Something that training checkpoints keep beside the weights, and that is not needed."""
    return Left()


class Left(Shell):
    """Stands for what `_left_out` ignored."""

    def build(self, state: Any) -> None:
        pass


def _only_named(arguments: tuple) -> Any:
    raise damaged("its pickle calls what it may only name")


ROWS: dict[str, Row] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,  # until torch 0.3
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    **dict.fromkeys(STORAGES, _only_named),
    "numpy.ndarray": _only_named,
    "numpy.dtype": _numpy_type,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "_codecs.encode": _encoded,
    "__builtin__.bytes": _no_bytes,
    # From training scripts: torchvision's arguments, milestones of learning rates, best results so far.
    "argparse.Namespace": _left_out,
    "collections.Counter": _left_out,
    "numpy.core.multiarray.scalar": _left_out,
    "numpy._core.multiarray.scalar": _left_out,
}
