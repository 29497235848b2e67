"""Files of weights, and what is in them: arrays by name. No model is built here.

Imports `backend`, `config` and `files`. Begin with `reading.py`, which tells the files of torch, detectron2,
safetensors and minimask apart and runs no code from them; `pickles.py` explains how. `checkpoint.py` has the
file that a run writes, which `schema.py` checks field by field and `archive.py` entry by entry.
"""

from minimask.weights.reading import Weights, read_weights
from minimask.weights.safetensors import write_safetensors
from minimask.weights.torch_writing import write_pth

__all__ = ["Weights", "read_weights", "write_pth", "write_safetensors"]
