"""Whole models by name: torchvision's, with its arguments and defaults, the paper's, some for a laptop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from minimask.models.assembly import Alternatives, Architecture, MakeMaskNet, assemble
from minimask.models.box_head import RoILayer
from minimask.models.conventions import DETECTRON2, MINIMASK, TORCHVISION, Conventions
from minimask.models.keypoint_head import KeypointOptions
from minimask.models.mask_head import SIGMOIDS, SigmoidMasks, SoftmaxMasks
from minimask.models.mask_rcnn import MaskRCNN
from minimask.models.options import check_whole
from minimask.models.resnet import BasicBlock
from minimask.nn import BatchNorm2d, GroupNorm, MakeNorm


@dataclass(frozen=True)
class Recipe:
    """How a network is trained unless told otherwise.

    Attributes
    ----------
    learning_rate : float
        The highest of the schedule, for a batch of `batch_size` images; for other batches, in proportion.
    """

    learning_rate: float
    batch_size: int


PAPER_RECIPE = Recipe(0.02, 16)  # Mask R-CNN, section 3.1
SMALL_RECIPE = Recipe(0.02, 2)  # group norms and few parameters bear eight times as much

RESNET50_FPN = Architecture()
RESNET101_FPN = Architecture(blocks=(3, 4, 23, 3))
RESNEXT101_FPN = Architecture(blocks=(3, 4, 23, 3), groups=32, width_per_group=8)
RESNET50_C4 = Architecture(pyramid=False, box_width=2048, mask_convs=0)
RESNET101_C4 = replace(RESNET50_C4, blocks=(3, 4, 23, 3))
SMALL = Architecture(
    blocks=(1, 1, 1, 1),
    channels=(32, 64, 128, 256),
    block=BasicBlock,
    stem=3,
    fpn_channels=64,
    box_width=256,
    anchor_sizes=(8, 16, 32, 64, 128),
)
FINE = replace(SMALL, pool=False, box_convs=2, head_norm=GroupNorm)
SMALL_KEYPOINTS = replace(SMALL, box_convs=2, head_norm=GroupNorm, keypoint_norm=GroupNorm)
"""Chosen together with `keypointrcnn_small`'s few anchors and RoIs; neither was measured alone."""
RESNET50_FPN_V2 = Architecture(rpn_convs=2, box_convs=4, head_norm=BatchNorm2d)
"""torchvision's second version, after Li et al. 2021, Benchmarking detection transfer learning with
vision transformers."""


