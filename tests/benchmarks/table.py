"""All rows, in the order in which they are printed."""

from tests.benchmarks import rows_conv, rows_whole
from tests.benchmarks.measure import Row


def rows() -> list[Row]:
    return [*rows_conv.rows(), *rows_whole.rows()]
