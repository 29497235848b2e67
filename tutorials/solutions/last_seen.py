import numpy as np

from minimask.boxes import box_iou


def last_seen(objects, boxes, stages, threshold):
    there = box_iou(objects, boxes) >= threshold  # (G, N)
    return np.where(there, stages, -1).max(axis=1, initial=-1)
