"""`minimask.lessons.exercises` under the name that students type."""

from minimask.lessons.exercises import check, describe, names

__all__ = ["check", "describe", "names"]
