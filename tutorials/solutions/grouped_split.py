import numpy as np


def grouped_split(groups, order, wanted):
    validation = np.zeros(len(groups), np.int64)
    for group in order:
        if validation.sum() >= wanted:
            break
        validation[groups == group] = 1
    return validation
