"""What one wrong detail costs: python -m tests.full.one_wrong_detail

The packaged weights, which were trained with everything right, find the nuclei of the packaged validation
images; each time one detail of inference is wrong in the way people get it wrong. Prints the table of
docs/bugs.md.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from minimask import functions as F
from minimask import masks, models
from minimask.boxes import BoxCoder
from minimask.data import nuclei_sample
from minimask.results.evaluate import evaluate


def pooled_by(layer: Callable) -> Callable:
    """Both heads read their RoIs by another layer."""

    def change(model) -> None:
        for head in (model.box_head, model.mask_head):
            head.pooler = replace(head.pooler, roi_layer=layer)

    return change


def levels_too_coarse(model) -> None:
    for head in (model.box_head, model.mask_head):
        head.pooler = replace(head.pooler, canonical_scale=head.pooler.canonical_scale / 4)


def anchors_at_corners(model) -> None:
    model.rpn.anchors = replace(model.rpn.anchors, offset=0.0)


def anchors_turned(model) -> None:
    turned = tuple(tuple(reversed(ratios)) for ratios in model.rpn.anchors.aspect_ratios)
    model.rpn.anchors = replace(model.rpn.anchors, aspect_ratios=turned)


def unweighted_coder(model) -> None:
    model.box_head.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))


class Swapped(BoxCoder):
    def decode(self, deltas, boxes):
        return super().decode(deltas[:, [1, 0, 3, 2]], boxes)


def swapped_deltas(model) -> None:
    model.box_head.coder = Swapped(model.box_head.coder.weights)


def pixels(**change) -> Callable:
    """Images are normalised otherwise."""

    def to(model) -> None:
        model.transform.conventions = replace(model.transform.conventions, **change)

    return to


def blue_first(model) -> None:
    normalize = model.transform._normalize
    model.transform._normalize = lambda image: normalize(image[::-1])


def pasted(convention) -> Callable:
    def to(model) -> None:
        model.mask_head.convention = convention

    return to


def options(stage: str, **change) -> Callable:
    def to(model) -> None:
        part = getattr(model, stage)
        part.options = replace(part.options, **change)

    return to


DETAILS = {
    "nothing": lambda model: None,
    "RoIAlign without `aligned`: half a cell off": pooled_by(partial(F.roi_align, sampling_ratio=2)),
    "RoIPool, which rounds, in place of RoIAlign": pooled_by(F.roi_pool),
    "boxes read two levels too coarse": levels_too_coarse,
    "masks pasted in boxes of whole pixels, one larger": pasted(masks.TORCHVISION),
    "anchors at the corner of their cell, not in its middle": anchors_at_corners,
    "anchors in another order than the RPN's channels": anchors_turned,
    "box deltas decoded without the weights 10, 10, 5, 5": unweighted_coder,
    "dx and dy, dw and dh swapped": swapped_deltas,
    "channels in the order blue, green, red": blue_first,
    "no mean subtracted, no division by the deviation": pixels(mean=(0.0,) * 3, std=(1.0,) * 3),
    "no suppression of detections": options("box_head", nms_thresh=1.0),
    "detections from a score of 0.5 on": options("box_head", score_thresh=0.5),
    "at most 20 detections an image": options("box_head", detections_per_img=20),
    "at most 50 proposals": options("rpn", post_nms_top_n_test=50),
}


def main() -> None:
    dataset = nuclei_sample("val")
    print("| what is wrong | box AP | mask AP | mask AP75 |\n| --- | ---: | ---: | ---: |")
    for name, change in DETAILS.items():
        model = models.from_checkpoint("minimask:nuclei").eval()
        change(model)
        found = evaluate(model, dataset, 400)
        print(
            f"| {name} | {found.box['AP']:.3f} | {found.mask['AP']:.3f} | {found.mask['AP75']:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
