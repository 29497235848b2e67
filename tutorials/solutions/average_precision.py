import numpy as np


def average_precision(iou, scores, threshold):
    taken, found = np.zeros(iou.shape[1], bool), []
    for d in np.argsort(-scores):
        left = np.where(taken, -1, iou[d])
        best = left.argmax()
        taken[best] |= left[best] >= threshold
        found.append(taken.sum())
    precision = [count / (k + 1) for k, count in enumerate(found)]
    recall = np.array(found) / iou.shape[1]
    at = [max(np.array(precision)[recall >= k / 100], default=0) for k in range(101)]
    return np.mean(at)
