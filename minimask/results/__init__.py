"""What comes of a model: predictions of image files, their evaluation, and pictures of both.

Imports `weights` and what it rests on, never `training`. Begin with `predict.py`, from file to picture.
"""
