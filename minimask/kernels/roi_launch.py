"""What RoIAlign's and RoIPool's launches on a GPU have in common: how arrays are passed, and which grids.

Shapes: R RoIs, L pyramid levels of (N, C, H, W) features.
"""

from __future__ import annotations

import math

import numpy as np

from minimask import backend


def beside(x, rois, levels):
    """RoIs and levels (or None) on the device of the features x; on a GPU, in the form the kernels take."""
    xp = backend.array_module(x)
    if xp is np:
        return rois, levels
    levels = None if levels is None else xp.ascontiguousarray(xp.asarray(levels, np.int32))
    return xp.ascontiguousarray(xp.asarray(rois, x.dtype)), levels


def maps(arrays, scales) -> np.ndarray:
    """``struct Maps<T>`` of the CUDA sources: the addresses of up to 8 levels (N, C, H, W)."""
    if len(arrays) > 8:
        raise ValueError(f"RoI layers read at most 8 levels on a GPU, not {len(arrays)}")
    fields = [("data", "u8", 8), ("height", "i4", 8), ("width", "i4", 8), ("scale", arrays[0].dtype, 8)]
    value = np.zeros((), np.dtype([*fields, ("count", "i4")], align=True))
    for k, (array, scale) in enumerate(zip(arrays, scales)):
        if array.dtype != arrays[0].dtype:
            raise TypeError(f"RoI layers read levels of one dtype, not {arrays[0].dtype} and {array.dtype}")
        # NumPy's where lessons.cuda_on_cpu runs the kernels
        address = array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
        value["data"][k], value["scale"][k] = address, scale
        value["height"][k], value["width"][k] = array.shape[2:]
    value["count"] = len(arrays)
    return value


def one_each(shape):
    """Grid and block for outputs (R, C, PH, PW): a row of blocks per RoI, four outputs per thread."""
    return (shape[0], min(-(-math.prod(shape[1:]) // 1024), 65535)), 256


def tiles(shapes):
    """Grid and block of the ordered kernels: a block takes 8 channels of a tile of 32 x 8 pixels."""
    count = sum(n * -(-h // 8) * -(-w // 32) for n, _, h, w in shapes)
    return (count, -(-shapes[0][1] // 8)), 256
