"""What a trained model is used for: predicting image files, evaluation, surveys of data, pictures of it all.

Imports `models` and what lies below it, never `training`. Begin with `predict.py`, from file to picture.
"""
