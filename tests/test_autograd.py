"""The tape: what is remembered, for how long, and what arrives where."""

import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest

from minimask import functions as F
from minimask.autograd import Function, Tensor, no_grad
from minimask.nn import Module, Parameter
from minimask.training.optim import SGD


def leaf(*shape, seed=0, dtype=np.float64) -> Tensor:
    return Tensor(np.random.default_rng(seed).normal(size=shape).astype(dtype), requires_grad=True)


# ------------------------------------------------------------------------------------- what gradients are


def test_a_gradient_is_summed_over_all_uses():
    x = leaf(3)
    (x * x + x * 2.0 + F.exp(x)).sum().backward()
    np.testing.assert_allclose(x.grad, 2 * x.data + 2 + np.exp(x.data), rtol=1e-15)


def test_a_gradient_is_summed_over_backward_calls_until_it_is_cleared():
    x = leaf(3)
    for _ in range(3):
        (x * 2.0).sum().backward()
    np.testing.assert_array_equal(x.grad, np.full(3, 6.0))
    x.grad = None
    (x * 2.0).sum().backward()
    np.testing.assert_array_equal(x.grad, np.full(3, 2.0))


def test_a_gradient_somebody_holds_is_not_changed_by_the_next_backward():
    x = leaf(3)
    (x * 2.0).sum().backward()
    held = x.grad
    (x * 2.0).sum().backward()
    np.testing.assert_array_equal(held, np.full(3, 2.0))


def test_a_diamond_of_many_paths_counts_each_path():
    x = leaf(2)
    y = x
    for _ in range(30):
        y = y + y  # 2^30 paths, 30 nodes
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, np.full(2, 2.0**30))


def test_nodes_are_visited_after_all_who_use_them():
    visits = []

    class Named(Function):
        def __init__(self, name):
            self.name = name

        def forward(self, *xs):
            return sum(xs)

        def backward(self, gy):
            visits.append(self.name)
            return tuple(gy.copy() for _ in self.needs)

    x = leaf(2)
    a = Named.apply(x, name="a")
    b = Named.apply(a, name="b")
    c = Named.apply(a, b, name="c")
    d = Named.apply(b, c, a, name="d")
    d.sum().backward()
    assert visits == ["d", "c", "b", "a"]
    np.testing.assert_array_equal(x.grad, np.full(2, 4.0))  # d = b + c + a, c = a + b, b = a


def test_branches_that_end_elsewhere_are_not_visited():
    x = leaf(2)
    y = x * 2.0
    unused = y * 5.0
    (y * 3.0).sum().backward()
    np.testing.assert_array_equal(x.grad, np.full(2, 6.0))
    assert unused.requires_grad and unused.grad is None


def test_only_leaves_keep_a_gradient():
    x = leaf(2)
    y = x * 2.0
    y.sum().backward()
    assert y.grad is None and x.grad is not None


def test_backward_on_a_leaf_gives_it_the_gradient_itself():
    x = leaf(2)
    g = np.array([1.0, 2.0])
    x.backward(g)
    np.testing.assert_array_equal(x.grad, g)
    x.grad[0] = 7.0
    assert g[0] == 1.0


def test_an_upstream_gradient_weights_the_outputs():
    x = leaf(2, 3)
    u = np.arange(6.0).reshape(2, 3)
    (x * 2.0).backward(u)
    np.testing.assert_array_equal(x.grad, 2 * u)
    x.grad = None
    (x * 2.0).backward(Tensor(u))
    np.testing.assert_array_equal(x.grad, 2 * u)


def test_zero_axes_in_and_out():
    x = Tensor(np.array(3.0), requires_grad=True)
    y = x * x
    assert y.shape == () and float(y) == 9.0
    y.backward()
    assert x.grad.shape == () and float(x.grad) == 6.0


# ------------------------------------------------------------------------------------------ nobody's array


def test_gradients_of_two_leaves_are_two_arrays():
    a, b = leaf(3), leaf(3, seed=1)
    (a + b).sum().backward()
    a.grad[...] = 7.0
    np.testing.assert_array_equal(b.grad, np.ones(3))


def test_a_leaf_used_twice_by_one_function_gets_the_sum():
    x = leaf(3)
    (x + x).sum().backward()
    np.testing.assert_array_equal(x.grad, np.full(3, 2.0))


