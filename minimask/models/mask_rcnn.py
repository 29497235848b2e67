"""Mask R-CNN (He et al. 2017), top to bottom: begin with `loss` and `predict`, and follow the calls.

Shapes: N images (3, H, W), A anchors, P proposals and D detections in each, R RoIs of all images (R+ with an
object), K classes and background, Q masks of M x M per RoI (by default K + 1), J heat maps of M x M.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minimask.autograd import Tensor, no_grad
from minimask.backend import array_module, to_cpu
from minimask.boxes import scale_boxes
from minimask.functions.roi import as_rois
from minimask.keypoints import Peaks
from minimask.masks import Masks
from minimask.models.box_head import BoxHead, BoxOutput, Candidates, Detections, RoIs
from minimask.models.fpn import Backbone, SingleLevel
from minimask.models.inputs import check_images, check_targets
from minimask.models.keypoint_head import KeypointHead
from minimask.models.mask_head import MaskHead
from minimask.models.rpn import RPN, RankedAnchors, RPNOutput, RPNSamples
from minimask.models.transform import Batch, Target, Transform
from minimask.nn import Module, inference
from minimask.randomness import Draws


@dataclass(frozen=True)
class TrainingRecord:
    """Everything a training step computed; the losses, the tests and the notebooks read it from here."""

    batch: Batch
    targets: list[Target]
    x: Tensor  # batch.images (N, 3, H', W') as the backbone got them
    levels: list[Tensor]  # P2..P6, each (N, C, H'/s, W'/s)
    rpn: RPNOutput
    anchors: RPNSamples  # which of rpn.anchors are in the loss
    proposals: list[np.ndarray]  # N of (P, 4)
    rois: RoIs
    box: BoxOutput
    mask: Tensor | None  # (R+, Q, M, M), where there is a mask head
    keypoint: Tensor | None  # (R', J, M, M), of the R' with a labelled keypoint
    losses: dict[str, Tensor]


@dataclass(frozen=True)
class InferenceRecord:
    """Everything that `MaskRCNN.predict` computed on the way to its results."""

    batch: Batch
    levels: list[Tensor]  # P2..P6, each (N, C, H'/s, W'/s)
    rpn: RPNOutput
    ranked: list[RankedAnchors]  # N, from anchors to proposals
    box: BoxOutput  # of all proposals, image by image
    candidates: list[Candidates]  # N, from proposals to detections
    detections: list[Detections]  # N
    mask: Tensor | None  # logits (sum D, Q, M, M), where there is a mask head
    results: list[dict]  # N, as `MaskRCNN.predict` gives them


class MaskRCNN(Module):
    """The system: a backbone, the RPN, and in parallel on each RoI a box head and any other heads given.

    With a mask head it is Mask R-CNN, with a keypoint head Keypoint R-CNN, with both the model of Table 5,
    and with neither Faster R-CNN.
    """

    origin = None  # the `Origin` of a model that `from_checkpoint` built
    # torchvision's names in the state
    paths = {"box_head": "roi_heads", "mask_head": "roi_heads", "keypoint_head": "roi_heads"}

    def __init__(
        self,
        transform: Transform,
        backbone: Backbone | SingleLevel,
        rpn: RPN,
        box_head: BoxHead,
        mask_head: MaskHead | None = None,
        keypoint_head: KeypointHead | None = None,
    ):
        self.transform = transform
        self.backbone, self.rpn, self.box_head = backbone, rpn, box_head
        self.mask_head, self.keypoint_head = mask_head, keypoint_head
        self.calls = 0

    def __call__(self, images, targets=None):
        """The dict of losses in training mode, the list of results in inference mode, as in torchvision."""
        return self.loss(images, targets) if self.training else self.predict(images)

    def loss(self, images, targets, draws: Draws | None = None) -> dict[str, Tensor]:
        """L_cls, L_box, L_mask (section 3), L_keypoint and the RPN's two, each a () Tensor; their sum is L.

        Parameters
        ----------
        images : N arrays (3, H, W) float
            RGB in 0..1.
        targets : N dicts
            ``boxes`` (G, 4) x1, y1, x2, y2; ``labels`` (G,) from 1 up; ``masks`` (G, H, W) of 0 and 1
            for a mask head; ``keypoints`` (G, J, 3) x, y, visibility for a keypoint head; optionally
            ``crowd_boxes`` (C, 4). G may be 0.
        draws : Draws, optional
            Decides which anchors and RoIs are sampled; by default different ones in each call.

        Raises
        ------
        InputError
            If images or targets have the wrong form: names the image, the entry and how to mend it, before
            anything is computed. Arrays on a GPU are checked for shape and dtype only.
        """
        if draws is None:
            self.calls += 1
            draws = Draws(step=self.calls)
        return self.training_record(images, targets, draws).losses

    def training_record(
        self,
        images,
        targets,
        draws: Draws | None = None,
        held: TrainingRecord | None = None,
        image_gradient: bool = False,
    ) -> TrainingRecord:
        """The training step in full. With `held`, proposals, samples and matches are an earlier record's.

        Training differentiates the loss with these held constant, though they depend on the parameters; so a
        finite difference must hold them constant, too. With `image_gradient`, a backward pass goes on to the
        record's `x`, the images themselves.
        """
        draws = draws or Draws()
        images = check_images(images)  # N of (3, H, W)
        sizes = [image.shape[1:] for image in images]
        targets = check_targets(targets, sizes, self.dtype, self.box_head.num_classes, **self.annotations)
        batch = self.transform.batch(images, self.dtype, self.device, draws)  # (N, 3, H', W')
        targets = self.transform.scaled(targets, batch)  # boxes and masks scaled along
        x = Tensor(batch.images, requires_grad=image_gradient)
        levels = self.backbone(x)  # P2..P6, each (N, C, H'/s, W'/s)
        rpn = self.rpn(levels, batch)  # logits (N, A), deltas (N, A, 4), anchors (A, 4)
        anchors = held.anchors if held else self.rpn.sample(rpn, targets, draws)
        proposals = held.proposals if held else self.rpn.propose(rpn, batch, for_loss=True)  # N of (P, 4)
        rois = held.rois if held else self.box_head.sample(proposals, targets, draws)  # R, with labels
        box = self.box_head(levels, rois.boxes)  # logits (R, K+1), deltas (R, 4(K+1))
        losses, mask, keypoint = self.box_head.loss(box, rois, targets), None, None
        if self.mask_head:
            pooled = self.mask_head.pooled_by(self.box_head, box, rois)  # shared on C4: (R+, C, S, S)
            mask = self.mask_head(levels, rois.positive.boxes, pooled)  # (R+, Q, M, M), in parallel with box
            losses |= self.mask_head.loss(mask, rois.positive, targets)
        if self.keypoint_head:
            visible = self.keypoint_head.select(rois.positive, targets)  # R' of the R+
            keypoint = self.keypoint_head(levels, visible.boxes)  # (R', J, M, M)
            losses |= self.keypoint_head.loss(keypoint, visible, targets)
        losses |= self.rpn.loss(rpn, anchors)
        return TrainingRecord(
            batch, targets, x, levels, rpn, anchors, proposals, rois, box, mask, keypoint, losses
        )

    def predict(self, images) -> list[dict]:
        """The objects found in each image; training mode makes no difference.

        Parameters
        ----------
        images : N arrays (3, H, W) float
            RGB in 0..1.

        Returns
        -------
        N dicts of NumPy arrays
            ``boxes`` (D, 4) in the image's pixels, ``labels`` (D,), ``scores`` (D,) falling. With a mask
            head, ``masks``: a `Masks` of D probability maps on the model's device, pasted when asked for,
            which reads like an array (D, 1, H, W). With a keypoint head, ``keypoints`` (D, J, 3) x, y and 1,
            ``keypoints_scores`` (D, J), logits as in torchvision, and ``keypoints_probabilities`` (D, J), the
            same as detectron2's scores (see `minimask.keypoints.Peaks`).

        Raises
        ------
        InputError
            If an image has the wrong form.
        """
        return self.inference_record(images).results

    @no_grad()
    @inference()
    def inference_record(self, images) -> InferenceRecord:
        """What `predict` does, in full."""
        batch = self.transform(images, self.dtype, self.device)  # (N, 3, H', W')
        levels = self.backbone(Tensor(batch.images))  # P2..P6
        rpn = self.rpn(levels, batch)  # logits (N, A), deltas (N, A, 4), anchors (A, 4)
        ranked = [self.rpn.rank(rpn, batch, n) for n in range(len(batch.sizes))]
        proposals = [anchors.proposals for anchors in ranked]  # N of (P, 4)
        box = self.box_head(levels, as_rois(proposals))  # of (N P, 5)
        candidates = self.box_head.filter(box, proposals, batch)
        detections = [found.detections for found in candidates]  # boxes (D, 4), labels, scores
        results = [self._result(d, n, batch) for n, d in enumerate(detections)]
        mask = None
        if self.mask_head:
            mask = self.mask_head.logits(levels, detections)  # (sum D, Q, M, M): on kept boxes only
            probabilities = self.mask_head.probabilities(mask, detections)  # N of (D, M, M)
            for n, result in enumerate(results):
                result["masks"] = self._masks(probabilities[n], detections[n], n, batch)
        if self.keypoint_head:
            keypoints = self.keypoint_head.predict(levels, detections)  # N of (D, J, 2), scores
            for n, result in enumerate(results):
                result |= self._keypoints(keypoints[n], n, batch)
        return InferenceRecord(batch, levels, rpn, ranked, box, candidates, detections, mask, results)

    def _result(self, d: Detections, n: int, batch: Batch) -> dict:
        sy, sx = batch.scale(n)
        boxes = scale_boxes(d.boxes, (1 / sy, 1 / sx))
        columns = [boxes, d.scores[:, None], d.labels[:, None].astype(boxes.dtype)]
        table = array_module(boxes).concatenate(columns, axis=1)  # (D, 6)
        found = to_cpu(table)  # sync: the image's result, all but its masks
        labels = found[:, 5].astype(np.int64)
        return {"boxes": found[:, :4], "labels": labels, "scores": found[:, 4]}

    def _masks(self, probabilities, d: Detections, n: int, batch: Batch) -> Masks:
        sy, sx = batch.scale(n)
        boxes = scale_boxes(d.boxes, (1 / sy, 1 / sx))
        return Masks(probabilities, boxes, batch.original_sizes[n], self.mask_head.convention)

    def _keypoints(self, peaks: Peaks, n: int, batch: Batch) -> dict:
        sy, sx = batch.scale(n)
        xy = peaks.xy / np.array([sx, sy], peaks.xy.dtype)
        keypoints = np.concatenate([xy, np.ones_like(xy[..., :1])], axis=2)  # (D, J, 3): all are "visible"
        scores = {"keypoints_scores": peaks.logits, "keypoints_probabilities": peaks.probabilities}
        return {"keypoints": keypoints} | scores

    @property
    def annotations(self) -> dict:
        """Which annotations the heads need besides boxes and labels, as options of `inputs.check_targets`."""
        return {
            "with_masks": self.mask_head is not None,
            "num_keypoints": self.keypoint_head and self.keypoint_head.num_keypoints,
        }

    @property
    def dtype(self):
        return self.rpn.head.cls_logits.weight.dtype
