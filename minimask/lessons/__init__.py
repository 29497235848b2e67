"""For learning: gradient cases, exercises that check themselves, and what the notebooks and figures share.

Imports `functions`, `results` and what lies below them, and the learning rate of `training`. Begin with
`exercises/`; `gradient_cases/` says for each Function what it is tried on.
"""
