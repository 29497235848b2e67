"""What a trained model is used for: predicting image files, evaluation, and pictures of both.

Imports `weights` and what lies below it, never `training`. Begin with `predict.py`, from file to picture.
"""
