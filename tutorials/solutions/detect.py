import numpy as np

from minimask.boxes import box_iou


def detect(probabilities, boxes, score_threshold, nms_threshold, most):
    found = []
    for label in range(1, probabilities.shape[1]):  # from 1: the background is nothing to detect
        scores, of_class, kept = probabilities[:, label], boxes[:, label], []
        for i in np.argsort(-scores):
            better = box_iou(of_class[[i]], of_class[kept])  # (1, so many); of the same class
            if scores[i] > score_threshold and (better <= nms_threshold).all():
                kept.append(i)
        found += [(scores[i], i, label) for i in kept]
    found = sorted(found, reverse=True)[:most]  # by falling score
    proposals = np.array([i for _, i, _ in found], dtype=np.int64)
    labels = np.array([label for _, _, label in found], dtype=np.int64)
    return proposals, labels, np.array([score for score, _, _ in found], dtype=probabilities.dtype)
