"""`minimask.lessons.tutorial` under the name that notebooks use."""

from minimask.lessons.tutorial import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    STENCILS,
    Source,
    Stencil,
    StepErrors,
    source,
    step_errors,
)

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "RED",
    "STENCILS",
    "Source",
    "Stencil",
    "StepErrors",
    "source",
    "step_errors",
]
