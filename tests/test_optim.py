"""SGD: which parameters move, and when that is decided."""

import numpy as np

from minimask.nn import Parameter
from minimask.training.optim import SGD, clip_gradients


def with_gradient(value: float) -> Parameter:
    parameter = Parameter(np.full(4, 1.0))
    parameter.grad = np.full(4, value)
    return parameter


def test_a_parameter_unfrozen_later_moves_from_then_on():
    trained, frozen = with_gradient(1.0), with_gradient(1.0)
    frozen.requires_grad = False
    optimizer = SGD([("trained", trained), ("frozen", frozen)], lr=0.1, momentum=0.5, weight_decay=0.0)
    optimizer.step()
    np.testing.assert_array_equal(frozen.data, np.ones(4))
    np.testing.assert_allclose(trained.data, np.full(4, 0.9), rtol=1e-15)
    assert list(optimizer.state_dict()) == ["trained"]
    frozen.requires_grad = True
    optimizer.step()
    np.testing.assert_allclose(frozen.data, np.full(4, 0.9), rtol=1e-15)
    assert set(optimizer.state_dict()) == {"trained", "frozen"}


def test_a_parameter_frozen_later_stays_and_counts_in_no_norm():
    kept, frozen = with_gradient(3.0), with_gradient(1000.0)
    optimizer = SGD([("kept", kept), ("frozen", frozen)], lr=0.1)
    frozen.requires_grad = False
    assert clip_gradients([kept, frozen], 0.0) == 6.0
    optimizer.step()
    np.testing.assert_array_equal(frozen.data, np.ones(4))
    optimizer.zero_grad()
    assert kept.grad is None and frozen.grad is None
