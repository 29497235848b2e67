import numpy as np


def conv2d_backward(gy, x, w, stride, padding):
    (n, c, height, width), (_, _, kh, kw), (p, q) = x.shape, w.shape, gy.shape[2:]
    padded = np.zeros((n, c, height + 2 * padding, width + 2 * padding), x.dtype)
    padded[:, :, padding : padding + height, padding : padding + width] = x
    g_padded, gw = np.zeros_like(padded), np.zeros_like(w)
    for i in range(kh):
        for j in range(kw):
            window = (..., slice(i, i + p * stride, stride), slice(j, j + q * stride, stride))
            g_padded[window] += np.einsum("nopq,oc->ncpq", gy, w[:, :, i, j])  # pixels lie in several windows
            gw[:, :, i, j] = np.einsum("nopq,ncpq->oc", gy, padded[window])
    gx = g_padded[:, :, padding : padding + height, padding : padding + width]
    return gx, gw, gy.sum(axis=(0, 2, 3))