def maskrcnn_resnet50_fpn(
    num_classes: int = 91,
    trainable_backbone_layers: int = 3,
    *,
    architecture: Architecture = RESNET50_FPN,
    conventions: Conventions = TORCHVISION,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    anchor_sizes: tuple[float, ...] | None = None,
    canonical_scale: float | None = None,
    image_mean: tuple[float, float, float] | None = None,
    image_std: tuple[float, float, float] | None = None,
    norm: MakeNorm | None = None,
    roi_layer: RoILayer | None = None,
    mask_loss: SigmoidMasks | SoftmaxMasks = SIGMOIDS,
    mask_branch: MakeMaskNet | None = None,
    keypoint_options: KeypointOptions | None = None,
    seed: int | None = 0,
    **rpn_and_box,
) -> MaskRCNN:
    """torchvision's `maskrcnn_resnet50_fpn`: ResNet-50 with frozen batch norm, FPN of 256 channels.

    Parameters
    ----------
    num_classes : int
        Background included.
    trainable_backbone_layers : int, 0 to 5
        Stages of the ResNet that train, counted from the last; 5 includes the stem.
    architecture : Architecture
        Another network under the same arguments: most other builders are this one with another default.
    conventions : Conventions
        Whose details it follows: `TORCHVISION`, `DETECTRON2` or `MINIMASK`
        (`minimask.models.conventions`).
    min_size : int, or several
        Pixels of the shorter side after resizing. If there are several, a loss draws one for each image, and
        results take the last.
    max_size : int
        Bound on the longer side, in pixels.
    anchor_sizes : five numbers, optional
        Sides of the square anchors, in pixels: one for each of P2..P6, or all those of C4's single level;
        each also comes at ratios 1/2 and 2. By default the architecture's.
    canonical_scale : number, optional
        Side of a box that the heads pool from P4, in pixels; by default the architecture's. C4 has none.
    image_mean, image_std : three floats, optional
        RGB, for images in 0..1; by default the conventions'.
    norm : callable, optional
        Makes the backbone's norm, given the number of channels; by default a frozen batch norm. Frozen norms
        and frozen layers are meant for weights that are loaded; to train from random ones, give
        ``partial(GroupNorm, groups=32)`` and 5 layers.
    roi_layer : callable, optional
        Of all heads: `functions.roi_pool`, ``partial(functions.roi_align, ...)`` and so on, called as
        described in `minimask.models.box_head.Pooler`. By default RoIAlign under the conventions.
    mask_loss : SigmoidMasks or SoftmaxMasks
        Whether the masks of different classes compete, and whether each class has its own at all.
    mask_branch : callable, optional
        ``(channels, masks, rng) -> Module``: `MaskFCN`, `MaskMLP`, or one of these with options bound. By
        default the architecture's `MaskFCN`.
    keypoint_options : KeypointOptions, optional
        How the loss of a keypoint head is normalised, where the architecture has one; by default as in
        torchvision.
    seed : int or None
        Of the initial weights; None for a model that is about to be loaded: they take no memory until then.
    **rpn_and_box
        torchvision's arguments ``rpn_...`` and ``box_...``, with its defaults: ``rpn_nms_thresh=0.7``,
        ``box_score_thresh=0.05`` and so on, each a field of `RPNOptions` or `BoxOptions`.

    Raises
    ------
    TypeError
        For an argument that is none of these.
    ValueError
        If `trainable_backbone_layers` is not 0 to 5, or another number is out of range.

    Notes
    -----
    The parameters' names are torchvision's: its checkpoints' arrays go into `load_state_dict` as they are.
    The batch norms' eps is 1e-5, as torchvision builds them; with the first version of its COCO weights,
    torchvision sets it to 0: ``conventions=TORCHVISION_COCO_V1``, which `from_checkpoint` chooses by itself.
    """
    given = {"mean": image_mean, "std": image_std}
    given = {name: tuple(values) for name, values in given.items() if values is not None}
    sizes = {"anchor_sizes": anchor_sizes, "canonical_scale": canonical_scale}
    return assemble(
        replace(architecture, **{name: value for name, value in sizes.items() if value is not None}),
        num_classes,
        replace(conventions, **given),
        min_size=min_size,
        max_size=max_size,
        trainable_backbone_layers=trainable_backbone_layers,
        norm=norm,
        alternatives=Alternatives(roi_layer, mask_loss, mask_branch),
        keypoint_options=keypoint_options,
        seed=seed,
        rpn_and_box=rpn_and_box,
    )


def maskrcnn_resnet50_fpn_v2(
    num_classes: int = 91, trainable_backbone_layers: int = 5, *, norm: MakeNorm = BatchNorm2d, **options
) -> MaskRCNN:
    """torchvision's `maskrcnn_resnet50_fpn_v2`: two convolutions in the RPN, four and one fully connected
    layer in the box head, and batch norms, which train, in the backbone, the FPN and both heads.

    Parameters are as for `maskrcnn_resnet50_fpn`; `norm` is the ResNet's. Batch norms need several images in
    a batch: with one or two, freeze them or fine-tune the first version.
    """
    options = {"architecture": RESNET50_FPN_V2} | options
    return maskrcnn_resnet50_fpn(num_classes, trainable_backbone_layers, norm=norm, **options)


def fasterrcnn_resnet50_fpn(num_classes: int = 91, trainable_backbone_layers: int = 3, **options) -> MaskRCNN:
    """torchvision's `fasterrcnn_resnet50_fpn`: only boxes. Parameters as for `maskrcnn_resnet50_fpn`."""
    options = {"architecture": replace(RESNET50_FPN, masks=False)} | options
    return maskrcnn_resnet50_fpn(num_classes, trainable_backbone_layers, **options)


def fasterrcnn_resnet50_fpn_v2(
    num_classes: int = 91, trainable_backbone_layers: int = 5, *, norm: MakeNorm = BatchNorm2d, **options
) -> MaskRCNN:
    """torchvision's `fasterrcnn_resnet50_fpn_v2`; parameters as for `maskrcnn_resnet50_fpn_v2`."""
    options = {"architecture": replace(RESNET50_FPN_V2, masks=False)} | options
    return maskrcnn_resnet50_fpn(num_classes, trainable_backbone_layers, norm=norm, **options)


def keypointrcnn_resnet50_fpn(
    num_classes: int = 2,
    num_keypoints: int = 17,
    trainable_backbone_layers: int = 3,
    *,
    min_size: int | Sequence[int] = (640, 672, 704, 736, 768, 800),
    with_masks: bool = False,
    **options,
) -> MaskRCNN:
    """torchvision's `keypointrcnn_resnet50_fpn`: a keypoint head in place of the mask head (section 5).

    Parameters
    ----------
    num_classes : int
        Background included.
    num_keypoints : int
        Of every object, whatever its class.
    with_masks : bool
        Whether there is a mask head as well (Table 5), which torchvision's does not have.
    **options
        As for `maskrcnn_resnet50_fpn`.

    Raises
    ------
    TypeError, ValueError
        As `maskrcnn_resnet50_fpn`; ValueError also for fewer than one keypoint.
    """
    check_whole("num_keypoints", num_keypoints, 1)
    architecture = replace(RESNET50_FPN, masks=with_masks, num_keypoints=num_keypoints)
    options = {"architecture": architecture, "min_size": min_size} | options
    return maskrcnn_resnet50_fpn(num_classes, trainable_backbone_layers, **options)


