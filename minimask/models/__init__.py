"""The models, stage by stage, each file with its net, its decoding and its loss.

Imports `functions`, `nn`, `weights`, `config`, `data`, and the modules for boxes, anchors, masks and
keypoints. Begin with `mask_rcnn.py`, the table of contents; `zoo.py` has the whole models by name and
`assembly.py` puts them together; `networks.py` and `detector.py` build them from a configuration and from a
run's checkpoint, `pretrained.py` from the weights of any supported system.
"""

from minimask.models.mask_head import MaskFCN, MaskMLP, SigmoidMasks, SoftmaxMasks
from minimask.models.mask_rcnn import MaskRCNN
from minimask.models.pretrained import from_checkpoint
from minimask.models.zoo import (
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    keypointrcnn_resnet50_fpn,
    keypointrcnn_small,
    maskrcnn_fine,
    maskrcnn_resnet50_c4,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
    maskrcnn_resnet101_c4,
    maskrcnn_resnet101_fpn,
    maskrcnn_resnext101_32x8d_fpn,
    maskrcnn_small,
)

__all__ = [
    "MaskFCN",
    "MaskMLP",
    "MaskRCNN",
    "SigmoidMasks",
    "SoftmaxMasks",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "from_checkpoint",
    "keypointrcnn_resnet50_fpn",
    "keypointrcnn_small",
    "maskrcnn_fine",
    "maskrcnn_resnet50_c4",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet101_c4",
    "maskrcnn_resnet101_fpn",
    "maskrcnn_resnext101_32x8d_fpn",
    "maskrcnn_small",
]
