"""The stand-in for CuPy is as strict as CuPy: what it refuses, how it differs from NumPy, what it counts."""

import copy
import importlib.util
import inspect
import math
import operator
import sys

import numpy as np
import pytest

from minimask import backend
from tests.fake_cupy import api, arrays, functions, installed, memory, modules, syncs

BINARY = "add sub mul truediv floordiv mod pow matmul and_ or_ xor lshift rshift eq ne lt le gt ge".split()
IN_PLACE = "iadd isub imul itruediv ifloordiv imod ipow iand ior ixor ilshift irshift".split()


def unlike(x):
    """What may not stand beside an array of CuPy: an array of NumPy, also of no dimensions, and a list."""
    return [np.ones(3, x.dtype), np.array(1, x.dtype), [1, 1, 1], (1, 1, 1)]


def inside(call, *args):
    """Call from a line that seems to be of minimask: line 2 of probe.py."""
    names = {}
    exec(
        compile("def probe(call, args):\n    return call(*args)\n", memory.PACKAGE + "probe.py", "exec"),
        names,
    )
    return names["probe"](call, args)


# ------------------------------------------------------------------------------------------ what CuPy has


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed to compare with")
def test_the_list_of_names_is_that_of_the_cupy_that_is_installed():
    assert api.FILE.read_text(encoding="utf-8").splitlines() == api.real_api()


def test_the_stand_in_has_no_function_method_or_parameter_that_cupy_lacks(fake_cupy):
    listed = api.api()
    known = {name for kind in ("function", "value", "ufunc") for name in listed[kind]}
    assert {n for n in vars(fake_cupy) if n[0] != "_"} <= known | {"cuda", "linalg"}
    methods = listed["method"].keys() | listed["attribute"].keys() | listed["operator"].keys()
    assert {n for n, v in vars(fake_cupy.ndarray).items() if n not in vars(type) and n[0] != "_"} <= methods
    dunders = {n for n in vars(fake_cupy.ndarray) if n.startswith("__")} - set(dir(type)) - {"__weakref__"}
    pythons = {
        "__slots__",
        "__hash__",
        "__static_attributes__",
        "__firstlineno__",
    }  # the latter two from 3.13 on
    assert dunders <= methods | pythons | {"__array_priority__"}
    for kind, holder in (("function", fake_cupy), ("method", fake_cupy.ndarray)):
        for name, signature in listed[kind].items():
            written = vars(holder).get(name)
            if inspect.isfunction(written) and "_function" not in written.__qualname__ and signature != "":
                if not {p.kind for p in inspect.signature(written).parameters.values()} & {2, 4}:
                    assert list(inspect.signature(written).parameters) == list(signature.parameters), name


@pytest.mark.parametrize(
    "name", "insert block nanpercentile isnat vecdot unstack ndenumerate errstate".split()
)
def test_a_name_that_cupy_lacks_is_missing(name, fake_cupy):
    assert not hasattr(fake_cupy, name)


@pytest.mark.parametrize("name", ["polyfit", "piecewise", "fuse", "ElementwiseKernel", "random", "fft"])
def test_what_is_not_modelled_says_so(name, fake_cupy):
    with pytest.raises(NotImplementedError, match=rf"does not model cupy\.{name}"):
        getattr(fake_cupy, name)
    with pytest.raises(NotImplementedError, match=r"does not model cupy\.cuda"):
        fake_cupy.cuda.nccl  # noqa: B018


@pytest.mark.parametrize("name", "__contains__ __index__ ctypes resize setflags itemset to_device".split())
def test_a_method_that_cupy_lacks_is_missing(name, fake_cupy):
    assert not hasattr(fake_cupy.zeros(3), name)


def test_an_element_is_no_index_of_python_and_a_flag_may_not_be_set(fake_cupy):
    one = fake_cupy.asarray(1)
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        range(one)
    with pytest.raises(TypeError):
        [1, 2, 3][one]
    assert not hasattr(one.flags, "writeable")
    with pytest.raises(AttributeError):
        one.name = "x"


