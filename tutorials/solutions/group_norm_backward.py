import numpy as np


def group_norm_backward(gy, x, weight, groups, eps):
    shape = (len(x), groups, -1)  # all values that share a mean in one row
    rows = x.reshape(shape)
    inv_std = 1 / np.sqrt(rows.var(axis=2, keepdims=True) + eps)
    x_hat = (rows - rows.mean(axis=2, keepdims=True)) * inv_std
    g = (gy * weight[:, None, None]).reshape(shape)
    # x reaches x_hat directly, through the mean, and through the variance
    gx = inv_std * (g - g.mean(axis=2, keepdims=True) - x_hat * (g * x_hat).mean(axis=2, keepdims=True))
    g_weight = (gy * x_hat.reshape(x.shape)).sum(axis=(0, 2, 3))
    return gx.reshape(x.shape), g_weight, gy.sum(axis=(0, 2, 3))
