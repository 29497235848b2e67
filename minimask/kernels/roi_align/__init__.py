"""RoIAlign, one formula in three forms.

    formula.py     as loops, the way the paper says it, and `Sampling`, the options of all three; begin here
    sparse.py      as one sparse matrix: `Plan` builds it, `forward` and `backward` multiply with it (the CPU)
    gpu.py         as kernels that are launched with the RoIs themselves: `OnDevice` (the GPU)
    roi_align.cu   those kernels

`Plan.build` asks where the RoIs are, and makes a Plan or an OnDevice; `forward` and `backward` take either.
"""

from minimask.kernels.channels_last import channels_last, transpose
from minimask.kernels.roi_align.formula import Sampling, bilinear_loop, roi_align_loop
from minimask.kernels.roi_align.gpu import OnDevice, axis_has_room, channels_in_turn, struct_sampling
from minimask.kernels.roi_align.sparse import Plan, backward, forward, multiply, points_along
from minimask.kernels.roi_launch import beside, maps, one_each, tiles

__all__ = [
    "OnDevice",
    "Plan",
    "Sampling",
    "axis_has_room",
    "backward",
    "beside",
    "bilinear_loop",
    "channels_in_turn",
    "channels_last",
    "forward",
    "maps",
    "multiply",
    "one_each",
    "points_along",
    "roi_align_loop",
    "struct_sampling",
    "tiles",
    "transpose",
]