def test_the_gradient_given_to_backward_is_neither_kept_nor_changed():
    a, b = leaf(3), leaf(3, seed=1)
    u = np.array([1.0, 2.0, 3.0])
    y = a + b
    y.backward(u)
    a.grad *= 5.0
    np.testing.assert_array_equal(u, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(b.grad, [1.0, 2.0, 3.0])


class Shared(Function):
    """y = a + b, handing one and the same array, or views of it, to both inputs."""

    views = False

    def forward(self, a, b):
        return a + b

    def backward(self, gy):
        g = gy * 1.0
        return (g[:], g[:]) if self.views else (g, g)


class SharedViews(Shared):
    views = True


@pytest.mark.parametrize("shared", [Shared, SharedViews])
def test_the_engine_does_not_write_into_a_gradient_that_two_inputs_share(shared):
    """Both a and b were used before, so that later their gradients are added to what came from `shared`."""
    x, z = leaf(3), leaf(3, seed=1)
    a, b = x * 2.0, z * 3.0
    before = a * 10.0 + b * 100.0
    (before + shared.apply(a, b)).sum().backward()
    np.testing.assert_array_equal(x.grad, np.full(3, 2.0 * 11))
    np.testing.assert_array_equal(z.grad, np.full(3, 3.0 * 101))


class KeepsItsGradient(Function):
    """Returns an array that it goes on reading."""

    def forward(self, a, b):
        self.save(np.full(a.shape, 5.0))
        return a * 5.0 + b * 5.0

    def backward(self, gy):
        (five,) = self.saved
        return five, gy * five


def test_the_engine_does_not_write_into_a_saved_array():
    x = leaf(3)
    a = x * 1.0
    before = a * 2.0
    y = KeepsItsGradient.apply(a, leaf(3, seed=1))
    saved = y.creator.saved[0]
    (before + y).sum().backward()
    np.testing.assert_array_equal(saved, np.full(3, 5.0))
    np.testing.assert_array_equal(x.grad, np.full(3, 7.0))


# ------------------------------------------------------------------------------------------------ memory


@pytest.fixture
def no_collector():
    """Reference counting alone must free everything: no cycles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_an_activation_that_no_backward_reads_dies_at_once(no_collector):
    x = leaf(3)
    y = x + 1.0
    z = F.relu(y)  # keeps its output, not its input
    middle, last = weakref.ref(y.data), weakref.ref(z.data)
    del y
    assert middle() is None
    assert last() is not None
    z.sum().backward()
    np.testing.assert_array_equal(x.grad, x.data > -1)


def test_an_activation_that_a_backward_reads_lives_until_then(no_collector):
    x = leaf(3)
    y = x + 1.0
    z = y * y
    middle = weakref.ref(y.data)
    del y
    assert middle() is not None
    z.sum().backward()
    assert middle() is None


def test_backward_frees_the_graph_node_by_node(no_collector):
    x = leaf(3)
    alive = []

    class Watch(Function):
        def forward(self, x):
            return x * 1.0

        def backward(self, gy):
            alive.append(later() is not None)
            return gy

    y = F.exp(Watch.apply(x))
    later = weakref.ref(y.creator)
    z = y.sum()
    del y
    z.backward()
    assert alive == [False], "exp's node was done and let go before the node below it was visited"


def test_a_graph_that_is_dropped_without_backward_dies_at_once(no_collector):
    x = leaf(3)
    y = F.softmax(x * 2.0)
    z = (y * y).sum()
    nodes = [weakref.ref(y.creator), weakref.ref(z.creator), weakref.ref(y.data)]
    del y, z
    assert [node() for node in nodes] == [None] * 3


def test_a_graph_after_backward_holds_no_cycle(no_collector):
    x = leaf(3)
    y = F.exp(x)
    z = y.sum()
    z.backward()
    nodes = [weakref.ref(y.creator), weakref.ref(y.data), weakref.ref(z.creator)]
    del y, z
    assert [node() for node in nodes] == [None] * 3


def test_a_chain_of_20000_needs_no_recursion():
    x = leaf(1)
    y = x
    for _ in range(20_000):
        y = y + 1.0
    y.backward()
    np.testing.assert_array_equal(x.grad, [1.0])
    y = x * 1.0
    for _ in range(20_000):
        y = y + 1.0
    del y  # nor does letting go of it


# --------------------------------------------------------------------------------------------- refusals


def test_a_second_backward_says_that_the_graph_was_freed():
    x = leaf(3)
    y = F.exp(x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match=r"the graph was freed by an earlier backward pass \(at Sum\)"):
        y.backward()


def test_a_part_of_the_graph_that_was_freed_is_named():
    x = leaf(3)
    y = F.exp(x)
    y.sum().backward()
    with pytest.raises(
        RuntimeError, match=r"freed by an earlier backward pass \(at Exp\); compute the output again"
    ):
        (y * 2.0).sum().backward()


def test_backward_wants_a_gradient_for_more_than_one_number():
    with pytest.raises(ValueError, match=r"give a gradient of shape \(2, 3\)"):
        (leaf(2, 3) * 2.0).backward()


def test_backward_wants_a_gradient_of_the_output_s_shape():
    with pytest.raises(ValueError, match=r"gradient has shape \(3,\), the Tensor \(2, 3\)"):
        (leaf(2, 3) * 2.0).backward(np.ones(3))


def test_backward_of_what_needs_no_gradient_says_so():
    with pytest.raises(RuntimeError, match="computed from nothing that requires a gradient"):
        (Tensor(np.ones(3)) * 2.0).sum().backward()


@pytest.mark.parametrize("data", [np.arange(3), np.array([True]), np.array([1j])])
def test_only_floating_point_data_can_require_gradients(data):
    with pytest.raises(TypeError, match="only floating point data"):
        Tensor(data, requires_grad=True)
    assert Tensor(data).dtype == data.dtype


class Returns(Function):
    """Two inputs, and whatever `gradients` says comes back."""

    def __init__(self, gradients):
        self.gradients = gradients

    def forward(self, a, b):
        return a + b

    def backward(self, gy):
        return self.gradients


@pytest.mark.parametrize(
    "gradients, message",
    [
        (np.ones(3), "Returns.backward gave 1 gradients for 2 inputs"),
        ((np.ones(3),) * 3, "Returns.backward gave 3 gradients for 2 inputs"),
        ((np.ones(3), None), "Returns.backward gave no gradient for input 1, which needs one"),
        (
            (np.ones(3), np.ones((3, 1))),
            r"Returns.backward gave a gradient of \(3, 1\) float64 for input 1 of \(3,\)",
        ),
        (
            (np.ones(3, np.float32), np.ones(3)),
            r"of \(3,\) float32 for input 0 of \(3,\) float64 \(do its inputs have different dtypes\?\)",
        ),
        ((np.ones(3, np.int64), np.ones(3)), r"of \(3,\) int64 for input 0 of \(3,\) float64"),
    ],
)
def test_a_backward_that_gives_the_wrong_thing_is_named(gradients, message):
    y = Returns.apply(leaf(3), leaf(3, seed=1), gradients=gradients)
    with pytest.raises(RuntimeError, match=message):
        y.sum().backward()


def test_gradients_of_constants_are_not_looked_at():
    x = leaf(3)
    Returns.apply(x, np.ones(3), gradients=(np.ones(3), "anything")).sum().backward()
    np.testing.assert_array_equal(x.grad, np.ones(3))


def test_a_function_without_forward_or_backward_is_named():
    class Half(Function):
        def forward(self, x):
            return x

    with pytest.raises(NotImplementedError, match="Half has no backward"):
        Half.apply(leaf(2)).sum().backward()
    with pytest.raises(NotImplementedError, match="Function has no forward"):
        Function.apply(leaf(2))


# -------------------------------------------------------------------------------------- several outputs


class Split(Function):
    """(2, N) -> the two rows, and a whole number that has no gradient."""

    def forward(self, x):
        return x[0] * 2.0, x[1] * 3.0

    def backward(self, ga, gb):
        return np.stack([ga * 2.0, gb * 3.0])


def test_an_output_that_is_not_used_sends_zeros_back():
    x = leaf(2, 3)
    _, b = Split.apply(x)
    b.sum().backward()
    np.testing.assert_array_equal(x.grad, [[0.0] * 3, [3.0] * 3])


def test_outputs_meet_again_in_one_backward():
    x = leaf(2, 3)
    a, b = Split.apply(x)
    (a * b).sum().backward()
    np.testing.assert_allclose(x.grad, [6 * x.data[1], 6 * x.data[0]], rtol=1e-15)


def test_backward_can_start_from_a_later_output():
    x = leaf(2, 3)
    a, b = Split.apply(x)
    b.backward(np.ones(3))
    np.testing.assert_array_equal(x.grad, [[0.0] * 3, [3.0] * 3])
    with pytest.raises(RuntimeError, match=r"freed .* \(at Split\)"):
        a.backward(np.ones(3))


# ------------------------------------------------------------------------------------------------ no_grad


def test_no_grad_records_nothing():
    x = leaf(3)
    with no_grad():
        y = F.exp(x)
    assert not y.requires_grad and y.creator is None
    assert F.exp(x).requires_grad


def test_no_grad_is_a_decorator_that_can_be_entered_again():
    @no_grad()
    def countdown(x, n):
        return x * 2.0 if n == 0 else countdown(x, n - 1)

    x = leaf(3)
    assert not countdown(x, 3).requires_grad
    assert not countdown(x, 0).requires_grad
    assert (x * 2.0).requires_grad


def test_no_grad_ends_with_an_exception():
    x = leaf(3)
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert (x * 2.0).requires_grad


def test_no_grad_in_one_thread_is_not_seen_by_another():
    x = leaf(3)
    inside, seen, results = threading.Event(), threading.Event(), {}

    def predicts():
        with no_grad():
            inside.set()
            seen.wait(10)
            results["predicts"] = (x * 2.0).requires_grad

    thread = threading.Thread(target=predicts)
    thread.start()
    assert inside.wait(10)
    results["trains"] = (x * 2.0).requires_grad
    seen.set()
    thread.join()
    assert results == {"trains": True, "predicts": False}


def test_two_threads_record_and_run_backward_at_once():
    start, failures = threading.Barrier(4), []

    def train(seed):
        x = leaf(50, seed=seed)
        start.wait(10)
        for _ in range(20):
            x.grad = None
            y = x
            for _ in range(20):
                y = y * 1.5 + x
            y.sum().backward()
            want = 1.5**20 + sum(1.5**k for k in range(20))
            if not np.allclose(x.grad, want, rtol=1e-12):
                failures.append(seed)

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_detach_cuts_the_graph_and_shares_the_data():
    x = leaf(3)
    y = x * 2.0
    (y.detach() * x).sum().backward()
    np.testing.assert_array_equal(x.grad, y.data)
    assert y.detach().data is y.data


# ------------------------------------------------------------------------------------------ the operators


@pytest.mark.parametrize(
    "operation",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: a * b,
        lambda a, b: a / b,
        lambda a, b: a @ b,
    ],
    ids="+-*/@",
)
@pytest.mark.parametrize("tensor_side", ["left", "right", "both"])
def test_operators_take_arrays_on_either_side(operation, tensor_side):
    rng = np.random.default_rng(0)
    a, b = rng.uniform(1, 2, (3, 3)), rng.uniform(1, 2, (3, 3))
    left = Tensor(a, requires_grad=True) if tensor_side != "right" else a
    right = Tensor(b, requires_grad=True) if tensor_side != "left" else b
    y = operation(left, right)
    assert isinstance(y, Tensor) and y.requires_grad
    np.testing.assert_array_equal(y.data, operation(a, b))


@pytest.mark.parametrize("number", [2, 2.0, np.float32(2), np.float64(2), np.array(2.0, np.float32)])
def test_numbers_on_either_side_give_tensors(number):
    x = leaf(3)
    for y, want in (
        (number + x, 2 + x.data),
        (x - number, x.data - 2),
        (number - x, 2 - x.data),
        (number * x, 2 * x.data),
        (number / x, 2 / x.data),
        (-x, -x.data),
        (x**2, x.data**2),
    ):
        assert isinstance(y, Tensor) and y.requires_grad
        np.testing.assert_array_equal(y.data, want)


@pytest.mark.parametrize("number", [2, 0.1, -1.0])
def test_python_numbers_leave_float32_alone(number):
    x = leaf(3, dtype=np.float32)
    y = ((number * x + number) / number - number) ** 2
    assert y.dtype == np.float32
    y.mean().backward()
    assert x.grad.dtype == np.float32


@pytest.mark.parametrize(
    "shapes", [((3, 4), (4,)), ((3, 1), (1, 4)), ((), (2, 3)), ((2, 1, 4), (3, 1)), ((1,), (5,))]
)
def test_broadcast_inputs_get_gradients_of_their_own_shape(shapes):
    a, b = leaf(*shapes[0]), leaf(*shapes[1], seed=1)
    y = a * b
    y.sum().backward()
    for x, other in ((a, b), (b, a)):
        read = np.broadcast_to(
            np.arange(x.size).reshape(x.shape), y.shape
        )  # which element of x each output read
        factors = np.broadcast_to(other.data, y.shape)
        want = np.bincount(read.ravel(), factors.ravel(), x.size).reshape(x.shape)
        np.testing.assert_allclose(x.grad, want, rtol=1e-14)


def test_an_index_that_occurs_twice_is_counted_twice():
    x = leaf(4)
    x[np.array([1, 3, 1, 1])].sum().backward()
    np.testing.assert_array_equal(x.grad, [0, 3, 0, 1])


def test_getitem_does_not_keep_the_whole_array(no_collector):
    y = leaf(1000) * 1.0
    whole = weakref.ref(y.data)
    part = y[:2]
    del y
    assert whole() is None and part.shape == (2,)


def test_methods_are_the_functions():
    x = leaf(2, 3, 4)
    assert x.reshape(6, 4).shape == x.reshape((6, 4)).shape == x.reshape(-1, 4).shape == (6, 4)
    assert x.transpose().shape == (4, 3, 2)
    assert x.transpose(0, 2, 1).shape == x.transpose((0, 2, 1)).shape == (2, 4, 3)
    assert x.sum().shape == () and x.sum(axis=1).shape == (2, 4) and x.mean(1, True).shape == (2, 1, 4)
    assert len(x) == 2 and x.size == 24 and x.ndim == 3


def test_take_reads_along_any_axis():
    x = leaf(2, 3, 4)
    for axis in (0, 1, 2, -1):
        y = F.take(x, np.array([1, 0, 1]), axis=axis)
        np.testing.assert_array_equal(y.data, np.take(x.data, [1, 0, 1], axis=axis))


def test_a_tensor_holds_data_without_copying():
    a = np.ones(3, np.float32)
    assert Tensor(a).data is a and Tensor(Tensor(a)).data is a and Tensor(a).numpy() is a
    assert Tensor([1.0, 2.0]).dtype == np.float64 and Tensor(1.5).shape == ()


def test_a_tensor_shows_where_it_comes_from():
    x = leaf(2)
    assert "requires_grad" in repr(x)
    assert "from Exp" in repr(F.exp(x)) and "float64" in repr(F.exp(x))


def test_a_float64_constant_beside_a_float32_tensor_gives_a_float32_gradient():
    for operation in (lambda x, c: x * c, lambda x, c: c / x, lambda x, c: x - c, lambda x, c: x + c):
        x = Tensor(np.array([1.0, 2.0], np.float32), requires_grad=True)
        operation(x, np.array([3.0, 4.0])).sum().backward()
        assert x.grad.dtype == np.float32


@pytest.mark.parametrize("exponent", [np.float64(2), np.int64(3), np.float64(0)])
def test_an_exponent_of_numpys_beside_a_float32_tensor_gives_a_float32_gradient(exponent):
    x = Tensor(np.array([1.0, 2.0], np.float32), requires_grad=True)
    (x**exponent).sum().backward()
    assert x.grad.dtype == np.float32
    np.testing.assert_array_equal(x.grad, exponent * x.data ** (exponent - 1))


# ------------------------------------------------------------------------------- who may write, and who wrote


class Sum2(Function):
    """a + b, whose gradients are one array in the given guises."""

    def __init__(self, guises):
        self.guises = guises

    def forward(self, a, b):
        return a + b

    def backward(self, gy):
        return self.guises(gy * 1.0, self)


def kept_by_the_function(h, function):
    function.kept = h
    return h, h.copy()


GUISES = {
    "the array and a view": lambda h, _: (h, h[...]),
    "a view and the array": lambda h, _: (h[...], h),
    "two views": lambda h, _: (h[:], h.reshape(h.shape)),
    "the array twice": lambda h, _: (h, h),
    "kept in an attribute": kept_by_the_function,
}


@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize("guises", GUISES.values(), ids=GUISES)
def test_an_array_that_somebody_else_may_hold_is_never_written_to(guises, order):
    a, b = leaf(3, seed=1), leaf(3, seed=2)
    ya, yb = a * 1.0, b * 1.0
    function = Sum2(guises)
    terms = [function(ya, yb), ya * 3.0, yb * 5.0]
    total = terms[0] + terms[1] + terms[2] if order == "first" else terms[2] + (terms[1] + terms[0])
    total.sum().backward()
    np.testing.assert_array_equal(a.grad, np.full(3, 4.0))
    np.testing.assert_array_equal(b.grad, np.full(3, 6.0))
    np.testing.assert_array_equal(getattr(function, "kept", np.ones(3)), np.ones(3))


def by_the_optimizer(x):
    x.grad = np.ones_like(x.data)
    SGD([("x", x)], lr=0.1).step()


def by_load_state_dict(x):
    module = Module()
    module.x = x
    module.load_state_dict({"x": np.full(x.shape, 10.0)})


def by_assignment(x):
    x.data = x.data * 10.0


def in_place(x):
    x.data *= 10.0


def through_detach(x):
    x.detach().data[...] *= 1.0  # a write into the array alone is not seen
    detached = x.detach()
    detached.data *= 10.0


EDITS = [by_the_optimizer, by_load_state_dict, by_assignment, in_place, through_detach]


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize(
    ("compute", "name"),
    [
        (lambda x: x * x, "Multiply"),
        (lambda x: x.reshape(2, 3).transpose() @ np.ones((2, 2)), None),
        (lambda x: F.log(x.reshape(3, 2) * 1.0), None),
        (lambda x: 1.0 / x, "Divide"),
        (lambda x: x[2:] ** 2, None),
        (lambda x: F.log(x.reshape(3, 2)), "Log"),
    ],
)
def test_an_edit_between_forward_and_backward_is_an_error_where_the_old_data_is_needed(edit, compute, name):
    x = Parameter(np.arange(1.0, 7.0))
    y = compute(x).sum()
    expected = Parameter(x.data.copy())
    compute(expected).sum().backward()
    edit(x)
    x.grad = None
    if name is None:  # what was saved is no longer x's own array
        y.backward()
        np.testing.assert_array_equal(x.grad, expected.grad)
    else:
        with pytest.raises(RuntimeError, match=f"input [01] of {name} was changed after the forward pass"):
            y.backward()


# --------------------------------------------------------------------------------- what NumPy's users expect


def test_one_element_is_true_or_false_and_several_are_neither():
    assert not Tensor([0.0]) and Tensor(np.float32(2)) and int(Tensor([3.0])) == 3
    with pytest.raises(ValueError, match=r"shape \(3,\) is neither true nor false"):
        bool(leaf(3))


def test_comparisons_give_arrays_and_tensors_stay_usable_as_keys():
    x, array = Tensor(np.array([0.0, 1.0, 2.0])), np.array([0.0, 2.0, 1.0])
    assert (x == 0).tolist() == [True, False, False] and (x != 0).tolist() == [False, True, True]
    assert (x < array).tolist() == (array > x).tolist() == [False, True, False]
    assert (x >= Tensor(array)).tolist() == [True, False, True] and (x <= array).sum() == 2
    assert {x: 1}[x] == 1 and (x > 1).dtype == bool


def test_the_zeroth_power_has_no_gradient_anywhere():
    x = Tensor(np.array([0.0, -1.0, 3.0]), requires_grad=True)
    (x**0).sum().backward()
    np.testing.assert_array_equal(x.grad, np.zeros(3))
    with pytest.raises(TypeError, match="exponent must be a constant number, not a Tensor"):
        x**x


def test_shapes_and_axes_are_numbers_tuples_or_lists():
    x = leaf(2, 3)
    for shape in ((3, 2), ((3, 2),), ([3, 2],), (-1, 2)):
        assert x.reshape(*shape).shape == (3, 2)
    for axes in ((1, 0), ((1, 0),), ([1, 0],), ()):
        np.testing.assert_array_equal(x.transpose(*axes).data, x.data.T)
    np.testing.assert_array_equal(x.T.data, np.asarray(x.detach()).T)
    assert [row.shape for row in x] == [(3,), (3,)]


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_leaf_can_be_copied_and_what_was_computed_says_why_not(copied):
    x = leaf(3)
    (x * 2.0).sum().backward()
    other = copied(x)
    assert other is not x and other.requires_grad and np.array_equal(other.grad, x.grad)
    np.testing.assert_array_equal(other.data, x.data)
    with pytest.raises(
        TypeError, match=r"that was computed cannot be copied or pickled: detach\(\) it first"
    ):
        copied((x * 2.0).sum())


def test_what_a_tensor_lacks_is_said_with_what_to_use():
    with pytest.raises(AttributeError, match=r"has no 'argmax': use minimask.functions.*numpy"):
        leaf(3).argmax()


def test_numpy_s_functions_never_drop_a_gradient_in_silence():
    w, x = leaf(2), Tensor(np.array([1.0, 2.0]))
    for lost in (
        lambda: w * np.stack([w * 2.0, w * 3.0]),
        lambda: np.where(w.data > 0, w * 2.0, 0.0),
        lambda: np.concatenate([x, w]),
        lambda: np.asarray(w),
    ):
        with pytest.raises(TypeError, match="gradient"):
            lost()
    with no_grad():
        assert np.asarray(w).shape == (2,)
    np.testing.assert_array_equal(np.concatenate([x, x]), [1.0, 2.0, 1.0, 2.0])
    assert np.isclose(x, 2.0).tolist() == [False, True] and np.sum(x.numpy()) == 3.0


def test_a_loss_is_printed_and_rounded_like_a_number():
    loss = (leaf(3) * 0.0).sum() + 1.23456
    assert f"{loss:.3f}" == "1.235" and f"{loss}" == str(loss) and round(loss, 2) == 1.23


class Square(Function):
    def forward(self, x):
        self.save(x)
        return x * x

    def backward(self, gy):
        return 2 * gy * self.saved[0]


def test_a_function_object_is_good_for_one_call():
    square, x = Square(), leaf(2)
    square(x)
    with pytest.raises(RuntimeError, match=r"Square: an object is good for one call; use Square.apply"):
        square(x)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"forward": lambda self, x: None}, "forward gave None: is a return missing"),
        ({"backward": lambda self, gy: 2.0}, "backward gave a float for input 0; give an array"),
        ({"backward": lambda self, gy: Tensor(gy)}, "backward gave a Tensor for input 0; give an array"),
        ({"backward": lambda self, gy: [gy, gy]}, "backward gave 2 gradients for 1 inputs"),
    ],
)
def test_usual_mistakes_in_a_function_are_named(mistake, message):
    mistaken = type("Mistaken", (Square,), mistake)
    with pytest.raises((RuntimeError, TypeError), match=f"Mistaken.{message}"):
        mistaken.apply(leaf(2)).sum().backward()


@pytest.mark.parametrize("kept", [lambda a: a[::1], lambda a: {"a": a}, lambda a: [(a,)]])
def test_an_edit_is_seen_in_whatever_way_the_array_was_saved(kept):
    def forward(self, x):
        self.save(kept(x))
        return x * x

    memory = np.arange(4.0)
    x = Parameter(memory[1:3])
    y = type("Keeps", (Square,), {"forward": forward}).apply(x).sum()
    x.data *= 100
    with pytest.raises(RuntimeError, match="input 0 of Keeps was changed after the forward pass"):
        y.backward()


def test_a_gradient_that_only_its_function_reshaped_is_not_copied_and_a_held_one_is():
    made, held = [], np.ones(6)

    class Reshaped(Function):
        def forward(self, x, h, half):
            return x.sum() + h.sum() + half.sum()

        def backward(self, gy):
            fresh = np.full(6, 2.0)
            made.append(fresh.__array_interface__["data"][0])
            return fresh.reshape(2, 3), held.reshape(2, 3), np.ones(6)[:3]

    x, h, half = Parameter(np.zeros((2, 3))), Parameter(np.zeros((2, 3))), Parameter(np.zeros(3))
    Reshaped.apply(x, h, half).backward()
    assert x.grad.__array_interface__["data"][0] == made[0]
    assert not np.shares_memory(h.grad, held)
    assert half.grad.base is None  # a view would keep twice its memory
    h.grad += 1
    np.testing.assert_array_equal(held, np.ones(6))


def test_functions_of_numpy_say_that_they_have_no_gradient_and_pass_on_other_mistakes():
    weight, constant = Tensor(np.ones(3), requires_grad=True), Tensor(np.ones(3))
    with pytest.raises(TypeError, match=r"^numpy\.concatenate has no gradient: use minimask\.functions"):
        np.concatenate([constant, weight])
    assert np.concatenate([constant, constant]).shape == (6,)
    with pytest.raises(TypeError, match="unexpected keyword argument 'shape'"):
        np.concatenate([constant], shape=3)
    with pytest.raises(TypeError, match="integer"):
        np.concatenate([constant], axis="first")