@pytest.mark.parametrize(
    "call",
    [
        lambda cp, x: cp.sum(x, where=x > 0),
        lambda cp, x: cp.sum(x, initial=0.0),
        lambda cp, x: x.max(initial=0.0),
        lambda cp, x: cp.maximum(x, 1, where=x > 0),
        lambda cp, x: cp.add(x, 1, order="F"),
        lambda cp, x: cp.unique(x, sorted=False),
        lambda cp, x: x.item(0),
        lambda cp, x: cp.arange(3, like=x),
        lambda cp, x: cp.clip(x, min=0, max=1),
        lambda cp, x: cp.sort(x, stable=True),
        lambda cp, x: cp.take(x, x.astype(int), mode="clip"),
        lambda cp, x: cp.zeros_like(x, subok=False),
    ],
)
def test_a_parameter_that_cupy_lacks_is_refused(call, fake_cupy):
    with pytest.raises(TypeError):
        call(fake_cupy, fake_cupy.ones(3))


@pytest.mark.parametrize(
    "sort", [lambda cp, x: cp.sort(x, kind="quicksort"), lambda cp, x: x.argsort(kind="q")]
)
def test_there_is_one_kind_of_sorting(sort, fake_cupy):
    with pytest.raises(ValueError, match="kind can only be None or 'stable'"):
        sort(fake_cupy, fake_cupy.ones(3))


def test_the_default_sort_is_stable(fake_cupy):
    keys = np.random.default_rng(0).integers(0, 4, 300)
    assert (fake_cupy.asarray(keys).argsort().get() == np.argsort(keys, kind="stable")).all()
    with pytest.raises(TypeError, match="Unsupported type <class 'tuple'>"):
        fake_cupy.lexsort((fake_cupy.ones(3), fake_cupy.ones(3)))


@pytest.mark.parametrize(
    "call",
    [
        lambda cp, x: cp.maximum.reduce(x),
        lambda cp, x: cp.logical_and.accumulate(x),
        lambda cp, x: cp.subtract.at(x, cp.asarray([0]), 1.0),
    ],
)
def test_a_ufuncs_methods_are_few(call, fake_cupy):
    with pytest.raises(NotImplementedError, match="is not supported yet"):
        call(fake_cupy, fake_cupy.ones(3))
    assert fake_cupy.add.reduce(fake_cupy.ones((2, 3))).get().tolist() == [2, 2, 2]


# ------------------------------------------------------------------------------------ NumPy stays outside


@pytest.mark.parametrize("name", [*BINARY, *IN_PLACE])
def test_an_operator_takes_no_array_of_numpy_and_no_list(name, fake_cupy):
    x, apply = fake_cupy.ones(3, int), getattr(operator, name)
    for other in unlike(x):
        with pytest.raises(TypeError, match=f"Unsupported type {type(other)}"):
            apply(x, other)
        scalar = np.ndim(other) == 0 and name in ("eq", "ne", "lt", "le", "gt", "ge")  # may be np.float64(1)
        if name in BINARY and not scalar:
            with pytest.raises(TypeError, match=f"Unsupported type {type(other)}"):
                apply(other, x)
    with pytest.raises(TypeError):
        apply(np.ones(3, int), x)


@pytest.mark.parametrize("name", sorted(api.api()["ufunc"]))
def test_a_ufunc_takes_no_array_of_numpy_and_no_list(name, fake_cupy):
    if not hasattr(np, name):
        pytest.skip(f"NumPy has no {name} to stand in for it")
    ufunc = getattr(fake_cupy, name)
    for other in unlike(fake_cupy.ones(3)):
        with pytest.raises(TypeError, match=f"Unsupported type {type(other)}"):
            ufunc(*[other] * ufunc.nin)
    with pytest.raises(TypeError, match=r"must be cupy\.ndarray"):
        ufunc(*[fake_cupy.ones(3)] * ufunc.nin, out=tuple([np.ones(3)] * ufunc.nout))


@pytest.mark.parametrize("name", functions.FUNCTIONS)
def test_a_function_takes_no_array_of_numpy(name, fake_cupy):
    signature = api.api()["function"][name]
    count = sum(p.default is p.empty and p.kind < 2 for p in signature.parameters.values())
    for other in (np.ones(3), [1.0, 2.0], (1.0, 2.0)):
        with pytest.raises(TypeError, match=r"Unsupported type|Only cupy arrays|copying bounds"):
            getattr(fake_cupy, name)(*[other] * max(count, 1))


