import numpy as np


def area(boxes):
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def box_iou(a, b):
    low = np.maximum(a[:, None, :2], b[:, :2])  # (A, B, 2)
    high = np.minimum(a[:, None, 2:], b[:, 2:])
    sides = np.maximum(high - low, 0)
    intersection = sides[..., 0] * sides[..., 1]
    union = area(a)[:, None] + area(b) - intersection
    return np.where(union > 0, intersection / np.where(union > 0, union, 1), 0)
