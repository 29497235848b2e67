"""Usual mistakes in the exercises, each made in the text of its solution, as a reader might make it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from minimask.lessons.exercises.exercise import OVERWRITTEN

SOLUTIONS = Path(__file__).parent.parent / "tutorials" / "solutions"


def solution(name: str, *changes: tuple[str, str]) -> Callable:
    """A solution's function, with parts of its text replaced."""
    text = (SOLUTIONS / f"{name}.py").read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text, f"{name}: the solution has no {old!r}"
        text = text.replace(old, new)
    return function(name, text)


def function(name: str, text: str) -> Callable:
    """The function of that name in a text."""
    namespace: dict = {}
    exec(compile(text, f"{name}.py", "exec"), namespace)
    return namespace[name]


NO_PADDING_BEFORE = ("padding : padding + height, padding : padding + width", ":height, :width")

# How both directions of RoIAlign read the boxes.
ALIGN_MISTAKES = [
    ("no batch index", ("n = int(roi[0])", "n = 0")),
    ("axes swapped", ("x1, y1, x2, y2 =", "y1, x1, y2, x2 =")),
    ("the scale left out", ("roi[1:] * scale", "roi[1:]")),
    ("no half pixel", (" - 0.5  #", "  #")),
    ("+1", ("roi[1:] * scale", "(roi[1:] + [0, 0, 1, 1]) * scale")),
    ("the box rounded", ("roi[1:] * scale", "np.round(roi[1:] * scale)")),
    (
        "the box clipped",
        (
            "for r, roi in enumerate(rois):",
            "for r, roi in enumerate(rois):\n"
            "        roi = np.clip(roi, 0, [9, *np.array([width, height] * 2) / scale])",
        ),
    ),
    ("axes swapped", ("bin_h, bin_w = (", "bin_w, bin_h = (")),
    (
        "axes swapped",
        (
            "bin_h, bin_w = (y2 - y1) / output_size[0], (x2 - x1) / output_size[1]",
            "bin_h = bin_w = (y2 - y1) / output_size[0]",
        ),
    ),
    (
        "axes swapped",
        (
            "bin_h, bin_w = (y2 - y1) / output_size[0], (x2 - x1) / output_size[1]",
            "bin_h = bin_w = (x2 - x1) / output_size[1]",
        ),
    ),
    ("half a pixel added", (" - 0.5  #", " + 0.5  #")),
    ("half a pixel subtracted from the box", ("roi[1:] * scale - 0.5", "(roi[1:] - 0.5) * scale")),
    ("+1", ("roi[1:] * scale", "roi[1:] * scale + [0, 0, 1, 1]")),
    ("the box rounded", ("roi[1:] * scale", "np.floor(roi[1:] * scale)")),
    ("the box rounded", ("roi[1:] * scale", "np.round(roi[1:]) * scale")),
    ("widened", ("(y2 - y1)", "max(y2 - y1, 1)"), ("(x2 - x1)", "max(x2 - x1, 1)")),
    ("points at k / n", ("(a + 0.5)", "a"), ("(b + 0.5)", "b")),
    (
        "points that lie outside read 0",
        ("-1 <= v <= height and -1 <= u <= width", "0 <= v <= height - 1 and 0 <= u <= width - 1"),
    ),
    ("points far outside", ("if not (-1 <= v <= height and -1 <= u <= width)", "if False")),
    (
        "exactly a pixel outside",
        ("-1 <= v <= height and -1 <= u <= width", "-1 < v < height and -1 < u < width"),
    ),
    (
        "points outside not moved in",
        ("    v, u = min(max(v, 0.0), height - 1.0), min(max(u, 0.0), width - 1.0)\n", ""),
        ("int(v), int(u)", "int(np.floor(v)), int(np.floor(u))"),
        ("min(top + 1, height - 1)", "top + 1"),
        ("min(left + 1, width - 1)", "left + 1"),
        (
            "            yield row",
            "            if 0 <= row < height and 0 <= column < width:\n                yield row",
        ),
    ),
    ("the bin's row and column", ("y1 + (i +", "y1 + (j +"), ("x1 + (j +", "x1 + (i +")),
]

# For each exercise: how the verdict must call it, and the replacements (old text, new text) in its solution.
# Suppression of all that has been found, whatever its class; then the best `most`.
NMS_OF_ALL = (
    "    left, kept = boxes[proposals, labels], []\n"
    "    for i in range(len(found)):\n"
    "        if (box_iou(left[[i]], left[kept]) <= nms_threshold).all():\n"
    "            kept.append(i)\n"
    "    kept = kept[:most]\n"
    "    proposals, labels, found = proposals[kept], labels[kept], [found[k] for k in kept]\n"
)

