"""The table of ablations: what each compares, on which pictures, for how long, and what the paper found.

A design is fixed before its first run (docs/ablations.md) and is not changed afterwards: data, stride, metric
and number of seeds belong to it. The figures are the paper's, in per cent.
"""

from dataclasses import dataclass, field

from minimask.ablations.networks import PYRAMID, Network, Sizes

Scores = tuple[float | None, float | None, float | None]
"""AP, AP50 and AP75 in per cent; None where the paper gives no value."""

UNKNOWN: Scores = (None, None, None)


@dataclass(frozen=True)
class Training:
    """What every network of an ablation is trained on, how, and what it is evaluated on.

    Attributes
    ----------
    objects : (int, int)
        Fewest and most in a picture (`minimask.ablations.stars.Stars`).
    steps, batch_size, learning_rate, warmup_steps
        As ``train.steps`` and so on. No picture is seen twice: there are steps times batch_size of them.
    evaluated, evaluation_seed : int
        Number and seed of the pictures for evaluation, the same for all. Training pictures have the run's
        seed.
    """

    objects: tuple[int, int] = (1, 3)
    steps: int = 1300
    batch_size: int = 2
    learning_rate: float = 0.04
    warmup_steps: int = 50
    evaluated: int = 200
    evaluation_seed: int = 10_000


@dataclass(frozen=True)
class Variant:
    """One network of a comparison.

    Attributes
    ----------
    name : str
        Of its folder; unique within an ablation.
    title : str
        In the table.
    network : Network
    paper : three floats or None
        AP, AP50 and AP75 of masks, or of boxes where the ablation is about boxes.
    claim : "below", "equal" or None
        What the paper says of it compared with its own choice; None where it says nothing.
    """

    name: str
    title: str
    network: Network
    paper: Scores = UNKNOWN
    claim: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Networks that are compared with the last of them, the paper's own choice.

    Attributes
    ----------
    title : str
    variants : tuple of Variant
    size : int
        Side of the pictures, in pixels; stars and anchors grow with it.
    """

    title: str
    variants: tuple[Variant, ...]
    size: int = 128


@dataclass(frozen=True)
class Ablation:
    """One of the paper's questions, asked again on a small scale.

    Attributes
    ----------
    name : str
    source : str
        Where in the paper.
    kind, metric : "mask" or "box"; "AP", "AP50" or "AP75"
        What decides the question.
    comparisons : tuple of Comparison
    seeds : int
        Runs of each variant; their seeds 0, 1, ... decide weights, pictures and everything drawn.
    training : Training
    sizes : Sizes
        Of all networks in the ablation.
    """

    name: str
    source: str
    kind: str
    metric: str
    comparisons: tuple[Comparison, ...]
    seeds: int = 5
    training: Training = Training()
    sizes: Sizes = field(default_factory=Sizes)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Those of all comparisons."""
        return tuple(variant for comparison in self.comparisons for variant in comparison.variants)


def _roi_layers(stride: int, papers: dict[str, Scores], claims: dict[str, str]) -> tuple[Variant, ...]:
    titles = {
        "roi_pool": "RoIPool",
        "roi_warp_max": "RoIWarp, maximum",
        "roi_warp": "RoIWarp, average",
        "roi_align_max": "RoIAlign, maximum",
        "roi_align": "RoIAlign, average",
    }
    return tuple(
        Variant(
            f"stride-{stride}-{layer.replace('_', '-')}",
            title,
            Network(stride, roi_layer=layer),
            papers.get(layer, UNKNOWN),
            claims.get(layer),
        )
        for layer, title in titles.items()
    )


