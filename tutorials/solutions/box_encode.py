import numpy as np


def center_and_size(boxes):
    size = boxes[:, 2:] - boxes[:, :2]
    return boxes[:, :2] + size / 2, size


def box_encode(boxes, anchors):
    (center, size), (anchor_center, anchor_size) = center_and_size(boxes), center_and_size(anchors)
    return np.concatenate([(center - anchor_center) / anchor_size, np.log(size / anchor_size)], axis=1)
