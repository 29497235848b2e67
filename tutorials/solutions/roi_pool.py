import math

import numpy as np


def rounded(v):
    return int(math.copysign(math.floor(abs(v) + 0.5), v))  # halves away from zero


def edges(first, last, bins, length):
    """Begin and end of each bin, in whole pixels of the map."""
    size = max(last - first + 1, 1)  # both edge pixels belong to the box
    begin = [first + math.floor(k * size / bins) for k in range(bins)]
    end = [first + math.ceil((k + 1) * size / bins) for k in range(bins)]
    return list(zip(np.clip(begin, 0, length), np.clip(end, 0, length)))


def roi_pool(x, rois, output_size, scale):
    _, channels, height, width = x.shape
    y = np.zeros((len(rois), channels, *output_size), x.dtype)
    for r, roi in enumerate(rois):
        n = int(roi[0])
        x1, y1, x2, y2 = (rounded(v * scale) for v in roi[1:])
        for i, (top, bottom) in enumerate(edges(y1, y2, output_size[0], height)):
            for j, (left, right) in enumerate(edges(x1, x2, output_size[1], width)):
                if bottom > top and right > left:
                    y[r, :, i, j] = x[n, :, top:bottom, left:right].max(axis=(1, 2))
    return y
