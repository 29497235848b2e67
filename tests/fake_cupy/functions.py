"""The functions of the module and the methods of its array: NumPy's, behind CuPy's signatures and refusals.

What is in `FUNCTIONS` and `METHODS` was compared with CuPy's source; anything else that CuPy has raises
NotImplementedError here, so that nobody takes NumPy's behaviour for CuPy's unchecked.
"""

from __future__ import annotations

import numpy as np

from tests.fake_cupy.api import api
from tests.fake_cupy.arrays import UFUNCS, ndarray, poison, quiet, unsupported, unwrap, wrap
from tests.fake_cupy.counting import AT_ONCE, count
from tests.fake_cupy.memory import sync

FUNCTIONS = (  # CuPy's behaviour is NumPy's, on arrays of its own
    "all amax amin any around array_equal allclose argmax argmin argpartition argsort argwhere"
    " atleast_1d atleast_2d atleast_3d average bincount broadcast_arrays broadcast_to clip"
    " column_stack compress concat concatenate copyto count_nonzero cross cumprod cumsum delete diag"
    " diagonal diff digitize dot dstack einsum expand_dims extract flatnonzero flip fliplr flipud"
    " histogram hstack inner intersect1d isclose isin ix_ kron lexsort max mean median meshgrid min"
    " moveaxis nan_to_num nanmax nanmean nanmin nansum nonzero outer pad partition percentile"
    " permute_dims prod ptp put quantile ravel repeat reshape roll rollaxis rot90 round searchsorted"
    " setdiff1d sort split array_split squeeze stack std sum swapaxes take take_along_axis tensordot"
    " tile trace transpose tril triu union1d unique var vdot vstack where"
).split()
METHODS = (
    "all any argmax argmin argpartition argsort clip compress conj conjugate cumprod cumsum diagonal"
    " dot flatten max mean min nonzero partition prod ptp put ravel repeat reshape round searchsorted"
    " sort squeeze std sum swapaxes take trace transpose var"
).split()
LINALG = "cholesky det eigh inv norm qr slogdet solve svd".split()
# the host waits: for the size of the result, or to check the arguments
SYNCS = set(
    "argwhere bincount compress delete digitize extract flatnonzero histogram intersect1d nonzero"
    " setdiff1d union1d unique cholesky det eigh inv qr slogdet solve svd".split()
)
PLAIN = (  # about dtypes, shapes and layouts: no array comes out
    "broadcast_shapes can_cast finfo iinfo isdtype isscalar issubdtype may_share_memory"
    " min_scalar_type ndim promote_types result_type shape shares_memory size iscomplexobj isrealobj"
    " isfortran"
).split()
PRODUCTS = set("dot inner outer tensordot vdot".split())
JOINING = set("concat concatenate stack hstack vstack dstack column_stack".split())
ALWAYS = set("flatnonzero nonzero".split())  # they find out how many
LISTS = {"tup", "arys", "args", "xi"}
ARRAYS = set(
    "self a a1 a2 a_max a_min append ar ar1 ar2 arr arr1 arr2 array ary b bins condition dst element"
    " fill_value m max min prepend sorter src test_elements v val values weights where x y out".split()
)


# ------------------------------------------------------------------------------- where CuPy is not NumPy


def _stable(kind) -> str:
    if kind not in (None, "stable"):
        raise ValueError("kind can only be None or 'stable'")
    return "stable"


def _arg_extreme(name: str):
    def find(a, axis=None, dtype=None, out=None, keepdims=False):
        found = np.asarray(getattr(np, name)(a, axis, keepdims=keepdims)).astype(
            dtype or np.int64, copy=False
        )
        if out is None:
            return found
        out[...] = found
        return out

    return find


def _take(a, indices, axis=None, out=None):
    a = a.reshape(-1) if axis is None else a
    if np.size(indices) and not a.shape[axis or 0]:
        raise IndexError("cannot do a non-empty take from an empty axes.")
    return np.take(a, np.asarray(indices, dtype=np.int64), axis or 0, out, mode="wrap")


def _put(a, ind, v, mode="wrap"):
    np.put(a, ind, v, mode)


def _lexsort(keys):
    if keys.ndim == 1:
        return np.array(0)
    if keys.ndim > 2:
        raise NotImplementedError("Keys with the rank of three or more is not supported in lexsort")
    return np.lexsort(keys)


def _repeat(a, repeats, axis=None):
    if isinstance(repeats, np.ndarray):
        raise ValueError("cupy.ndarray cannot be used for `repeats`")
    return np.repeat(a, repeats, axis)


def _where(condition, x=None, y=None):
    if (x is None) != (y is None):
        raise ValueError("Must provide both 'x' and 'y' or neither.")
    if x is None:
        sync("where")
        return np.nonzero(condition)
    return np.asarray(np.where(condition, x, y), order="C")


def _einsum(*operands, **options):
    return np.asarray(np.einsum(*operands, **options), order="F")  # CuPy's may be a transposed view


