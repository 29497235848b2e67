"""The models: `mask_rcnn.py` is the table of contents, `zoo.py` has the whole models by name."""

from minimask.models.mask_rcnn import MaskRCNN
from minimask.models.zoo import maskrcnn_resnet50_fpn, maskrcnn_small

__all__ = ["MaskRCNN", "maskrcnn_resnet50_fpn", "maskrcnn_small"]