ROI_LAYER = Ablation(
    "roi-layer",
    "Tables 2c and 2d",
    "mask",
    "AP75",
    (
        Comparison(
            "stride 16",
            _roi_layers(
                16,
                {
                    "roi_pool": (26.9, 48.8, 26.4),
                    "roi_warp_max": (27.2, 49.2, 27.1),
                    "roi_warp": (27.1, 48.9, 27.1),
                    "roi_align_max": (30.2, 51.0, 31.8),
                    "roi_align": (30.3, 51.2, 31.5),
                },
                {"roi_pool": "below", "roi_warp_max": "below", "roi_warp": "below", "roi_align_max": "equal"},
            ),
        ),
        Comparison(
            "stride 32",
            _roi_layers(
                32,
                {"roi_pool": (23.6, 46.5, 21.6), "roi_align": (30.9, 51.8, 32.1)},
                {"roi_pool": "below"},
            ),
            size=192,
        ),
    ),
)


def _sampling(ratio: int, aligned: bool) -> Variant:
    points = f"{ratio} x {ratio} points" if ratio else "a point for each cell"
    return Variant(
        f"{ratio or 'adaptive'}-{'aligned' if aligned else 'not-aligned'}",
        f"{points}, {'aligned' if aligned else 'not aligned'}",
        Network(PYRAMID, sampling_ratio=ratio, aligned=aligned),
        claim="equal" if aligned and ratio != 2 else None,
    )


SAMPLING = Ablation(
    "sampling",
    "section 3, RoIAlign",
    "mask",
    "AP75",
    (
        Comparison(
            "a pyramid, from stride 4 on",
            (
                *(_sampling(ratio, False) for ratio in (1, 2, 4, 0)),
                *(_sampling(ratio, True) for ratio in (1, 4, 0, 2)),
            ),
        ),
    ),
)

MASK_LOSS = Ablation(
    "mask-loss",
    "Table 2b",
    "mask",
    "AP",
    (
        Comparison(
            "stride 16",
            (
                Variant(
                    "softmax",
                    "a softmax over classes",
                    Network(mask_loss="softmax"),
                    (24.8, 44.1, 25.1),
                    "below",
                ),
                Variant("sigmoid", "a sigmoid for each class", Network(), (30.3, 51.2, 31.5)),
            ),
        ),
    ),
)

CLASS_AGNOSTIC = Ablation(
    "class-agnostic",
    "section 4.2",
    "mask",
    "AP",
    (
        Comparison(
            "stride 16",
            (
                Variant(
                    "one-for-all",
                    "one mask for all classes",
                    Network(class_agnostic=True),
                    (29.7, None, None),
                    "equal",
                ),
                Variant("each-class", "one for each class", Network(), (30.3, None, None)),
            ),
        ),
    ),
)

MASK_BRANCH = Ablation(
    "mask-branch",
    "Table 2e",
    "mask",
    "AP",
    (
        Comparison(
            "a pyramid, from stride 4 on",
            (
                Variant(
                    "mlp2",
                    "fully connected, two hidden layers",
                    Network(PYRAMID, mask_branch="mlp2"),
                    (31.5, 53.7, 32.8),
                    "below",
                ),
                Variant(
                    "mlp3",
                    "fully connected, three",
                    Network(PYRAMID, mask_branch="mlp3"),
                    (31.5, 54.0, 32.6),
                    "below",
                ),
                Variant("fcn", "convolutions", Network(PYRAMID), (33.6, 55.2, 35.3)),
            ),
        ),
    ),
)

MULTI_TASK = Ablation(
    "multi-task",
    "Table 3",
    "box",
    "AP",
    (
        Comparison(
            "a pyramid, from stride 4 on",
            (
                Variant(
                    "faster-roi-pool",
                    "Faster R-CNN, RoIPool",
                    Network(PYRAMID, roi_layer="roi_pool", masks=False),
                    (36.2, 59.1, 39.0),
                    "below",
                ),
                Variant(
                    "faster-roi-align",
                    "Faster R-CNN, RoIAlign",
                    Network(PYRAMID, masks=False),
                    (37.3, 59.6, 40.3),
                    "below",
                ),
                Variant("mask", "Mask R-CNN", Network(PYRAMID), (38.2, 60.3, 41.7)),
            ),
        ),
    ),
)

ABLATIONS = {
    ablation.name: ablation
    for ablation in (ROI_LAYER, SAMPLING, MASK_LOSS, CLASS_AGNOSTIC, MASK_BRANCH, MULTI_TASK)
}
