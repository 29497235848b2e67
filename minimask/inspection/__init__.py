"""Seeing inside a trained model: what each stage makes of one image, as records, figures and one page.

Imports `models`, `results` and what lies below them. Begin with `trace` in `tracing.py`, which runs the
model's own stages; `records.py` says what it returns, `figures/` draws it, `page.py` makes a page of it.
"""

from minimask.inspection.records import Trace
from minimask.inspection.tracing import trace

__all__ = ["Trace", "trace"]
