import numpy as np


def max_pool_backward(gy, x, kernel, stride):
    gx = np.zeros_like(x)
    for n, c, p, q in np.ndindex(gy.shape):
        top, left = p * stride, q * stride
        window = x[n, c, top : top + kernel, left : left + kernel]
        i, j = np.unravel_index(window.argmax(), window.shape)  # argmax gives the first of equals
        gx[n, c, top + i, left + j] += gy[n, c, p, q]
    return gx
