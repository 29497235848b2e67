"""report.html: a run or an evaluation on one page that loads nothing and runs nothing.

Begin with `write_report` in `page.py`; `judging.py` says what counts as which error, `scene.py` draws the
images, `charts.py` the curves.
"""

from minimask.results.report.page import Story, write_report

__all__ = ["Story", "write_report"]
