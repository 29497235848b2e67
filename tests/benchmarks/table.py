"""All rows, in the order in which they are printed."""

from tests.benchmarks import growth, memory, rows_boxes, rows_conv, rows_operators, rows_roi, rows_whole
from tests.benchmarks.measure import Row

FILES = rows_conv, rows_operators, rows_roi, rows_boxes, rows_whole, memory, growth


def rows() -> list[Row]:
    return [row for file in FILES for row in file.rows()]
