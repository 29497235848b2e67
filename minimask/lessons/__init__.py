"""For learning: gradient cases, exercises that check themselves, and what the notebooks and figures share.

Imports every room but `command` and `training`. Begin with `exercises/`; `gradient_cases/` says for each
Function what it is tried on.
"""
