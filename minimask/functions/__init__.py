"""Every differentiable operation: a class with forward and backward, and the function people call.

Imports `autograd`, where the Functions of arithmetic are, `kernels`, `backend`. Begin with `activation.py`,
then `conv.py`, `roi.py` and `loss.py`; a whole stage as one Function is `explicit_mask_head.py`.
"""

from minimask.functions.activation import relu, sigmoid, softmax
from minimask.functions.array import (
    add,
    concatenate,
    divide,
    exp,
    getitem,
    log,
    matmul,
    mean,
    multiply,
    power,
    reshape,
    sqrt,
    subtract,
    sum,
    take,
    transpose,
)
from minimask.functions.conv import conv2d, conv_transpose2d, linear
from minimask.functions.conv_norm import conv_frozen_norm, scale_and_shift
from minimask.functions.explicit_mask_head import mask_head
from minimask.functions.explicit_rpn_head import rpn_head
from minimask.functions.loss import (
    box_head_loss,
    l1,
    mask_loss,
    rpn_loss,
    sigmoid_cross_entropy,
    smooth_l1,
    softmax_cross_entropy,
    softmax_mask_loss,
)
from minimask.functions.norm import batch_norm, frozen_batch_norm, group_norm
from minimask.functions.pool import max_pool2d, upsample_bilinear, upsample_nearest
from minimask.functions.roi import roi_align, roi_pool, roi_warp
