"""From files to models and back: checkpoints, the networks there are, and the detector made of both.

Imports `models` and `config` and what these rest on. Begin with `checkpoint.py`, the file itself, which
`schema.py` checks field by field; `networks.py` builds a model, and `detector.py` puts the weights into it.
"""
