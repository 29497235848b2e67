"""The operators under the names that `torchvision.ops` gives them, where it has them."""

from minimask.anchors import AnchorGenerator
from minimask.boxes import (
    BoxCoder,
    batched_nms,
    box_area,
    box_iou,
    clip_boxes_to_image,
    generalized_box_iou,
    nms,
    remove_small_boxes,
)
from minimask.functions.roi import roi_align, roi_pool
from minimask.masks import paste_masks
from minimask.matching import Matcher, assign_fpn_levels
