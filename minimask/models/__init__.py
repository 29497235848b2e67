"""The models, stage by stage, each file with its net, its decoding and its loss.

Imports `functions`, `nn`, `weights`, and what knows of boxes and masks. Begin with `mask_rcnn.py`, the table
of contents; `zoo.py` has the whole models by name, `networks.py` and `detector.py` build them for a
configuration and from a checkpoint.
"""

from minimask.models.mask_rcnn import MaskRCNN
from minimask.models.zoo import (
    keypointrcnn_resnet50_fpn,
    keypointrcnn_small,
    maskrcnn_resnet50_fpn,
    maskrcnn_small,
)

__all__ = [
    "MaskRCNN",
    "keypointrcnn_resnet50_fpn",
    "keypointrcnn_small",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_small",
]
