import numpy as np


def im2col(x, kernel, stride, padding):
    n, c, h, w = x.shape
    kh, kw = kernel
    p, q = (h + 2 * padding - kh) // stride + 1, (w + 2 * padding - kw) // stride + 1
    padded = np.zeros((n, c, h + 2 * padding, w + 2 * padding), x.dtype)
    padded[:, :, padding : padding + h, padding : padding + w] = x
    cols = np.zeros((n, c, kh, kw, p, q), x.dtype)
    for i in range(kh):
        for j in range(kw):
            cols[:, :, i, j] = padded[:, :, i : i + p * stride : stride, j : j + q * stride : stride]
    return cols
