import numpy as np


def warmup_cosine(steps, base, warmup, total):
    rates = np.zeros(len(steps))
    for i, step in enumerate(steps):
        if step < warmup:
            rates[i] = base * (step + 1) / warmup
        else:
            done = min((step - warmup) / (total - warmup), 1)
            rates[i] = base * (1 + np.cos(np.pi * done)) / 2
    return rates
