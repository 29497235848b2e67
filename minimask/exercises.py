"""`minimask.lessons.exercises` under the name that students type."""

from minimask.lessons.exercises import check, describe, mark, names

__all__ = ["check", "describe", "mark", "names"]
