import numpy as np


def anchors(sizes, ratios, stride, height, width):
    made = []
    for i in range(height):
        for j in range(width):
            x, y = (j + 0.5) * stride, (i + 0.5) * stride
            for ratio in ratios:
                for size in sizes:
                    w, h = size / np.sqrt(ratio), size * np.sqrt(ratio)  # w h = size^2, h / w = ratio
                    made.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return np.array(made)