@pytest.mark.parametrize(
    "call",
    [
        lambda cp, x, y: cp.where(x > 0, y, 0),
        lambda cp, x, y: cp.where(x > 0, 0, y),
        lambda cp, x, y: cp.clip(x, y, 2),
        lambda cp, x, y: x.clip(0, y),
        lambda cp, x, y: cp.searchsorted(x, y),
        lambda cp, x, y: x.dot(y),
        lambda cp, x, y: cp.bincount(x.astype(int), y),
        lambda cp, x, y: cp.full(3, y),
        lambda cp, x, y: cp.full_like(x, y),
        lambda cp, x, y: cp.concatenate([x, y]),
        lambda cp, x, y: cp.stack((y, x)),
        lambda cp, x, y: cp.einsum("i,i", x, y),
        lambda cp, x, y: cp.zeros_like(y),
        lambda cp, x, y: cp.copyto(x, y),
        lambda cp, x, y: x.fill(y),
        lambda cp, x, y: x.__setitem__(slice(None), y),
        lambda cp, x, y: x.__setitem__(cp.asarray([0, 1, 2]), y),
        lambda cp, x, y: cp.take_along_axis(x, y.astype(int), 0),
        lambda cp, x, y: cp.put_along_axis(x, cp.asarray([0, 1, 2]), y, 0),
        lambda cp, x, y: cp.average(x, weights=y),
        lambda cp, x, y: cp.nan_to_num(y),
        lambda cp, x, y: cp.matmul(x, y),
        lambda cp, x, y: cp.linalg.norm(y),
    ],
)
def test_a_function_takes_no_array_of_numpy_beside_its_own(call, fake_cupy):
    with pytest.raises(TypeError, match=r"Unsupported type|Only cupy arrays"):
        call(fake_cupy, fake_cupy.ones(3), np.ones(3))


@pytest.mark.parametrize(
    "call",
    [np.sqrt, np.sum, np.ndim, np.shape, np.zeros_like, np.exp, np.copy, np.argsort, np.linalg.norm,
     lambda x: np.concatenate([x, x]), lambda x: np.maximum(x, 0), lambda x: np.maximum(np.float64(0), x),
     lambda x: np.where(x > 0, x, 0), lambda x: np.add.reduce(x), lambda x: np.add(x, x),
     lambda x: np.testing.assert_allclose(x, x), lambda x: np.take(np.ones(4), x.astype(int))],
)  # fmt: skip
def test_a_function_of_numpy_takes_no_array_of_cupy(call, fake_cupy):
    with pytest.raises(TypeError, match=r"CuPy array|Implicit conversion|Unsupported type"):
        call(fake_cupy.ones(3))


def test_matmul_takes_its_output_by_name_alone(fake_cupy):
    a = fake_cupy.ones((2, 2))
    assert fake_cupy.matmul(a, a, out=a) is a
    with pytest.raises(TypeError, match="multiple values for argument 'out'"):
        fake_cupy.matmul(a, a, a)


@pytest.mark.parametrize("convert", [np.asarray, np.array, np.ascontiguousarray])
def test_nothing_becomes_an_array_of_numpy_unasked(convert, fake_cupy):
    with pytest.raises(
        TypeError,
        match=r"Implicit conversion to a NumPy array is not allowed\. Please use `\.get\(\)`",
    ):
        convert(fake_cupy.ones(3))


def test_numbers_of_python_and_numpy_are_taken_on_both_sides(fake_cupy):
    x = fake_cupy.full(3, 2, np.float32)
    for number in (3, 3.0, True, np.float32(3), np.int8(3)):
        for name in ("add", "sub", "mul", "truediv", "pow", "lt"):
            apply = getattr(operator, name)
            assert (apply(x, number).get() == apply(x.get(), number)).all()
            assert type(apply(number, x)) is fake_cupy.ndarray
            assert (apply(number, x).get() == apply(number, x.get())).all()


