"""What every row of the table of gradient cases buys: the same questions put to every Function."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from minimask import backend
from minimask.autograd import Function, Tensor, no_grad
from minimask.errors import InputError
from minimask.kernels import convolution, elementwise
from minimask.lessons import gradient_cases
from minimask.lessons.gradient_cases import CASES, Case, all_functions, check_function, run_table

ROWS = [
    pytest.param(cls, case, id=f"{cls.__name__}-{case.name}")
    for cls, cases in CASES.items()
    for case in cases
]
each_case = pytest.mark.parametrize("cls, case", ROWS)
ROUNDING = 1e-12  # relative to the largest number: two orders of the same sums in float64


@dataclass
class Run:
    """One call of a Function and one of its backward."""

    function: Function
    outputs: list[np.ndarray]
    gradients: list

    def backward(self, weights) -> list:
        return list(as_tuple(self.function.backward(*weights)))


def as_tuple(value) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def some_inputs(case: Case, dtype=np.float64) -> tuple:
    """Numbers that float32 holds exactly, so that both precisions see the same point."""
    inputs = case.inputs(np.random.default_rng(3))
    return tuple(x.astype(np.float32).astype(dtype) if is_float(x) else x for x in inputs)


def is_float(x) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def upstream(outputs, seed: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=y.shape).astype(y.dtype) for y in outputs]


def run(cls, case: Case, inputs=None, needs=None, weights=None) -> Run:
    """Forward and backward on arrays that refuse to be written to."""
    inputs = some_inputs(case) if inputs is None else inputs
    tensors = case.tensors(tuple(read_only(x) for x in inputs), needs)
    function = case.function(cls)
    outputs = [y.data for y in as_tuple(function(*tensors))]
    weights = [read_only(u) for u in (weights or upstream(outputs))]
    return Run(function, outputs, list(as_tuple(function.backward(*weights))))


def read_only(x):
    if isinstance(x, np.ndarray):
        x = x.view()
        x.flags.writeable = False
    return x


def assert_close(got, want, tolerance: float = ROUNDING) -> None:
    """Equal shapes, and differences below `tolerance` of the largest number (of 1, if all are smaller)."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    if got.size:
        assert np.abs(got - want).max() <= tolerance * max(1.0, np.abs(want).max())


def assert_same_run(a: Run, b: Run, variables, tolerance: float = ROUNDING) -> None:
    for got, want in zip(a.outputs, b.outputs, strict=True):
        assert_close(got, want, tolerance)
    for i in variables:
        assert_close(a.gradients[i], b.gradients[i], tolerance)


# ---------------------------------------------------------------------------------------- the table is whole


def test_every_function_of_the_package_has_a_row():
    missing = [cls.__name__ for cls in all_functions() if not CASES.get(cls)]
    assert not missing, f"give {missing} a row in minimask/lessons/gradient_cases"


def test_the_walk_over_the_package_finds_functions_of_every_module():
    names = {cls.__name__ for cls in all_functions()}
    assert {"Add", "ReLU", "Conv2d", "GroupNorm", "MaxPool2d", "RoIAlign", "MaskLoss", "RPNHead"} <= names
    assert len(names) == len(all_functions()), "two Functions of one name: gradcheck NAME could mean either"


@pytest.mark.parametrize("cls", CASES, ids=lambda cls: cls.__name__)
def test_every_row_has_a_case_of_nothing(cls):
    empty = [case for case in CASES[cls] if case.name.startswith("no ")]
    assert any(x.size == 0 for case in empty for x in some_inputs(case) if isinstance(x, np.ndarray))


@pytest.mark.parametrize("cls", CASES, ids=lambda cls: cls.__name__)
def test_every_row_has_a_reference_and_names_that_fit_the_table(cls):
    assert any(case.reference or case.composition for case in CASES[cls])
    names = [case.name for case in CASES[cls]]
    assert len(set(names)) == len(names)
    assert len(cls.__name__) <= 19 and max(map(len, names)) <= 30


# -------------------------------------------------------------------------------------------- each case


@each_case
def test_forward_equals_the_reference(cls, case):
    inputs = some_inputs(case)
    if case.reference is None and case.composition is None:
        assert case.name.startswith("no "), "only nothing needs no reference"
        return
    if case.reference is not None:
        want = as_tuple(case.reference(*inputs, **case.options))
    else:
        want = [y.data for y in as_tuple(case.composition(*case.tensors(inputs), **case.options))]
    for got, expected in zip(run(cls, case, inputs).outputs, want, strict=True):
        assert_close(got, expected)


@each_case
def test_gradient_equals_finite_differences(cls, case):
    report = check_function(cls, case, seed=1)
    assert report, report.kink or report.mismatch
    assert report.worst_error < 1e-6
    assert report.errors, "nothing was checked"