def maskrcnn_resnet101_fpn(num_classes: int = 91, trainable_backbone_layers: int = 3, **options) -> MaskRCNN:
    """Mask R-CNN on ResNet-101-FPN (Table 2a); parameters as for `maskrcnn_resnet50_fpn`."""
    options = {"architecture": RESNET101_FPN} | options
    return maskrcnn_resnet50_fpn(num_classes, trainable_backbone_layers, **options)


def maskrcnn_resnext101_32x8d_fpn(
    num_classes: int = 91, trainable_backbone_layers: int = 3, **options
) -> MaskRCNN:
    """Mask R-CNN on ResNeXt-101-FPN: 3x3 convolutions in 32 groups, of 8 channels in the first stage
    (Xie et al. 2017).

    Parameters as for `maskrcnn_resnet50_fpn`. The paper does not give the groups and width of its X101.
    """
    options = {"architecture": RESNEXT101_FPN} | options
    return maskrcnn_resnet50_fpn(num_classes, trainable_backbone_layers, **options)


def maskrcnn_resnet50_c4(num_classes: int = 81, trainable_backbone_layers: int = 3, **options) -> MaskRCNN:
    """Mask R-CNN on C4 (figure 4, left): one level at stride 16, the ResNet's last stage as each RoI's head.

    Parameters as for `maskrcnn_resnet50_fpn`, but with 12000 (for a loss) and 6000 proposals before
    suppression and by default the conventions of detectron2, which publishes such models. The last stage
    counts among the trainable layers and does not train if they are 0; its parameters are called
    ``roi_heads.box_head.layer4``.
    """
    options = {"architecture": RESNET50_C4, "conventions": DETECTRON2} | options
    return maskrcnn_resnet50_fpn(num_classes, trainable_backbone_layers, **options)


def maskrcnn_resnet101_c4(num_classes: int = 81, trainable_backbone_layers: int = 3, **options) -> MaskRCNN:
    """As `maskrcnn_resnet50_c4`, with 23 blocks in the third stage."""
    options = {"architecture": RESNET101_C4} | options
    return maskrcnn_resnet50_c4(num_classes, trainable_backbone_layers, **options)


def maskrcnn_small(
    num_classes: int,
    *,
    min_size: int | Sequence[int] | None = None,
    max_size: int = 1600,
    magnification: float = 1.0,
    channels: tuple[int, int, int, int] = SMALL.channels,
    fpn_channels: int = SMALL.fpn_channels,
    box_width: int = SMALL.box_width,
    anchor_sizes: tuple[float, ...] = SMALL.anchor_sizes,
    canonical_scale: float | None = None,
    roi_layer: RoILayer | None = None,
    mask_loss: SigmoidMasks | SoftmaxMasks = SIGMOIDS,
    mask_branch: MakeMaskNet | None = None,
    seed: int | None = 0,
    architecture: Architecture = SMALL,
    **rpn_and_box,
) -> MaskRCNN:
    """A Mask R-CNN of 2.5 M parameters that a laptop trains from scratch, without rounding anywhere.

    Parameters
    ----------
    num_classes : int
        Background included.
    min_size : int, several, or None
        As for `maskrcnn_resnet50_fpn`; by default images keep their size.
    max_size : int
        Bound on the longer side, in pixels.
    magnification : float
        Scale of the images where there is no `min_size`: for objects that are too small to be seen, or
        needlessly large.
    channels : four ints
        Of the stages at strides 4, 8, 16 and 32, one basic block each, with group norm.
    fpn_channels, box_width : int
        Channels of the pyramid and of the mask head; width of the box head.
    anchor_sizes : five numbers
        Side of the square anchor on each of P2..P6, in pixels; each also comes at ratios 1/2 and 2.
    canonical_scale : number, optional
        Side of a box that the heads pool from P4, in pixels; by default the architecture's.
    roi_layer, mask_loss, mask_branch
        As for `maskrcnn_resnet50_fpn`; by default RoIAlign with nothing rounded.
    seed : int or None
        Of the initial weights; None for a model that is about to be loaded.
    architecture : Architecture
        Gives what the sizes above do not; `maskrcnn_fine` is this builder with another one.
    **rpn_and_box
        As for `maskrcnn_resnet50_fpn`, but by default at most 1000 proposals and 256 RoIs per image.

    Raises
    ------
    TypeError
        For an argument that is none of these.
    ValueError
        If a number is out of range.
    """
    architecture = replace(
        architecture,
        channels=channels,
        fpn_channels=fpn_channels,
        box_width=box_width,
        anchor_sizes=anchor_sizes,
        canonical_scale=architecture.canonical_scale if canonical_scale is None else canonical_scale,
    )
    alternatives, sizes = Alternatives(roi_layer, mask_loss, mask_branch), (min_size, max_size, magnification)
    return _small(architecture, num_classes, sizes, alternatives, None, seed, rpn_and_box)