def test_types_are_promoted_as_by_numpy_2(fake_cupy):
    x = fake_cupy.ones(3, np.float32)
    assert (x * 2.0).dtype == (x * np.float32(2)).dtype == fake_cupy.where(x > 0, x, 0.0).dtype == np.float32
    assert (x * np.float64(2)).dtype == (x * fake_cupy.asarray(2.0)).dtype == np.float64
    assert (x.sum() * 0.5).dtype == np.float32 and (fake_cupy.ones(3, np.int32).sum()).dtype == np.int64
    with pytest.raises(TypeError, match="Cannot cast"):
        fake_cupy.ones(3, int).__iadd__(0.5)


def test_memory_of_the_host_and_of_the_device_are_two(fake_cupy):
    host = np.zeros(3)
    x = fake_cupy.asarray(host)
    host[0] = 1
    back = x.get()
    back[1] = 1
    assert fake_cupy.asarray(x) is x and x.get().tolist() == [0, 0, 0]
    assert fake_cupy.array(x) is not x and fake_cupy.asnumpy(host)[0] == 1


# --------------------------------------------------------------------------------------------- indexing

SHAPE = (4, 5, 3)
KEYS = [
    1, -1, np.int64(2), (1, 2, 0), slice(1, 3), (slice(None, None, -1), 2), ..., (..., 1),
    (None, 2), (1, ..., None),
    [0, 2, 2], ([1, 0], [2, 3]), (slice(None), [4, 0, 1]), (slice(None), [4, 0], 1), (1, slice(None), [2, 0]),
    ([1, 2], slice(None), [0, 1]), (..., [2, 0, 1]), (None, [3, 1]), ([[0, 1], [2, 3]],),
    ([[0], [3]], [[1, 2]]), (slice(0, 2), [[0], [1]], [[1, 2, 0]]), [], "mask", ("mask", 1),
    (slice(None), "row"),
    ("row4", [0, 2]), (np.array([0, 3]), None, 1),
]  # fmt: skip
MASKS = {
    "mask": np.random.default_rng(1).random((4, 5)) > 0.5,
    "row": np.array([True, False, True, True, False]),
    "row4": np.array([True, False, True, False]),
}


def keys(module):
    """Each key for `module`: its lists and masks as arrays of it."""

    def part(p):
        if isinstance(p, str):
            return module.asarray(MASKS[p])
        if isinstance(p, list):
            return module.asarray(p, dtype=np.int32)
        return module.asarray(p) if isinstance(p, np.ndarray) else p

    return [tuple(map(part, k)) if isinstance(k, tuple) else part(k) for k in KEYS]


@pytest.mark.parametrize("number", range(len(KEYS)), ids=map(str, KEYS))
def test_every_kind_of_index_reads_and_writes_what_numpy_does(number, fake_cupy):
    host, (ours, theirs) = np.random.default_rng(0).random(SHAPE), (keys(m)[number] for m in (fake_cupy, np))
    x = fake_cupy.asarray(host)
    read = x[ours]
    assert type(read) is fake_cupy.ndarray and read.shape == host[theirs].shape
    assert (read.get() == host[theirs]).all()
    value = np.random.default_rng(2).random(host[theirs].shape)
    for change in [value, *([value[:1], value[None], value[..., :1]] if value.ndim else [])]:
        expected, got = host.copy(), x.copy()
        expected[theirs] = change
        got[ours] = fake_cupy.asarray(change)
        places = np.zeros(SHAPE, int)
        np.add.at(places, theirs, 1)
        assert (got.get() == expected)[places < 2].all()
    got = x.copy()
    got[ours] = 7
    expected[theirs] = 7
    assert (got.get() == 7).sum() == (expected == 7).sum()


def test_an_index_of_arrays_gives_a_contiguous_copy_and_of_slices_a_view(fake_cupy):
    x = fake_cupy.asarray(np.arange(12.0).reshape(3, 4))
    for copied in (
        x[fake_cupy.asarray([0, 1])],
        x[:, fake_cupy.asarray([0, 1])],
        x[x > 3],
        x[fake_cupy.asarray(1)],
    ):
        assert copied.flags.c_contiguous and copied.base is None
        copied[...] = -1
    assert (x >= 0).all()
    for view in (
        x[1],
        x[1, 2],
        x[:, 1:3],
        x.T,
        x.reshape(4, 3),
        x.ravel(),
        fake_cupy.transpose(x),
        x[..., None],
    ):
        assert view.base is x and view.data.mem is x.data.mem
        view[...] = -1
    assert x.max() == -1 and type(x[1, 2]) is fake_cupy.ndarray and x[1, 2].shape == ()
    assert not x[:, 1:3].flags.c_contiguous and x[:, 1:].data.ptr == x.data.ptr + 8