def _joined(name: str):
    def join(*args, **kwargs):
        return np.asarray(getattr(np, name)(*args, **kwargs), order="C")

    return join


RAW = {
    "argmax": _arg_extreme("argmax"),
    "argmin": _arg_extreme("argmin"),
    "argsort": lambda a, axis=-1, kind=None: np.argsort(a, axis, _stable(kind)),
    "sort": lambda a, axis=-1, kind=None: np.sort(a, axis, _stable(kind)),
    "partition": lambda a, kth, axis=-1: np.sort(a, axis, "stable"),
    "argpartition": lambda a, kth, axis=-1: np.argsort(a, axis, "stable"),
    "take": _take,
    "put": _put,
    "lexsort": _lexsort,
    "repeat": _repeat,
    "where": _where,
    "einsum": _einsum,
    "meshgrid": lambda *xi, **kw: list(np.meshgrid(*xi, **kw)),
    **{name: _joined(name) for name in "concat concatenate stack hstack vstack dstack column_stack".split()},
}
RAW_METHODS = {
    "argmax": lambda a, axis=None, out=None, dtype=None, keepdims=False: RAW["argmax"](
        a, axis, dtype, out, keepdims
    ),
    "argmin": lambda a, axis=None, out=None, dtype=None, keepdims=False: RAW["argmin"](
        a, axis, dtype, out, keepdims
    ),
    "sort": lambda a, axis=-1, kind=None: a.sort(axis, _stable(kind)),
    "partition": lambda a, kth, axis=-1: a.sort(axis, "stable"),
    "ptp": np.ptp,
    **{name: RAW[name] for name in ("argsort", "argpartition", "take", "put", "repeat")},
}


# --------------------------------------------------------------------------------------------- generic


def _argument(name: str, value, first: bool, sources: list):
    """A value as NumPy's function takes it; refused where CuPy's would not take it."""
    if name in LISTS:
        if not isinstance(value, (list, tuple)):
            raise unsupported(value)
        for item in value:
            if not isinstance(item, ndarray):
                raise TypeError(f"Only cupy arrays can be concatenated, got {type(item)}")
        return type(value)(unwrap(item, sources) for item in value)
    if first and not isinstance(value, ndarray):
        raise unsupported(value)
    if name in ARRAYS and value is not None:
        return unwrap(value, sources)
    if isinstance(value, np.ndarray):
        raise unsupported(value)
    if name in ("indices", "repeats", "ind", "q") and isinstance(value, ndarray):
        if name == "q":
            sync("quantile")
        return value._a
    if isinstance(value, ndarray):
        raise TypeError(f"{name} must not be a CuPy array")
    return value


def _function(kind: str, name: str, raw):
    signature = api()[kind][name]

    def call(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)  # TypeError for what CuPy lacks
        sources: list = []
        given = bound.arguments
        out = given.get("out")
        if name in SYNCS or (name == "average" and given.get("weights") is not None):
            sync(name)
        for i, (parameter, value) in enumerate(given.items()):
            given[parameter] = _argument(parameter, value, i == 0, sources)
        result = quiet(raw, *bound.args, **bound.kwargs)
        _count_function(name, result, sources)
        return wrap(result, sources) if out is None else out

    call.__name__ = name
    return call


def _count_function(name: str, result, sources: list) -> None:
    """As one call, or none where the result is a view or empty."""
    if name in PRODUCTS:
        count("product", name, int(np.size(result) > 0))
        return
    results = result if isinstance(result, (tuple, list)) else (result,)
    new = [r for r in results if not any(np.may_share_memory(r, source._a) for source in sources)]
    if name in JOINING and len(sources) <= AT_ONCE:
        count("cupy", name, sum(source.size > 0 for source in sources))
    elif name in ALWAYS or any(np.size(r) > 0 for r in new):
        count("cupy", name)


def _einsum_function(*operands, **options):
    sources: list = []
    values = [o if isinstance(o, str) else unwrap(o, sources) for o in operands]
    result = quiet(_einsum, *values, **options)
    count("product", "einsum", int(np.size(result) > 0))
    return wrap(result, sources)


def take_along_axis(a, indices, axis):
    if not isinstance(indices, ndarray) or not isinstance(a, ndarray):
        raise unsupported(indices if isinstance(a, ndarray) else a)
    return a[_along_axis(a, indices, axis)]


def put_along_axis(arr, indices, values, axis):
    arr[_along_axis(arr, indices, axis)] = values


def _along_axis(a: ndarray, indices: ndarray, axis: int) -> tuple:
    if indices.dtype.kind not in "iu":
        raise IndexError("`indices` must be an integer array")
    if indices.ndim != a.ndim:
        raise ValueError("`indices` and `a` must have the same number of dimensions")
    axis = axis % a.ndim
    rows = [
        wrap(np.arange(n).reshape((1,) * i + (-1,) + (1,) * (a.ndim - i - 1))) for i, n in enumerate(a.shape)
    ]
    return tuple(indices if i == axis else r for i, r in enumerate(rows))


