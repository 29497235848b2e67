import numpy as np


def mask_loss(logits, labels, targets):
    own = np.arange(len(labels)), labels  # the one mask of each RoI that has a loss
    x = logits[own]  # (R, M, M)
    # -t log s(x) - (1 - t) log(1 - s(x)), with s the sigmoid, in a form that cannot overflow
    losses = np.maximum(x, 0) - x * targets + np.log1p(np.exp(-np.abs(x)))
    sigmoid = 0.5 * (1 + np.tanh(x / 2))
    count = max(targets.size, 1)  # no RoIs: the loss is 0, not 0 / 0
    gradient = np.zeros_like(logits)
    gradient[own] = (sigmoid - targets) / count
    return losses.sum() / count, gradient