@pytest.mark.parametrize("cls, case", [row for row in ROWS if row.values[1].composition])
def test_explicit_backward_equals_the_composition_of_small_functions(cls, case):
    inputs = some_inputs(case)
    explicit = run(cls, case, inputs)
    leaves = case.tensors(inputs)
    outputs = as_tuple(case.composition(*leaves, **case.options))
    weights = upstream(explicit.outputs)
    total = sum((y * u).sum() for y, u in zip(outputs, weights, strict=True))
    total.backward()
    for i in case.variables(inputs):
        want = np.zeros_like(inputs[i]) if leaves[i].grad is None else leaves[i].grad
        assert_close(explicit.gradients[i], want)


@each_case
def test_float32_stays_float32_and_near_float64(cls, case):
    single, double = some_inputs(case, np.float32), some_inputs(case)
    exact = run(cls, case, double)
    weights = upstream(exact.outputs)
    exact.gradients = exact.backward([u.astype(np.float32).astype(np.float64) for u in weights])
    rough = run(cls, case, single, weights=[u.astype(np.float32) for u in weights])
    variables = case.variables(double)
    assert {y.dtype for y in rough.outputs} == {np.dtype(np.float32)}
    assert {rough.gradients[i].dtype for i in variables} == {np.dtype(np.float32)}
    assert {exact.gradients[i].dtype for i in variables} == {np.dtype(np.float64)}
    assert_same_run(rough, exact, variables, tolerance=2e-5)


@each_case
def test_inputs_and_upstream_gradients_are_left_alone(cls, case):
    """`run` gives arrays that raise when they are written to; here views of them are looked at, too."""
    inputs = some_inputs(case)
    copies = [np.copy(x) if isinstance(x, np.ndarray) else x for x in inputs]
    function = case.function(cls)
    outputs = [y.data for y in as_tuple(function(*case.tensors(inputs)))]
    weights = upstream(outputs)
    function.backward(*weights)
    for x, copy in zip(inputs, copies):
        np.testing.assert_array_equal(x, copy)
    for u, copy in zip(weights, upstream(outputs)):
        np.testing.assert_array_equal(u, copy)