MISTAKES = {
    "tape_backward": [
        ("overwritten", ("gradients[name] + g if name in gradients else g", "g")),
        (
            "added in place",
            ("{output: gradient}", "{output: gradient.copy()}"),
            (
                "gradients[name] = gradients[name] + g if name in gradients else g",
                "gradients[name] = gradients[name].__iadd__(g) if name in gradients else g",
            ),
        ),
        ("walked forwards", ("reversed(tape)", "tape")),
        (
            "overwritten",
            (
                "gradients[name] = gradients[name] + g if name in gradients else g",
                "gradients.setdefault(name, g)",
            ),
        ),
    ],
    "relu_backward": [
        ("gy left out", ("gy * (x > 0)", "1.0 * (x > 0)")),
        ("the mask is taken from gy", ("x > 0", "gy > 0")),
        ("let through where x is negative", ("x > 0", "x < 0")),
        ("this is the forward pass", ("gy * (x > 0)", "x * (x > 0)")),
        ("the sign", ("gy *", "-gy *")),
        ("a factor of 2", ("gy *", "2 * gy *")),
        ("all zeros", ("gy *", "0 * gy *")),
        ("axes swapped", ("(x > 0)", "(x > 0)\n    return (gy * (x > 0)).T"), ("return gy * (x > 0)\n", "")),
        ("let through where x is 0", ("x > 0", "x >= 0")),
    ],
    "softmax_cross_entropy_backward": [
        ("not divided", ("gy * gx / len(gx)", "gy * gx")),
        ("gy left out", ("gy * gx", "gx")),
        ("1 is not subtracted", ("-= 1", "-= 0")),
        ("softmax along the wrong axis", ("axis=1", "axis=0")),
        ("the sign", ("gy * gx", "-gy * gx")),
        ("divided by the number of classes", ("/ len(gx)", "/ gx.shape[1]")),
        ("exp of large logits overflows", ("logits - logits.max(axis=1, keepdims=True)", "logits")),
    ],
    "im2col": [
        ("padded on one side", ("padding : padding + h, padding : padding + w", ":h, :w")),
        ("the kernel's elements upside down", ("cols[:, :, i, j] =", "cols[:, :, kh - 1 - i, kw - 1 - j] =")),
        ("axes swapped", ("cols[:, :, i, j] =", "cols[:, :, j, i] =")),
        (
            "the stride left out",
            (": i + p * stride : stride, j : j + q * stride : stride]", ": i + p, j : j + q]"),
        ),
        (
            "rounded up",
            ("(h + 2 * padding - kh) // stride", "-((kh - h - 2 * padding) // stride)"),
            ("(w + 2 * padding - kw) // stride", "-((kw - w - 2 * padding) // stride)"),
            ("h + 2 * padding, w + 2 * padding", "h + 2 * padding + stride, w + 2 * padding + stride"),
        ),
        ("not padded", ("kh, kw = kernel", "(kh, kw), padding = kernel, 0")),
    ],
    "conv2d_forward": [
        ("the kernel upside down", ("w[:, :, i, j]", "w[:, :, kh - 1 - i, kw - 1 - j]")),
        ("the kernel's rows and columns", ("w[:, :, i, j]", "w[:, :, j, i]")),
        ("the bias left out", (" + b[:, None, None]", "")),
        ("padded on one side", NO_PADDING_BEFORE),
        (
            "the stride left out",
            (": i + p * stride : stride, j : j + q * stride : stride]", ": i + p, j : j + q]"),
        ),
        (
            "rounded up",
            ("(height + 2 * padding - kh) // stride", "-((kh - height - 2 * padding) // stride)"),
            ("(width + 2 * padding - kw) // stride", "-((kw - width - 2 * padding) // stride)"),
            ("height + 2 * padding, width + 2", "height + 2 * padding + stride, width + stride + 2"),
        ),
        ("not padded", ("    p, q =", "    padding = 0\n    p, q =")),
        (
            "the channels not added up",
            ('"ncpq,oc->nopq", pixels, w[:, :, i, j]', '"npq,o->nopq", pixels[:, -1], w[:, -1, i, j]'),
        ),
    ],
    "conv2d_backward": [
        ("the kernel upside down", ("w[:, :, i, j])", "w[:, :, kh - 1 - i, kw - 1 - j])")),
        ("the kernel upside down", ("gw[:, :, i, j]", "gw[:, :, kh - 1 - i, kw - 1 - j]")),
        ("the kernel's rows and columns", ("w[:, :, i, j])", "w[:, :, j, i])")),
        ("padded on one side", NO_PADDING_BEFORE),
        (
            "padded on one side",
            (
                "gx = g_padded[:, :, padding : padding + height, padding : padding + width]",
                "gx = g_padded[:, :, :height, :width]",
            ),
        ),
        ("a mean over the images", ('"nopq,ncpq->oc", gy,', '"nopq,ncpq->oc", gy / max(n, 1),')),
        ("overwritten by the last image", ("gy, padded[window]", "gy[-1:], padded[window][-1:]")),
        ("overwritten by the last image", ("gy.sum", "gy[-1:].sum")),
        ("a factor of 0.025", ("gy.sum(axis=(0, 2, 3))", "gy.sum(axis=(0, 2, 3)) / max(gy[:, 0].size, 1)")),
        (OVERWRITTEN, ("g_padded[window] +=", "g_padded[window] =")),
        ("of the first image only", ("gy, padded[window]", "gy[:1], padded[window][:1]")),
        ("of the first image only", ("gy.sum", "gy[:1].sum")),
        (
            "overwritten by the last output position",
            ("gy, padded[window]", "gy[..., -1:, -1:], padded[window][..., -1:, -1:]"),
        ),
        ("the stride left out", ("i + p * stride, stride", "i + p"), ("j + q * stride, stride", "j + q")),
        *[
            ("the bias is added in every image", ("gy.sum(axis=(0, 2, 3))", f"gy.sum(axis={axes})"))
            for axes in ((0,), (2, 3), (0, 2), (0, 3), (0, 1), (1, 2, 3))
        ],
        (
            "pixels left over",
            (
                "padding : padding + height, padding : padding + width]\n    return",
                "padding:-padding, padding:-padding]\n    return",
            ),
            ("gx = g_padded", "gx = g_padded[:, :, : (p - 1) * stride + kh, : (q - 1) * stride + kw]"),
        ),
    ],
    "max_pool_backward": [
        (
            "each of several equal maxima",
            (
                "i, j = np.unravel_index(window.argmax(), window.shape)",
                "i, j = np.nonzero(window == window.max())",
            ),
        ),
        (
            "spread",
            ("i, j = np.unravel_index(window.argmax(), window.shape)", "i, j = np.indices(window.shape)"),
            ("gy[n, c, p, q]", "gy[n, c, p, q] / kernel**2"),
        ),
        (OVERWRITTEN, ("left + j] +=", "left + j] =")),
        (
            "several equal maxima share",
            (
                "i, j = np.unravel_index(window.argmax(), window.shape)",
                "i, j = np.nonzero(window == window.max())",
            ),
            ("gy[n, c, p, q]", "gy[n, c, p, q] / len(i)"),
        ),
        (
            "the last of equal maxima",
            ("window.argmax()", "window.size - 1 - window.ravel()[::-1].argmax()"),
        ),
        (
            "the first of equal maxima by column",
            ("window.argmax(), window.shape", "window.T.argmax(), window.shape[::-1]"),
            ("left + j]", "left + i]"),
            ("top + i", "top + j"),
        ),
        ("window p begins at p kernel", ("p * stride, q * stride", "p * kernel, q * kernel")),
    ],
    "group_norm_backward": [
        ("the mean taken", (" - g.mean(axis=2, keepdims=True)", "")),
        ("the variance taken", (" - x_hat * (g * x_hat).mean(axis=2, keepdims=True)", "")),
        ("weight left out", ("(gy * weight[:, None, None])", "gy")),
        ("mean and variance of a channel", ("(len(x), groups, -1)", "(len(x), x.shape[1], -1)")),
        (
            "mean and variance taken for constants",
            (" - g.mean(axis=2, keepdims=True) - x_hat * (g * x_hat).mean(axis=2, keepdims=True)", ""),
        ),
        ("eps left out", (" + eps", "")),
        ("the weight's gradient is that of x", ("gy * x_hat.reshape(x.shape)", "gy * x")),
        *[
            ("weight and bias serve every image", (f"{of}.sum(axis=(0, 2, 3))", f"{of}.sum(axis={axes})"))
            for of in ("gy", "(gy * x_hat.reshape(x.shape))")
            for axes in ((0,), (2, 3), (0, 2), (0, 3))
        ],
    ],
    "box_iou": [
        (
            "+1",
            ("boxes[:, 2] - boxes[:, 0]", "boxes[:, 2] - boxes[:, 0] + 1"),
            ("boxes[:, 3] - boxes[:, 1]", "boxes[:, 3] - boxes[:, 1] + 1"),
            ("high - low, 0", "high - low + 1, 0"),
        ),
        ("the intersection is twice", (" - intersection", "")),
        ("negative sides", ("np.maximum(high - low, 0)", "high - low")),
        (
            "the area cut off",
            ("np.maximum(high - low, 0)", "high - low"),
            ("sides[..., 0] * sides[..., 1]", "np.maximum(sides[..., 0] * sides[..., 1], 0)"),
        ),
        ("the intersection, not divided", (" / np.where(union > 0, union, 1)", "")),
        (
            "divided by the smaller area",
            ("area(a)[:, None] + area(b) - intersection", "np.minimum(area(a)[:, None], area(b))"),
        ),
        (
            "0 / 0",
            ("np.where(union > 0, intersection / np.where(union > 0, union, 1), 0)", "intersection / union"),
        ),
    ],
    "box_encode": [
        ("+1", ("boxes[:, 2:] - boxes[:, :2]", "boxes[:, 2:] - boxes[:, :2] + 1")),
        (
            "axes swapped",
            ("boxes[:, :2] + size / 2, size", "(boxes[:, :2] + size / 2)[:, ::-1], size[:, ::-1]"),
        ),
        (
            "coded against the box",
            (
                "(center, size), (anchor_center, anchor_size) =",
                "(anchor_center, anchor_size), (center, size) =",
            ),
        ),
        ("no logarithm", ("np.log(size / anchor_size)", "size / anchor_size")),
        ("from corner to corner", ("(center - anchor_center)", "(boxes - anchors)[:, :2]")),
        ("dx and dy not divided", ("(center - anchor_center) / anchor_size", "center - anchor_center")),
        ("dw and dh not divided", ("size / anchor_size)", "size)")),
        (
            "nothing is divided",
            ("(center - anchor_center) / anchor_size", "center - anchor_center"),
            ("size / anchor_size)", "size)"),
        ),
        (
            "width and height swapped",
            ("(center - anchor_center) / anchor_size", "(center - anchor_center) / anchor_size[:, ::-1]"),
        ),
        ("width and height swapped", ("size / anchor_size)", "size / anchor_size[:, ::-1])")),
        ("width and height swapped", ("size / anchor_size)", "size[:, ::-1] / anchor_size)")),
        ("width and height swapped", ("size / anchor_size)", "(size / anchor_size)[:, ::-1])")),
        ("width and height swapped", ("/ anchor_size", "/ anchor_size[:, ::-1]")),
        (
            "divided by the box's own size",
            ("(center - anchor_center) / anchor_size", "(center - anchor_center) / size"),
        ),
    ],
    "box_decode": [
        ("dw and dh", ("np.minimum(deltas[:, 2:], limit)", "deltas[:, 2:]")),
        ("dx and dy limited", ("deltas[:, :2] *", "np.minimum(deltas[:, :2], limit) *")),
        (
            "+1",
            ("anchors[:, 2:] - anchors[:, :2]", "anchors[:, 2:] - anchors[:, :2] + 1"),
            ("center + size / 2]", "center + size / 2 - 1]"),
        ),
        ("axes swapped", ("deltas[:, :2]", "deltas[:, 1::-1]"), ("deltas[:, 2:]", "deltas[:, :1:-1]")),
        ("the centre taken", ("center - size / 2, center + size / 2", "center, center + size")),
        ("dx and dy not times", ("deltas[:, :2] * anchor_size", "deltas[:, :2]")),
        ("dx and dy lead away", ("+ anchor_center", "+ anchors[:, :2]")),
        (
            "limited on both sides",
            ("np.minimum(deltas[:, 2:], limit)", "np.clip(deltas[:, 2:], -limit, limit)"),
        ),
        ("width and height swapped", ("deltas[:, 2:]", "deltas[:, :1:-1]")),
    ],
    "nms": [
        (
            "a suppressed box",
            ("kept = []", "kept, seen = [], []"),
            ("for k in kept)", "for k in seen)"),
            ("            kept.append(i)", "            kept.append(i)\n        seen.append(i)"),
        ),
        ("the lowest score", ("-scores", "scores")),
        (
            "+1",
            ("b[2]) - max(a[0], b[0])", "b[2]) - max(a[0], b[0]) + 1"),
            ("b[3]) - max(a[1], b[1])", "b[3]) - max(a[1], b[1]) + 1"),
            ("] - a[0])", "] - a[0] + 1)"),
            ("] - a[1])", "] - a[1] + 1)"),
            ("] - b[0])", "] - b[0] + 1)"),
            ("] - b[1])", "] - b[1] + 1)"),
        ),
        (
            "positions after sorting",
            (
                'for i in np.argsort(-scores, kind="stable"):',
                'boxes = boxes[np.argsort(-scores, kind="stable")]\n    for i in range(len(boxes)):',
            ),
        ),
        ("in the order of the list", ("return np.array(kept,", "return np.array(sorted(kept),")),
        ("nothing is suppressed", ("<= threshold", "< 2")),
        ("an IoU of just the threshold", ("<= threshold", "< threshold")),
        (
            "of equal scores",
            ('np.argsort(-scores, kind="stable")', 'np.argsort(scores, kind="stable")[::-1]'),
        ),
        ("negative sides", ("max(width, 0) * max(height, 0)", "width * height")),
    ],
    "anchors": [
        ("no half pixel", ("(j + 0.5) * stride, (i + 0.5) * stride", "j * stride, i * stride")),
        (
            "the ratio taken",
            ("size / np.sqrt(ratio), size * np.sqrt(ratio)", "size * np.sqrt(ratio), size / np.sqrt(ratio)"),
        ),
        ("the area changes", ("size / np.sqrt(ratio), size * np.sqrt(ratio)", "size, size * ratio")),
        (
            "axes swapped",
            (
                "for i in range(height):\n        for j in range(width):",
                "for j in range(width):\n        for i in range(height):",
            ),
        ),
        (
            "the sizes before the ratios",
            ("for ratio in ratios", "for first in sizes"),
            ("for size in sizes", "for ratio in ratios"),
            ("w, h = size / np.sqrt(ratio), size *", "w, h = first / np.sqrt(ratio), first *"),
        ),
        ("x and y swapped", ("x, y =", "y, x =")),
        (
            "height and width swapped",
            ("in range(height)", "in range(width )"),
            ("in range(width)", "in range(height)"),
        ),
        ("the stride left out", ("(j + 0.5) * stride, (i + 0.5) * stride", "j + 0.5, i + 0.5")),
        (
            "the middle of a cell moved",
            ("(j + 0.5) * stride, (i + 0.5) * stride", "j * stride + 0.5, i * stride + 0.5"),
        ),
    ],
    "roi_pool": [
        ("no batch index", ("n = int(roi[0])", "n = 0")),
        ("axes swapped", ("x1, y1, x2, y2 =", "y1, x1, y2, x2 =")),
        ("the scale left out", ("rounded(v * scale)", "rounded(v)")),
        ("the last pixel left out", ("last - first + 1", "last - first")),
        ("rounded down", ("rounded(v * scale)", "math.floor(v * scale)")),
        (
            "the last pixel left out",
            ("last - first + 1", "last - first"),
            ("rounded(v * scale)", "round(v * scale)"),
        ),
        ("rounded down", ("rounded(v * scale)", "int(v * scale)")),
        ("halves rounded to even", ("rounded(v * scale)", "round(v * scale)")),
        ("halves rounded up", ("rounded(v * scale)", "math.floor(v * scale + 0.5)")),
        (
            "not rounded",
            ("rounded(v * scale)", "v * scale"),
            (
                "np.clip(begin, 0, length), np.clip(end, 0, length)",
                "*np.clip([begin, end], 0, length).astype(int)",
            ),
        ),
        ("bins end before floor", ("math.ceil", "math.floor")),
        ("the average", (".max(axis", ".mean(axis")),
    ],
    "roi_align_forward": [
        *ALIGN_MISTAKES,
        ("not divided", (" / sampling_ratio**2", "")),
        (
            "the maximum of the points",
            ("np.zeros((len(rois), x.shape[1], *output_size), x.dtype)", "np.full((5, 3, 2, 3), -np.inf)"),
            ("            for row, column, weight in neighbours(v, u, height, width):\n", ""),
            (
                "                y[r, :, i, j] += weight * x[n, :, row, column]",
                "            value = sum(\n"
                "                (w * x[n, :, k, m] for k, m, w in neighbours(v, u, height, width)),\n"
                "                np.zeros(3),\n"
                "            )\n"
                "            y[r, :, i, j] = np.maximum(y[r, :, i, j], value)",
            ),
            (" / sampling_ratio**2", ""),
        ),
    ],
    "roi_align_backward": [
        *ALIGN_MISTAKES,
        ("not divided", (" / sampling_ratio**2", "")),
        (OVERWRITTEN, ("row, column] +=", "row, column] =")),
        (
            OVERWRITTEN,
            ("for r, roi in enumerate(rois):", "for r, roi in reversed([*enumerate(rois)]):"),
            ("row, column] +=", "row, column] ="),
        ),
        ("a factor of 0.5", ("weight * gy", "0.5 * weight * gy")),
        (
            "overwritten by the image's last RoI",
            ("        n = int(roi[0])\n", "        n = int(roi[0])\n        gx[n] = 0\n"),
        ),
        (
            OVERWRITTEN,
            ("        n = int(roi[0])\n", "        n, before = int(roi[0]), gx.copy()\n        gx[n] = 0\n"),
            ("    return gx", "        gx[n] = np.where(gx[n] == 0, before[n], gx[n])\n    return gx"),
        ),
    ],
    "mask_loss": [
        ("summed", ("max(targets.size, 1)", "1")),
        ("a mean over RoIs only", ("max(targets.size, 1)", "max(len(targets), 1)")),
        ("the channel before", ("np.arange(len(labels)), labels", "np.arange(len(labels)), labels - 1")),
        (
            "a softmax",
            (
                "    # -t log",
                "    e = np.exp(logits - logits.max(1, keepdims=True))\n"
                "    p = (e / e.sum(1, keepdims=True))[own]\n    # -t log",
            ),
            (
                "losses = np.maximum(x, 0) - x * targets + np.log1p(np.exp(-np.abs(x)))",
                "losses = -targets * np.log(p) - (1 - targets) * np.log(1 - p)",
            ),
            (
                "gradient[own] = (sigmoid - targets) / count",
                "gradient = -(e / e.sum(1, keepdims=True)) * ((p - targets) / (1 - p))[:, None] / count\n"
                "    gradient[own] = (p - targets) / count",
            ),
        ),
        (
            "all channels",
            ("x = logits[own]", "x, targets = logits, np.repeat(targets[:, None], logits.shape[1], 1)"),
            ("gradient[own] =", "gradient[:] ="),
        ),
        ("the sign", ("(sigmoid - targets)", "(targets - sigmoid)")),
        *[
            (
                "the logarithm of 0",
                (
                    "losses = np.maximum(x, 0) - x * targets + np.log1p(np.exp(-np.abs(x)))",
                    f"s = 1 / (1 + np.exp(-x))\n    "
                    f"losses = -targets * np.log(s + {eps}) - (1 - targets) * np.log(1 - s + {eps})",
                ),
            )
            for eps in (0.0, 1e-12, 1e-8)
        ],
        ("summed", ("(sigmoid - targets) / count", "sigmoid - targets")),
    ],
    "assign_levels": [
        ("the natural logarithm", ("np.log2", "np.log")),
        (
            "no floor",
            ("np.floor(4 + np.log2(size / canonical))", "4 + np.log2(size / canonical)"),
            (", dtype=np.int64", ""),
        ),
        ("rounded to the nearest", ("np.floor", "np.round")),
        ("rounded up", ("np.floor", "np.ceil")),
        ("one side alone", ("(y2 - y1)", "(x2 - x1)")),
        ("one side alone", ("(x2 - x1)", "(y2 - y1)")),
        ("one side alone", ("np.sqrt((x2 - x1) * (y2 - y1))", "max(x2 - x1, y2 - y1)")),
        ("one side alone", ("np.sqrt((x2 - x1) * (y2 - y1))", "min(x2 - x1, y2 - y1)")),
        ("the area, not its root", ("np.sqrt(", "(")),
        ("not clamped", ("min(max(level, lowest), highest)", "level")),
        ("not clamped", ("min(max(level, lowest), highest)", "max(level, lowest)")),
        ("not clamped", ("min(max(level, lowest), highest)", "min(level, highest)")),
        ("the wrong way round", ("4 + np.log2", "4 - np.log2")),
        ("the 4 left out", ("4 + np.log2", "np.log2")),
        ("counted from the lowest", ("highest))", "highest) - lowest)")),
        ("+1", ("(x2 - x1) * (y2 - y1)", "(x2 - x1 + 1) * (y2 - y1 + 1)")),
    ],
    "last_seen": [
        (
            "the first stage at which",
            (
                "    return np.where(there, stages, -1).max(axis=1, initial=-1)",
                "    return np.array([min(stages[row], default=-1) for row in there], np.int64)",
            ),
        ),
        (
            "the stage before the first",
            (
                "    return np.where(there, stages, -1).max(axis=1, initial=-1)",
                "    last = np.full(len(objects), -1)\n    for g, row in enumerate(there):\n"
                "        while last[g] + 1 in stages[row]:\n            last[g] += 1\n    return last",
            ),
        ),
        (
            "the stage of the box that fits",
            (
                "    return np.where(there, stages, -1).max(axis=1, initial=-1)",
                "    best = np.hstack([box_iou(objects, boxes) * there, np.zeros((len(objects), 1))])\n"
                "    which = np.where(there.any(axis=1), best.argmax(axis=1), len(boxes))\n"
                "    return np.append(stages, -1)[which]",
            ),
        ),
        (
            "the stage of the best box, however",
            (
                "    return np.where(there, stages, -1).max(axis=1, initial=-1)",
                "    best = box_iou(objects, np.vstack([boxes, np.zeros((1, 4))])).argmax(axis=1)\n"
                "    return np.append(stages, -1)[best]",
            ),
        ),
        ("more than the threshold", (">= threshold", "> threshold")),
        ("0 where it is never there", ("stages, -1)", "stages, 0)"), ("initial=-1", "initial=0")),
        (
            "each box for one object",
            (
                "    return",
                "    if len(objects):\n"
                "        own = box_iou(objects, boxes).argmax(axis=0)\n"
                "        there &= own == np.arange(len(objects))[:, None]\n"
                "    return",
            ),
        ),
        ("+1", ("box_iou(objects, boxes)", "box_iou(objects + [0, 0, 1, 1], boxes + [0, 0, 1, 1])")),
    ],
    "detect": [
        (
            "suppression over all classes",
            ("<= nms_threshold", "< 2"),
            ("[:most]", ""),
            ("    return proposals, labels,", NMS_OF_ALL + "    return proposals, labels,"),
        ),
        (
            "the best are taken before",
            (
                "    found = []\n    for",
                "    found, rest = [], np.sort(probabilities[:, 1:].ravel())[::-1]\n"
                "    cut = rest[:most].min(initial=2)\n    for",
            ),
            ("scores[i] > score_threshold", "scores[i] > score_threshold and scores[i] >= cut"),
        ),
        ("the background detected", ("range(1, ", "range(0, ")),
        ("labels counted from 0", ("(scores[i], i, label)", "(scores[i], i, label - 1)")),
        ("only the best class", ("scores[i] >", "probabilities[i, 1:].max() == scores[i] >")),
        ("only the best class", ("scores[i] >", "probabilities[i].max() == scores[i] >")),
        (
            "the box of another",
            ("boxes[:, label]", "boxes[:, label - 1]"),
        ),
        ("the box of another", ("boxes[:, label]", "boxes[:, 0]")),
        ("class by class", ("sorted(found, reverse=True)[:most]", "found[:most]")),
        (
            "class by class",
            (
                "sorted(found, reverse=True)[:most]",
                "sorted(sorted(found, reverse=True)[:most], key=lambda f: f[2])",
            ),
        ),
        ("the best `most` of each", ("for i in kept]", "for i in kept[:most]]"), ("[:most]  #", "  #")),
        ("all that suppression leaves", ("[:most]", "")),
        ("a score of just", ("> score_threshold", ">= score_threshold")),
        ("nothing is suppressed", ("<= nms_threshold", "< 2")),
        (
            "the two thresholds",
            ("score_threshold, nms_threshold, most", "nms_threshold, score_threshold, most"),
        ),
        ("the place among", ("np.array([i for _, i, _ in found], dtype=np.int64)", "np.arange(len(found))")),
    ],
    "paste_mask": [
        ("no half pixel", ("np.arange(pixels) + 0.5", "np.arange(pixels)")),
        ("+1", ("x1, y1, x2, y2 = box", "x1, y1, x2, y2 = box + [0, 0, 1, 1]")),
        ("axes swapped", ("x1, y1, x2, y2 = box", "y1, x1, y2, x2 = box")),
        ("the box rounded", ("x1, y1, x2, y2 = box", "x1, y1, x2, y2 = np.round(box)")),
        (
            "the box clipped",
            ("x1, y1, x2, y2 = box", "x1, y1, x2, y2 = np.clip(box, 0, [*image_size[::-1]] * 2)"),
        ),
        *[
            (
                "the box cut to whole pixels",
                ("x1, y1, x2, y2 = box", f"x1, y1, x2, y2 = {whole}(box)"),
                ("np.arange(pixels) + 0.5", f"np.arange(pixels) + {center}"),
                (
                    "return np.maximum(1 - np.abs(position[:, None] - np.arange(cells)), 0)",
                    "return np.floor(position + 0.5)[:, None] == np.arange(cells)",
                ),
            )
            for whole in ("np.trunc", "np.floor", "np.rint")
            for center in (0, 0.5)
        ],
        (
            "each pixel given the cell",
            (
                "return np.maximum(1 - np.abs(position[:, None] - np.arange(cells)), 0)",
                "return np.floor(position + 0.5)[:, None] == np.arange(cells)",
            ),
        ),
        (
            "beyond the outermost centres",
            ("position[:, None]", "np.clip(position, 0, cells - 1)[:, None]"),
            (", 0)  # a tent", ", 0) * ((low <= centers) & (centers <= high))[:, None]  # a tent"),
        ),
        (
            "cut off at the box",
            (", 0)  # a tent", ", 0) * ((low <= centers) & (centers <= high))[:, None]  # a tent"),
        ),
        ("the outermost cells' centres", ("* cells - 0.5", "* (cells - 1)")),
        ("no half cell", ("* cells - 0.5", "* cells")),
    ],
    "transfer_weights": [
        (
            "by place",
            (
                "def transfer_weights(mine, theirs):",
                "def transfer_weights(mine, theirs):\n    theirs = dict(zip(mine, theirs.values()))",
            ),
        ),
        (
            "an array of another shape was taken",
            ("fits = name in theirs and theirs[name].shape == array.shape", "fits = name in theirs"),
        ),
        (
            "an array of another shape was broadcast",
            (
                "theirs[name].shape == array.shape",
                "theirs[name].shape in (array.shape, (1,))",
            ),
            ("theirs[name] if fits", "np.broadcast_to(theirs[name], array.shape) if fits"),
        ),
        (
            "an array of another shape was cut",
            ("theirs[name].shape == array.shape", "theirs[name][: len(array)].shape == array.shape"),
            ("theirs[name] if fits", "theirs[name][: len(array)] if fits"),
        ),
        (
            "all or nothing",
            ("fits = name in theirs and", "fits = mine.keys() == theirs.keys() and"),
        ),
        ("anew turned round", ("append(not fits)", "append(fits)")),
    ],
    "grouped_split": [
        (
            "a group is parted",
            (
                "validation[groups == group] = 1",
                "validation[np.flatnonzero(groups == group)[: wanted - validation.sum()]] = 1",
            ),
        ),
        (
            "wanted counts images",
            ("for group in order:", "for group in order[:wanted]:"),
            ("validation.sum() >= wanted", "False"),
        ),
        ("training and validation", ("return validation", "return 1 - validation")),
        ("a group too many", (">= wanted", "> wanted")),
        (
            "a group too few",
            ("validation.sum() >= wanted", "validation.sum() + (groups == group).sum() > wanted"),
        ),
        ("not in the given order", ("in order:", "in np.sort(order):")),
    ],
    "keypoint_loss_backward": [
        ("not divided", (" / max(valid.sum(), 1)", "")),
        ("divided by all keypoints", ("max(valid.sum(), 1)", "valid.size")),
        ("gy left out", ("gy * gx", "gx")),
        (
            "keypoints that are not valid",
            ("gx * valid[:, :, None]", "gx"),
            ("max(valid.sum(), 1)", "valid.size"),
        ),
        ("1 is not subtracted", ("-= 1", "-= 0")),
        (
            "one softmax for each row",
            (
                "np.exp(flat - flat.max(axis=2, keepdims=True))",
                "np.exp(logits - logits.max(axis=3, keepdims=True))",
            ),
            (
                "gx = e / e.sum(axis=2, keepdims=True)",
                "gx = (e / e.sum(axis=3, keepdims=True)).reshape(flat.shape)",
            ),
        ),
        (
            "one softmax over all keypoints",
            ("flat.max(axis=2, keepdims=True)", "flat.max(axis=(1, 2), keepdims=True)"),
            ("e.sum(axis=2, keepdims=True)", "e.sum(axis=(1, 2), keepdims=True)"),
        ),
        (
            "sigmoids",
            ("    gx = e / e.sum(axis=2, keepdims=True)", "    gx = 0.5 * (1 + np.tanh(flat / 2))"),
        ),
        ("x and y swapped", ("gx[roi, keypoint, cells]", "gx[roi, keypoint, cells % m * m + cells // m]")),
        ("the sign", ("gy * gx", "-gy * gx")),
    ],
    "oks": [
        ("sigma not doubled", ("(2 * sigmas)", "sigmas")),
        ("the 2 before the area", ("(2 * areas[j]", "(areas[j]")),
        ("area is the scale squared", ("areas[j] *", "areas[j] ** 2 *")),
        ("the square root of the area", ("areas[j] *", "np.sqrt(areas[j]) *")),
        ("the distance not squared", (".sum(axis=1)", ".sum(axis=1) ** 0.5")),
        ("all keypoints counted", ("each[labelled]", "each")),
        ("all keypoints counted", ("each[labelled].mean()", "each[labelled].sum() / len(sigmas)")),
        ("hidden keypoints left out", ("true[:, 2] > 0", "true[:, 2] == 2")),
        ("axes swapped", ("return similarity", "return similarity.T")),
    ],
    "sgd_step": [
        ("Nesterov", ("w - rate * v_new,", "w - rate * (momentum * v_new + g + decay * w),")),
        (
            "decay after momentum",
            ("(g + decay * w)", "g"),
            ("w - rate * v_new,", "w - rate * (v_new + decay * w),"),
        ),
        ("decay after momentum", ("(g + decay * w)", "g"), ("w - rate", "(1 - rate * decay) * w - rate")),
        ("momentum left out", ("momentum * v + ", "")),
        ("the rate inside", ("(g +", "rate * (g +"), ("rate * v_new,", "v_new,")),
        ("the old velocity", ("rate * v_new,", "rate * v,")),
        ("the gradient damped", ("(g +", "(1 - momentum) * (g +")),
        ("decay left out", (" + decay * w", "")),
        ("decay pushes", ("+ decay", "- decay")),
        ("twice the decay", ("decay *", "2 * decay *")),
        ("uphill", ("w - rate", "w + rate")),
    ],
    "warmup_cosine": [
        ("warm-up begins at 0", ("(step + 1)", "step")),
        ("no warm-up", ("        if step", "        warmup = 0\n        if step")),
        ("the cosine begins at step 0", ("(step - warmup) / (total - warmup)", "step / total")),
        ("a whole cosine", ("np.pi *", "2 * np.pi *")),
        ("a quarter of a cosine", ("(1 + np.cos(np.pi * done)) / 2", "np.cos(np.pi / 2 * done)")),
        ("a straight line", ("(1 + np.cos(np.pi * done)) / 2", "(1 - done)")),
        ("1 + cos not halved", ("(1 + np.cos(np.pi * done)) / 2", "(1 + np.cos(np.pi * done))")),
        (
            "beyond the end",
            ("min((step - warmup) / (total - warmup), 1)", "(step - warmup) / (total - warmup)"),
        ),
    ],
    "paired_difference": [
        (
            "as if the two had nothing in common",
            (
                "sum((d - mean) ** 2 for d in differences) / (n - 1)",
                "np.var(first, ddof=1) + np.var(second, ddof=1)",
            ),
        ),
        ("the spread divided by n", ("(n - 1)", "n")),
        ("the spread of one seed", ("variance / n", "variance")),
        ("the mean's spread falls with the root", ("np.sqrt(variance / n)", "np.sqrt(variance) / n")),
        ("t left out", ("t * ", "")),
        ("1.96 holds for many", ("t * ", "1.96 * ")),
        ("the other way round", ("first[i] - second[i]", "second[i] - first[i]")),
        ("the median", ("return mean,", "mean = np.median(differences)\n    return mean,")),
    ],
    "average_precision": [
        ("not by falling score", ("np.argsort(-scores)", "range(len(scores))")),
        ("by rising score", ("-scores", "scores")),
        (
            "an object counts each time",
            ("np.where(taken, -1, iou[d])", "iou[d]"),
            ("taken[best] |= left[best] >= threshold", "hit = left[best] >= threshold"),
            ("found.append(taken.sum())", "found.append(hit + (found[-1] if found else 0))"),
        ),
        ("a detection whose best", ("left.argmax()", "iou[d].argmax()")),
        ("an IoU of the threshold", (">= threshold", "> threshold")),
        (
            "precision at a recall",
            (
                "max(np.array(precision)[recall >= k / 100], default=0)",
                "next(iter(np.array(precision)[recall >= k / 100]), 0)",
            ),
        ),
        ("11 recalls", ("k / 100", "k / 10"), ("range(101)", "range(11)")),
        (
            "the area under",
            (
                "np.mean(at)",
                "sum(max(precision[k:]) * gain for k, gain in enumerate(np.diff(recall, prepend=0)))",
            ),
        ),
        (
            "recalls that are never reached",
            (
                "default=0) for k in range(101)",
                "default=0) for k in range(101) if max(recall, default=-1) >= k / 100",
            ),
            ("np.mean(at)", "np.mean(at or [0])"),
        ),
        ("recall is a share", ("/ iou.shape[1]", "/ max(len(iou), 1)")),
    ],
}