def maskrcnn_fine(num_classes: int, **options) -> MaskRCNN:
    """`maskrcnn_small` at twice the resolution, for objects of a few pixels; steps take over twice as long.

    The stem has no max pool, so P2..P6 have strides 2, 4, 8, 16 and 32. FPN and heads have group norms, and
    the box head has two convolutions before its fully connected layer. Parameters are as for
    `maskrcnn_small`.
    """
    return maskrcnn_small(num_classes, **({"architecture": FINE} | options))


def keypointrcnn_small(
    num_classes: int,
    num_keypoints: int,
    *,
    min_size: int | Sequence[int] | None = None,
    max_size: int = 1600,
    magnification: float = 1.0,
    keypoint_width: int = 64,
    keypoint_convs: int = 4,
    keypoint_options: KeypointOptions | None = None,
    with_masks: bool = False,
    channels: tuple[int, int, int, int] = SMALL.channels,
    fpn_channels: int = SMALL.fpn_channels,
    box_width: int = SMALL.box_width,
    anchor_sizes: tuple[float, ...] = SMALL.anchor_sizes,
    canonical_scale: float | None = None,
    roi_layer: RoILayer | None = None,
    seed: int | None = 0,
    **rpn_and_box,
) -> MaskRCNN:
    """A Keypoint R-CNN that a laptop trains from scratch: `maskrcnn_small` with other heads.

    The box head has two convolutions and one fully connected layer; it and the FPN have group norms.

    Parameters
    ----------
    num_classes : int
        Background included.
    num_keypoints : int
        Of every object, whatever its class.
    keypoint_width, keypoint_convs : int
        Channels and number of the keypoint head's convolutions, each with group norm; the paper has 512 and
        8, without norm.
    keypoint_options, with_masks
        As for `keypointrcnn_resnet50_fpn`.
    **others
        As for `maskrcnn_small`, but by default 32 anchors and 32 RoIs per image, up to half of them positive.

    Raises
    ------
    TypeError
        For an argument that is none of these.
    ValueError
        For fewer than one keypoint, or another number out of range.
    """
    check_whole("num_keypoints", num_keypoints, 1)
    architecture = replace(
        SMALL_KEYPOINTS,
        channels=channels,
        fpn_channels=fpn_channels,
        box_width=box_width,
        anchor_sizes=anchor_sizes,
        canonical_scale=canonical_scale,
        masks=with_masks,
        num_keypoints=num_keypoints,
        keypoint_width=keypoint_width,
        keypoint_convs=keypoint_convs,
    )
    # Losses are divided by the number sampled. Of 256 anchors around few objects some ten are positive, so
    # that the box loss would weigh next to nothing; and heat maps cost more than masks.
    few = dict(rpn_batch_size_per_image=32, box_batch_size_per_image=32, box_positive_fraction=0.5)
    options = (Alternatives(roi_layer), keypoint_options, seed, few | rpn_and_box)
    return _small(architecture, num_classes, (min_size, max_size, magnification), *options)


def _small(
    architecture: Architecture,
    num_classes: int,
    sizes: tuple[int | Sequence[int] | None, int, float],  # min_size, max_size, magnification
    alternatives: Alternatives,
    keypoint_options: KeypointOptions | None,
    seed: int | None,
    rpn_and_box: dict,
) -> MaskRCNN:
    """A network for a laptop: nothing rounded, group norm, fewer proposals and RoIs."""
    min_size, max_size, magnification = sizes
    fewer = dict(rpn_pre_nms_top_n_train=1000, rpn_post_nms_top_n_train=1000, box_batch_size_per_image=256)
    return assemble(
        architecture,
        num_classes,
        MINIMASK,
        min_size=min_size,
        max_size=max_size,
        magnification=magnification,
        norm=GroupNorm,
        alternatives=alternatives,
        keypoint_options=keypoint_options,
        seed=seed,
        rpn_and_box=fewer | rpn_and_box,
    )
