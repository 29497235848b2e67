import numpy as np


def conv2d_forward(x, w, b, stride, padding):
    (n, _, height, width), (outs, _, kh, kw) = x.shape, w.shape
    p, q = (height + 2 * padding - kh) // stride + 1, (width + 2 * padding - kw) // stride + 1
    padded = np.zeros((n, x.shape[1], height + 2 * padding, width + 2 * padding), x.dtype)
    padded[:, :, padding : padding + height, padding : padding + width] = x
    y = np.zeros((n, outs, p, q), x.dtype) + b[:, None, None]
    for i in range(kh):
        for j in range(kw):
            pixels = padded[:, :, i : i + p * stride : stride, j : j + q * stride : stride]
            y += np.einsum("ncpq,oc->nopq", pixels, w[:, :, i, j])
    return y