LAYOUTS = {
    "every second column": lambda x: np.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x,
    "Fortran order": lambda x: np.array(x, order="F"),  # np.asfortranarray makes (1,) of ()
    "reversed rows": lambda x: np.ascontiguousarray(x[::-1])[::-1] if x.ndim else x,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@each_case
def test_the_layout_in_memory_changes_nothing(cls, case, layout):
    inputs = some_inputs(case)
    plain = run(cls, case, inputs)
    relaid = tuple(LAYOUTS[layout](x) if isinstance(x, np.ndarray) else x for x in inputs)
    weights = [LAYOUTS[layout](u) for u in upstream(plain.outputs)]
    assert_same_run(run(cls, case, relaid, weights=weights), plain, case.variables(inputs))


@each_case
def test_an_upstream_gradient_that_is_broadcast_is_taken(cls, case):
    plain = run(cls, case)
    ones = [np.ones_like(y) for y in plain.outputs]
    stretched = [np.broadcast_to(np.ones((), y.dtype), y.shape) for y in plain.outputs]
    for got, want in zip(plain.backward(stretched), plain.backward(ones), strict=True):
        if want is not None:
            assert_close(got, want)


def patterns(variables: list[int]) -> list[tuple[int, ...]]:
    """All proper subsets of up to 5 inputs; of more, each alone and all but one."""
    if len(variables) <= 5:
        return [s for n in range(1, len(variables)) for s in itertools.combinations(variables, n)]
    return [(i,) for i in variables] + [tuple(j for j in variables if j != i) for i in variables]


@each_case
def test_each_pattern_of_needed_gradients_gives_the_same_ones(cls, case):
    inputs = some_inputs(case)
    variables = case.variables(inputs)
    everything = run(cls, case, inputs)
    for needed in patterns(variables):
        leaves = case.tensors(inputs, list(needed))
        outputs = as_tuple(case.function(cls)(*leaves))
        total = sum((y * u).sum() for y, u in zip(outputs, upstream(everything.outputs)))
        total.backward()
        for i in variables:
            if i in needed:
                np.testing.assert_array_equal(leaves[i].grad, everything.gradients[i])
            else:
                assert leaves[i].grad is None


@each_case
def test_backward_is_linear_in_the_upstream_gradient(cls, case):
    """Three backward passes from one forward pass: none may spoil what was saved for the next."""
    first = run(cls, case)
    a, b = upstream(first.outputs), upstream(first.outputs, seed=5)
    ga, gb = first.backward(a), first.backward(b)
    mixed = first.backward([2.0 * u - 3.0 * v for u, v in zip(a, b)])
    nothing = first.backward([np.zeros_like(u) for u in a])
    for i in case.variables(some_inputs(case)):
        assert_close(mixed[i], 2.0 * ga[i] - 3.0 * gb[i])
        assert not nothing[i].any()


@each_case
def test_nothing_is_kept_when_no_gradient_can_come(cls, case):
    inputs = some_inputs(case)
    function = case.function(cls)
    with no_grad():
        outputs = as_tuple(function(*case.tensors(inputs)))
    constants = case.function(cls)
    more = as_tuple(constants(*case.tensors(inputs, needs=[])))
    options = [id(v) for v in case.options.values()]
    for f in (function, constants):
        assert f.saved == ()
        held = {name: v for name, v in vars(f).items() if isinstance(v, np.ndarray) and id(v) not in options}
        assert not held
    assert all(y.creator is None and not y.requires_grad for y in (*outputs, *more))


@each_case
def test_the_reference_kernels_agree_with_the_fast_ones(cls, case):
    inputs = some_inputs(case)
    fast = run(cls, case, inputs)
    with backend.reference_only():
        plain = run(cls, case, inputs)
    assert_same_run(plain, fast, case.variables(inputs))


@pytest.mark.parametrize("threads", [1, 3])
@each_case
def test_blocks_and_threads_change_nothing_but_the_order_of_sums(cls, case, threads, monkeypatch):
    whole = run(cls, case)
    monkeypatch.setattr(backend.workers, "threads", lambda: threads)
    monkeypatch.setattr(convolution, "BLOCK_ELEMENTS", 40)  # a row or two of each image: several blocks
    monkeypatch.setattr(elementwise, "ELEMENTS_AT_ONCE", 7)
    monkeypatch.setattr(backend.workers, "FEW", 0)  # however small, the work is divided
    assert_same_run(run(cls, case), whole, case.variables(some_inputs(case)))


# ----------------------------------------------------------------------------------- minimask gradcheck


def test_the_table_of_a_function_names_case_error_and_verdict():
    lines = []
    assert run_table(["softmax_cross_entropy", "ReLU"], lines.append)
    assert lines[0].split() == ["Function", "case", "error", "worst", "at", "verdict"]
    body = lines[1:-1]
    assert [line.split()[0] for line in body] == ["SoftmaxCrossEntropy"] * 4 + ["ReLU"] * 2
    assert all(line.endswith(" ok") for line in body)
    assert len({line.index(" ok") for line in body}) == 1, "columns stand under one another"
    assert lines[-1] == "6 cases of 2 Functions: all below 1e-06"
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", ["roi_align", "RoIAlign", "roialign", "ROI_ALIGN"])
def test_a_function_is_found_by_its_class_and_by_what_people_call(name):
    (cls,) = gradient_cases.named_functions([name])
    assert cls.__name__ == "RoIAlign"


def test_every_function_people_call_is_known_to_gradcheck():
    from minimask import functions

    no_functions = {"scale_and_shift"}  # arrays to arrays
    called = [name for name, value in vars(functions).items() if callable(value)]
    assert {"conv2d", "roi_align", "rpn_loss"} < set(called)
    for name in called:
        if name not in no_functions:
            assert len(gradient_cases.named_functions([name])) == 1


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"no Function is called 'sofmax'; did you mean Softmax\?"):
        run_table(["sofmax"])
    with pytest.raises(InputError, match="no Function is called 'qqq'"):
        run_table(["qqq"])


class SignedWrong(Function):
    def forward(self, x):
        return 3.0 * x

    def backward(self, gy):
        return -3.0 * gy


def test_a_wrong_gradient_fails_the_table_and_is_explained(monkeypatch):
    row = Case("plain", lambda rng: (rng.normal(size=3),))
    monkeypatch.setattr(gradient_cases, "all_functions", lambda: [SignedWrong])
    monkeypatch.setitem(CASES, SignedWrong, [row])
    lines = []
    assert not run_table(out=lines.append)
    assert lines[1].endswith("WRONG") and "the sign" in lines[2]
    assert lines[-1] == "1 cases of 1 Function: 1 failed"


def test_a_function_without_a_row_fails_the_table(monkeypatch):
    monkeypatch.setattr(gradient_cases, "all_functions", lambda: [SignedWrong])
    lines = []
    assert not run_table(out=lines.append)
    assert lines[1].endswith("UNCHECKED")


def test_inputs_at_a_kink_are_drawn_again(monkeypatch):
    from minimask.functions.activation import ReLU

    drawn = []

    def first_at_zero(rng):
        drawn.append(np.zeros(3) if not drawn else np.array([-1.0, 1.0, 2.0]))
        return (drawn[-1],)

    assert check_function(ReLU, Case("at 0, then not", first_at_zero))
    assert len(drawn) == 2
    report = check_function(ReLU, Case("always at 0", lambda rng: (np.zeros(3),)))
    assert not report and report.kink and report.mismatch is None


def test_constants_and_arrays_need_no_tensor():
    """Every Function takes arrays where no gradient is needed, and gives Tensors all the same."""
    for cls, cases in CASES.items():
        case = cases[0]
        results = as_tuple(case.function(cls)(*some_inputs(case)))
        assert all(isinstance(y, Tensor) for y in results)
