import numpy as np


def keypoint_loss_backward(gy, logits, cells, valid):
    r, k, m, _ = logits.shape
    flat = logits.reshape(r, k, m * m)
    e = np.exp(flat - flat.max(axis=2, keepdims=True))  # the maximum cancels, and nothing overflows
    gx = e / e.sum(axis=2, keepdims=True)
    roi, keypoint = np.indices(cells.shape)
    gx[roi, keypoint, cells] -= 1
    gx = gx * valid[:, :, None]
    return (gy * gx / max(valid.sum(), 1)).reshape(r, k, m, m).astype(logits.dtype)
