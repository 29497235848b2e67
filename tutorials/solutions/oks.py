import numpy as np


def oks(found, keypoints, areas, sigmas):
    similarity = np.zeros((len(found), len(keypoints)), found.dtype)
    for i, points in enumerate(found):
        for j, true in enumerate(keypoints):
            labelled = true[:, 2] > 0
            d2 = ((points - true[:, :2]) ** 2).sum(axis=1)
            each = np.exp(-d2 / (2 * areas[j] * (2 * sigmas) ** 2))
            similarity[i, j] = each[labelled].mean()
    return similarity
