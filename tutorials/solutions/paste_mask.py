import numpy as np


def weights(low, high, cells, pixels):
    """How much each cell of the mask counts in each pixel, along one axis: (pixels, cells)."""
    centers = np.arange(pixels) + 0.5  # of the pixels
    position = (centers - low) / (high - low) * cells - 0.5  # in cells, the centre of cell j at j
    return np.maximum(1 - np.abs(position[:, None] - np.arange(cells)), 0)  # a tent around each cell


def paste_mask(mask, box, image_size):
    x1, y1, x2, y2 = box
    rows = weights(y1, y2, mask.shape[0], image_size[0])
    columns = weights(x1, x2, mask.shape[1], image_size[1])
    return (rows @ mask @ columns.T).astype(mask.dtype)
