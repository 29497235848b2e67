import numpy as np


def assign_levels(boxes, canonical, lowest, highest):
    levels = []
    for x1, y1, x2, y2 in boxes:
        size = np.sqrt((x2 - x1) * (y2 - y1))
        level = lowest if size == 0 else np.floor(4 + np.log2(size / canonical))
        levels.append(min(max(level, lowest), highest))
    return np.array(levels, dtype=np.int64)
