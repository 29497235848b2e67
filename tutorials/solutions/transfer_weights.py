import numpy as np


def transfer_weights(mine, theirs):
    state, anew = {}, []
    for name, array in mine.items():
        fits = name in theirs and theirs[name].shape == array.shape
        state[name] = theirs[name] if fits else array
        anew.append(not fits)
    return state | {"anew": np.array(anew, np.int64)}
