import numpy as np


def neighbours(v, u, height, width):
    """The four pixels around a point, and their bilinear weights; none if it lies too far outside."""
    if not (-1 <= v <= height and -1 <= u <= width):
        return
    v, u = min(max(v, 0.0), height - 1.0), min(max(u, 0.0), width - 1.0)
    top, left = int(v), int(u)
    for row, a in ((top, 1 - (v - top)), (min(top + 1, height - 1), v - top)):
        for column, b in ((left, 1 - (u - left)), (min(left + 1, width - 1), u - left)):
            yield row, column, a * b


def points(roi, output_size, scale, ratio):
    """All sampling points of a RoI: its bin, its row and column, where pixel centres are whole numbers."""
    x1, y1, x2, y2 = roi[1:] * scale - 0.5  # pixel i has its centre at i + 1/2
    bin_h, bin_w = (y2 - y1) / output_size[0], (x2 - x1) / output_size[1]
    for i, j in np.ndindex(*output_size):
        for a, b in np.ndindex(ratio, ratio):
            yield i, j, y1 + (i + (a + 0.5) / ratio) * bin_h, x1 + (j + (b + 0.5) / ratio) * bin_w


def roi_align_backward(gy, rois, x_shape, scale, sampling_ratio):
    height, width = x_shape[2:]
    gx = np.zeros(x_shape, gy.dtype)
    for r, roi in enumerate(rois):
        n = int(roi[0])
        for i, j, v, u in points(roi, gy.shape[2:], scale, sampling_ratio):
            for row, column, weight in neighbours(
                v, u, height, width
            ):  # the very weights of the forward pass
                gx[n, :, row, column] += weight * gy[r, :, i, j]
    return gx / sampling_ratio**2
