"""Training: the loop, the optimizer, what a run leaves on the disk, several processes.

Imports `weights`, `config`, `models`, `data` and what these build on. Begin with `loop.py`: `train`, and
`training_step`, which is one step of it.
"""
