"""Files of weights, and what is in them: arrays by name. No model is built here.

Imports `config` and `files`. Begin with `checkpoint.py`, the file that a run writes, which `schema.py`
checks field by field and `archive.py` entry by entry.
"""