def test_an_index_array_wraps_around_where_an_integer_raises(fake_cupy):
    x = fake_cupy.asarray(np.arange(12).reshape(3, 4))
    far = fake_cupy.asarray([3, -4, 7])
    assert x[far, 0].tolist() == [0, 8, 4] and x[far].tolist() == x[fake_cupy.asarray([0, 2, 1])].tolist()
    assert fake_cupy.take(x, far, axis=1).tolist() == x[:, far].tolist() == x.take(far, 1).tolist()
    assert fake_cupy.take_along_axis(x, far[:, None], 1).ravel().tolist() == [3, 4, 11]
    x[far] = fake_cupy.asarray([[0], [0], [5]])
    assert x[:, 0].tolist() == [0, 5, 0]
    for bad in (3, -4, (0, 4), np.int64(3)):
        with pytest.raises(IndexError):
            x[bad]
    for bad in (fake_cupy.ones(2), fake_cupy.ones(4, bool), (0, 0, 0), (fake_cupy.asarray([0]),) * 3):
        with pytest.raises(IndexError):
            x[bad]
    with pytest.raises(IndexError, match="empty axes"):
        fake_cupy.zeros((0, 2))[far]


def test_of_two_values_for_one_place_any_may_last(fake_cupy):
    def winners(*shape):
        x = fake_cupy.zeros((*shape, 2), int)
        x[..., fake_cupy.zeros(50, int)] = fake_cupy.arange(50)
        return x[..., 0].get()

    found = [int(winners()) for _ in range(20)]
    assert len(set(found)) > 5 and set(found) <= set(range(50))
    assert winners(2, 3).shape == (2, 3) and winners(0).size == 0
    x = fake_cupy.zeros(3, int)
    lasted = set()
    for _ in range(20):
        fake_cupy.put_along_axis(x, fake_cupy.asarray([1, 1, 1]), fake_cupy.asarray([5, 6, 7]), 0)
        lasted.add(int(x[1]))
    assert lasted == {5, 6, 7} and x[0] == x[2] == 0
    with installed() as again:
        y = again.zeros(2, int)
        y[again.zeros(50, int)] = again.arange(50)
        assert int(y[0]) == found[0]  # the same in every run


def test_scatter_add_counts_every_duplicate_and_refuses_what_atomic_add_cannot(fake_cupy):
    import cupyx

    for dtype in (np.int32, np.float32, np.float64, np.uint64):
        x = fake_cupy.zeros(3, dtype)
        cupyx.scatter_add(x, fake_cupy.asarray([1, 4, 0]), fake_cupy.asarray([1, 2, 3], dtype))
        fake_cupy.add.at(x, fake_cupy.asarray([1, 1]), 1)
        assert x.tolist() == [3, 5, 0]
    cupyx.scatter_max(x, fake_cupy.asarray([2, 2]), 9)
    assert x.tolist() == [3, 5, 9]
    for dtype in (np.int64, np.int8, np.bool_):
        with pytest.raises(TypeError, match="scatter_add does not support"):
            cupyx.scatter_add(fake_cupy.zeros(3, dtype), fake_cupy.asarray([1]), 1)


# ---------------------------------------------------------------------------------------------- results


@pytest.mark.parametrize(
    "call",
    [
        lambda cp, x: x.sum(),
        lambda cp, x: cp.max(x),
        lambda cp, x: x.argmin(),
        lambda cp, x: cp.all(x > 0),
        lambda cp, x: cp.count_nonzero(x),
        lambda cp, x: cp.array_equal(x, x),
        lambda cp, x: cp.allclose(x, x),
        lambda cp, x: x[0, 0],
        lambda cp, x: next(iter(x[0])),
        lambda cp, x: cp.linalg.norm(x),
        lambda cp, x: cp.add(1, 2),
        lambda cp, x: cp.dot(x[0], x[0]),
        lambda cp, x: x[0] @ x[0],
        lambda cp, x: cp.asarray(3),
        lambda cp, x: x.mean(),
        lambda cp, x: cp.einsum("ij->", x),
        lambda cp, x: -x[0, 0],
        lambda cp, x: x.ptp(),
    ],
)
def test_a_single_number_is_an_array_of_no_dimensions(call, fake_cupy):
    result = call(fake_cupy, fake_cupy.ones((2, 2)))
    assert type(result) is fake_cupy.ndarray and result.shape == () and result.size == 1
    with pytest.raises(TypeError, match="iteration over a 0-d array"):
        iter(result)
    with pytest.raises(TypeError, match="unsized"):
        len(result)


