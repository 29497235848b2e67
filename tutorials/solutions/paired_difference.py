import numpy as np


def paired_difference(first, second, t):
    n = len(first)
    differences = [first[i] - second[i] for i in range(n)]
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1)
    half = t * np.sqrt(variance / n)
    return mean, mean - half, mean + half
