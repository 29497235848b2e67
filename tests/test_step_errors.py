"""The straight lines in the plots of `tutorial.step_errors`: they follow the data, or are not drawn."""

import numpy as np
import pytest

from minimask.tutorial import StepErrors

STEPS = np.logspace(-12, -1, 45)
ROUNDING = 1e-16 / STEPS


def anchor(errors, order: int) -> int | None:
    return StepErrors(STEPS, {"central": errors}, ROUNDING)._truncation(errors, order)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_a_power_of_the_step_is_found_at_its_upper_end(order):
    assert anchor(ROUNDING + STEPS**order, order) == len(STEPS) - 1


@pytest.mark.parametrize("seed", range(20))
def test_beyond_a_kink_points_that_happen_to_lie_on_the_slope_do_not_count(seed):
    """Up to the kink errors are 100 h^2; beyond it they wander, some pairs of them with a slope of 2."""
    rng, kink = np.random.default_rng(seed), 1e-4
    wandering = 10 ** rng.uniform(-4, 0, len(STEPS))
    errors = np.where(STEPS < kink, ROUNDING + 100 * STEPS**2, wandering)
    found = anchor(errors, 2)
    assert found is not None and errors[found] == pytest.approx(100 * STEPS[found] ** 2, rel=0.01)


def test_no_line_is_drawn_where_there_is_rounding_alone():
    assert anchor(ROUNDING * np.random.default_rng(0).uniform(0.1, 1, len(STEPS)), 2) is None
