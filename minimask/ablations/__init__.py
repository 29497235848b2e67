"""The paper's ablations, run again: small networks that differ in one thing, several seeds of each, a table.

Imports `training`, `models`, `data` and `results`; only `command` imports it. Begin with `designs.py`, which
says what is compared with what; `runs.py` trains and evaluates, and `table.py` shows the results.
"""