def test_what_comes_out_in_pieces_is_in_arrays_too(fake_cupy):
    x = fake_cupy.asarray(np.arange(6.0))
    for pieces in (fake_cupy.split(x, 2), fake_cupy.nonzero(x), fake_cupy.meshgrid(x, x), fake_cupy.modf(x)):
        assert all(type(piece) is fake_cupy.ndarray for piece in pieces)
    assert fake_cupy.split(x, [1, 3])[1].base is x
    assert fake_cupy.shape(x) == (6,) and fake_cupy.result_type(x, np.float32) == np.float64


def test_elementwise_results_are_contiguous_and_views_are_not(fake_cupy):
    x = fake_cupy.ones((3, 4))
    assert not x.T.flags.c_contiguous and x.T.flags["F_CONTIGUOUS"] and x.T.flags.fnc
    for result in (
        x.T + 1,
        -x.T,
        fake_cupy.exp(x.T),
        fake_cupy.where(x.T > 0, x.T, 0),
        fake_cupy.concatenate([x.T]),
    ):
        assert result.flags.c_contiguous
    assert not fake_cupy.einsum("ij,jk->ik", x, x.T).flags.c_contiguous
    assert not x.T.astype(np.float32).flags.c_contiguous and x.T.copy().flags.c_contiguous
    assert fake_cupy.ascontiguousarray(x) is x and fake_cupy.ascontiguousarray(x.T).flags.c_contiguous
    assert fake_cupy.ascontiguousarray(fake_cupy.asarray(1.0)).shape == ()


def test_uninitialised_memory_is_no_zeros(fake_cupy):
    for dtype in (np.float32, np.float64):
        for x in (
            fake_cupy.empty((2, 3), dtype),
            fake_cupy.empty_like(fake_cupy.ones(4, dtype)),
            fake_cupy.ndarray(3),
        ):
            assert fake_cupy.isnan(x).all()
    for dtype in (np.int32, np.int64, np.uint8):
        assert (fake_cupy.empty(3, dtype) != 0).all()
    assert fake_cupy.zeros(3).tolist() == [0, 0, 0] and fake_cupy.full(2, np.float32(3)).tolist() == [3, 3]


def test_a_gpu_has_no_floating_point_warnings(fake_cupy):
    x = fake_cupy.zeros(3)
    for silent in (
        lambda: 1 / x,
        lambda: x / x,
        lambda: fake_cupy.log(x),
        lambda: fake_cupy.full(2, 1e300) ** 2,
    ):
        silent()


def test_repeats_and_positions_may_not_be_on_the_device(fake_cupy):
    x = fake_cupy.ones(3)
    with pytest.raises(ValueError, match="repeats"):
        fake_cupy.repeat(x, fake_cupy.asarray([1, 2, 3]))
    for call in (
        lambda: fake_cupy.arange(x[0]),
        lambda: fake_cupy.zeros(x.astype(int)),
        lambda: x.sum(axis=x[0]),
    ):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(ValueError, match="Must provide both"):
        fake_cupy.where(x > 0, x)


# --------------------------------------------------------------------------------------- what is counted