# -------------------------------------------------------------------------------------------- creation


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    if isinstance(obj, ndarray):
        result = obj._a.astype(obj.dtype if dtype is None else dtype, order=order or "K", copy=bool(copy))
        if ndmin > result.ndim:
            result = result.reshape((1,) * (ndmin - result.ndim) + result.shape)
        count("cupy", "copy", int(result.size > 0 and not np.may_share_memory(result, obj._a)))
        return obj if result is obj._a else wrap(result, (obj,))
    if isinstance(obj, (list, tuple)) and any(isinstance(o, ndarray) for o in obj):
        return RAW_STACK(obj, dtype=dtype)
    result = np.array(obj, dtype, copy=True, order=order or "K", ndmin=ndmin)
    if result.dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {result.dtype}")
    count("cupy", "upload", int(result.size > 0))
    return wrap(result)


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    return array(a, dtype, copy=bool(copy), order=order or "K")


def ascontiguousarray(a, dtype=None):
    return array(a, dtype, copy=False, order="C")


def asfortranarray(a, dtype=None):
    return array(a, dtype, copy=False, order="F")


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    if isinstance(a, ndarray):
        return a.get(stream, order, out, blocking)
    return np.asarray(a, order=order)


def _created(name: str, raw=None):
    signature = api()["function"][name]

    def create(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        for value in bound.arguments.values():
            if isinstance(value, (ndarray, np.ndarray)):
                raise unsupported(value)
        result = (raw or getattr(np, name))(*bound.args, **bound.kwargs)
        count("cupy", name, int(name != "empty" and np.size(result) > 0))
        return wrap(poison(result) if name == "empty" else result)

    return create


def full(shape, fill_value, dtype=None, order="C"):
    result = np.full(shape, unwrap(fill_value), dtype, order)
    count("cupy", "full", int(result.size > 0))
    return wrap(result)


def _like(name: str):
    signature = api()["function"][name]

    def create(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        given, first = bound.arguments, next(iter(signature.parameters))
        if not isinstance(given[first], ndarray):
            raise unsupported(given[first])
        given[first] = given[first]._a
        if "fill_value" in given:
            given["fill_value"] = unwrap(given["fill_value"])
        if given.pop("subok", None) is not None:
            raise TypeError("subok is not supported yet")
        result = getattr(np, name)(*bound.args, **bound.kwargs)
        count("cupy", name, int(name != "empty_like" and result.size > 0))
        return wrap(poison(result) if name == "empty_like" else result)

    return create


def copy(a, order="K"):
    if not isinstance(a, ndarray):
        raise unsupported(a)
    return a.copy(order)


def astype(x, dtype, /, *, copy=True):
    return x.astype(dtype, copy=copy)


def get_array_module(*args):
    import cupy

    return cupy if any(isinstance(a, ndarray) for a in args) else np


def _plain(name: str):
    function = getattr(np, name)
    if isinstance(function, type):
        return function
    return lambda *args, **kwargs: function(*(a._a if isinstance(a, ndarray) else a for a in args), **kwargs)


RAW_STACK = _function("function", "stack", RAW["stack"])


def names() -> dict:
    """All that the module `cupy` holds, its submodules excepted."""
    found = {name: getattr(np, name) for name in api()["value"] if _is_dtype(getattr(np, name, None))}
    found |= {n: getattr(np, n) for n, s in api()["function"].items() if s == "" and hasattr(np, n)}
    found |= {name: _plain(name) for name in PLAIN}
    found |= {name: ufunc for name, ufunc in UFUNCS.items()}
    found |= {name: _function("function", name, RAW.get(name) or getattr(np, name)) for name in FUNCTIONS}
    found |= {n: _created(n) for n in "arange empty eye identity indices linspace ones tri zeros".split()}
    found |= {n: _created(n) for n in "tril_indices triu_indices".split()}
    found |= {n: _like(n) for n in "empty_like full_like ones_like zeros_like".split()}
    own = [array, asarray, ascontiguousarray, asfortranarray, asnumpy, full, copy, astype, get_array_module]
    found |= {f.__name__: f for f in [*own, ndarray, take_along_axis, put_along_axis]}
    return found | {"asanyarray": asarray, "einsum": _einsum_function, "ufunc": type(UFUNCS["add"])}


def _is_dtype(value) -> bool:
    return value is np.dtype or (isinstance(value, type) and issubclass(value, np.generic))


def linalg_names() -> dict:
    return {name: _function("linalg", name, getattr(np.linalg, name)) for name in LINALG}


def _add_methods() -> None:
    for name in METHODS:
        raw = RAW_METHODS.get(name) or getattr(np.ndarray, name)
        setattr(ndarray, name, _function("method", name, raw))


_add_methods()
