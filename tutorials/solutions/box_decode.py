import numpy as np


def box_decode(deltas, anchors, limit):
    anchor_size = anchors[:, 2:] - anchors[:, :2]
    anchor_center = anchors[:, :2] + anchor_size / 2
    center = deltas[:, :2] * anchor_size + anchor_center
    size = np.exp(np.minimum(deltas[:, 2:], limit)) * anchor_size
    return np.concatenate([center - size / 2, center + size / 2], axis=1)