WAITS = {
    "get": lambda cp, x: x.get(),
    "asnumpy": lambda cp, x: cp.asnumpy(x),
    "item": lambda cp, x: x[0].item(),
    "float": lambda cp, x: float(x[0]),
    "int": lambda cp, x: int(x[0]),
    "bool": lambda cp, x: bool(x[0]),
    "if": lambda cp, x: 1 if (x > 0).all() else 0,
    "tolist": lambda cp, x: x.tolist(),
    "mask": lambda cp, x: x[x > 0],
    "set mask": lambda cp, x: x.__setitem__(x > 0, 1),
    "nonzero": lambda cp, x: x.nonzero(),
    "flatnonzero": lambda cp, x: cp.flatnonzero(x),
    "argwhere": lambda cp, x: cp.argwhere(x),
    "repr": lambda cp, x: repr(x),
    "where": lambda cp, x: cp.where(x > 0),
    "unique": lambda cp, x: cp.unique(x),
    "format": lambda cp, x: f"{x[0]}",
    "bincount": lambda cp, x: cp.bincount(x.astype(int)),
    "math": lambda cp, x: math.sqrt(x[0]),
    "str": lambda cp, x: str(x),
    "compress": lambda cp, x: cp.compress(x > 0, x),
    "max": lambda cp, x: max(x[0], x[1]),
    "in": lambda cp, x: 1.0 in x,
    "inv": lambda cp, x: cp.linalg.inv(cp.eye(3)),
    "tobytes": lambda cp, x: x.tobytes(),
    "sorted": lambda cp, x: sorted(x),
    "average": lambda cp, x: cp.average(x, weights=x),
    "stream": lambda cp, x: cp.cuda.Stream.null.synchronize(),
    "device": lambda cp, x: cp.cuda.Device().synchronize(),
    "complex": lambda cp, x: complex(x[0]),
}
GOES_ON = {
    "sum": lambda cp, x: x.sum(),
    "sort": lambda cp, x: cp.sort(x),
    "index": lambda cp, x: x[cp.asarray([0, 1])],
    "asarray": lambda cp, x: cp.asarray(np.ones(3)),
    "where": lambda cp, x: cp.where(x > 0, x, 0),
    "len": lambda cp, x: len(x),
    "rows": lambda cp, x: list(x),
    "shape": lambda cp, x: (x.shape, x.dtype, x.flags, x.data.ptr),
    "copy": lambda cp, x: x.copy(),
    "matmul": lambda cp, x: x @ x,
    "fill": lambda cp, x: x.fill(0),
    "cumsum": lambda cp, x: x.cumsum(),
    "slice": lambda cp, x: x[1:],
    "concatenate": lambda cp, x: cp.concatenate([x, x]),
    "norm": lambda cp, x: cp.linalg.norm(x),
    "any": lambda cp, x: x.any(),
    "late": lambda cp, x: x.get(blocking=False),
    "deepcopy": lambda cp, x: copy.deepcopy(x),
    "isnan": lambda cp, x: cp.isnan(x),
}


@pytest.mark.parametrize("name", WAITS)
def test_where_the_host_waits_is_noted_with_its_line(name, fake_cupy):
    x = fake_cupy.ones(3)
    WAITS[name](fake_cupy, x)
    assert syncs == []  # not called from minimask
    inside(WAITS[name], fake_cupy, x)
    assert syncs and {place[:2] for place in syncs} == {(memory.PACKAGE + "probe.py", 2)}


@pytest.mark.parametrize("name", GOES_ON)
def test_where_the_host_goes_on_nothing_is_noted(name, fake_cupy):
    inside(GOES_ON[name], fake_cupy, fake_cupy.ones(3))
    assert syncs == []


