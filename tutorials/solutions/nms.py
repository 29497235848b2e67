import numpy as np


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    return intersection / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection)


def nms(boxes, scores, threshold):
    kept = []
    for i in np.argsort(-scores, kind="stable"):  # stable: of equal scores, the first stays first
        if all(iou(boxes[i], boxes[k]) <= threshold for k in kept):
            kept.append(i)
    return np.array(kept, dtype=np.int64)
