"""All rows, in the order in which they are printed."""

from tests.benchmarks import rows_boxes, rows_conv, rows_operators, rows_roi, rows_whole
from tests.benchmarks.measure import Row


def rows() -> list[Row]:
    return [
        row for file in (rows_conv, rows_operators, rows_roi, rows_boxes, rows_whole) for row in file.rows()
    ]