def test_memory_is_counted_and_views_cost_none(fake_cupy):
    pool = fake_cupy.get_default_memory_pool()
    before = pool.used_bytes()
    x = fake_cupy.zeros((1000, 3))
    views = [x[1:], x.T, x.reshape(-1), x[:, 0], fake_cupy.broadcast_to(x, (2, 1000, 3)), x.view(np.int64)]
    assert pool.used_bytes() - before == 24064 == -(-24000 // 512) * 512
    y = x + 1
    assert pool.used_bytes() - before == 2 * 24064
    del x
    assert pool.used_bytes() - before == 2 * 24064  # its views hold it
    del views
    assert pool.used_bytes() - before == 24064 and pool.total_bytes() - before >= 2 * 24064
    pool.free_all_blocks()
    assert pool.total_bytes() == pool.used_bytes() and len(y) == 1000


def test_more_memory_than_the_limit_is_refused_in_cupys_words(fake_cupy):
    pool = fake_cupy.get_default_memory_pool()
    used = pool.used_bytes()
    pool.set_limit(size=used + 10_000)
    kept = fake_cupy.zeros(1000)
    so_far, limit = f"allocated so far: {used + 8192:,} bytes", f"limit set to: {used + 10_000:,} bytes"
    words = f"Out of memory allocating 8,192 bytes ({so_far}, {limit})."
    with pytest.raises(MemoryError) as caught:
        kept + 1
    assert str(caught.value) == words and type(caught.value) is fake_cupy.cuda.memory.OutOfMemoryError
    del kept, caught  # its traceback holds the array
    assert len(fake_cupy.zeros(1000)) == 1000 and pool.get_limit() == used + 10_000


# ---------------------------------------------------------------------------------------------- kernels

ORDER = """
__global__ void number(int* next, int* place) {
    place[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(next, 1);
}
template <typename T>
__global__ void fill(T* y, T value, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = value;
}
"""


def order_of(cupy):
    place, next_ = cupy.zeros(64, np.int32), cupy.zeros(1, np.int32)
    cupy.RawModule(code=ORDER, name_expressions=["number"]).get_function("number")(
        (2,), (32,), (next_, place)
    )
    return place.tolist()


def test_threads_run_in_another_order_each_time_and_in_the_same_ones_in_every_run(fake_cupy):
    found = [order_of(fake_cupy) for _ in range(3)]
    assert found[0] != found[1] != found[2] and sorted(found[0]) == list(range(64))
    with installed() as again:
        assert [order_of(again) for _ in range(3)] == found
    for order, expected in (("forward", list(range(64))), ("reverse", list(range(64))[::-1])):
        with installed(order=order) as other:
            assert order_of(other) == expected


def test_a_kernel_takes_the_devices_arrays_and_sized_numbers_only(fake_cupy):
    kernel = fake_cupy.RawModule(code=ORDER, name_expressions=["fill<float>"]).get_function("fill<float>")
    y = fake_cupy.zeros(5, np.float32)
    good = (y, np.float32(3), np.int32(4))
    kernel((1,), (8,), good)
    assert y.tolist() == [3, 3, 3, 3, 0]
    for i, bad in (
        (0, y.get()),
        (0, y.astype(float)),
        (1, 3.0),
        (1, np.float64(3)),
        (2, 4),
        (2, np.array(4, "i4")),
    ):
        with pytest.raises(TypeError):
            kernel((1,), (8,), good[:i] + (bad,) + good[i + 1 :])
    for bad in (fake_cupy.zeros((5, 2), np.float32)[:, 0], fake_cupy.zeros((2, 5), np.float32).T):
        with pytest.raises(TypeError, match="contiguous"):
            kernel((1,), (8,), (bad, *good[1:]))
    with pytest.raises(TypeError, match="must be tuples"):
        kernel(1, (8,), good)
    with pytest.raises(KeyError, match="no kernel"):
        fake_cupy.RawModule(code=ORDER, name_expressions=["fill<float>"]).get_function("fill<double>")


def test_races_are_found_where_they_are_looked_for():
    source = "__global__ void add(float* x) { x[0] += 1; }"
    with installed(watch=True) as cupy, pytest.raises(RuntimeError, match="race"):
        cupy.RawModule(code=source, name_expressions=["add"]).get_function("add")(
            (1,), (2,), (cupy.zeros(1, "f4"),)
        )


# ------------------------------------------------------------------------------------- coming and going


def test_it_comes_and_goes_without_a_trace():
    before = {name: sys.modules.get(name) for name in modules()}
    with installed() as cupy:
        import cupy as found

        x = found.zeros(3)
        assert found is cupy and backend.device("cuda") == backend.device("auto") == "cuda"
        assert backend.array_module(x) is cupy and backend.array_module(np.ones(3)) is np
        assert backend.to_cpu(x).tolist() == [0, 0, 0] and "stand-in" in backend.describe()["gpu"]
        backend.launch(
            "elementwise", next(iter(backend.cuda._source("elementwise")[1])), (0,), 1, [], np.float32
        )
        cupy.get_default_memory_pool().set_limit(size=1)
    assert {name: sys.modules.get(name) for name in modules()} == before
    assert memory.pool.get_limit() == 0 and syncs == [] and backend.array_module(x) is np
    assert arrays.unwrap(x).tolist() == [0, 0, 0]
