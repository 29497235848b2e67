"""From files to models and back: checkpoints, and the detector that is made of one.

Imports `models` and `config` and what these rest on. Begin with `checkpoint.py`, the file itself;
`detector.py` builds the model that it holds the weights of.
"""
