"""From files to models and back: checkpoints, and the detector that is made of one.

Imports `models` and `config` and what these rest on. Begin with `checkpoint.py`, the file itself, which
`archive.py` reads as if an enemy had written it and `schema.py` checks field by field; `detector.py` builds the model that it holds the weights of.
"""
