"""Right answers to the exercises other than the solutions: other orders, loops, lists, careless dtypes."""

from __future__ import annotations

import math

import numpy as np


def tape_backward(tape, output, gradient):
    sums = {output: np.zeros(gradient.shape) + gradient}  # float64, whatever came in
    for call in tape[::-1]:
        if call.output not in sums:
            continue
        for name, g in zip(call.inputs, call.backward(sums[call.output])):
            sums[name] = sums.get(name, 0) + g
    return sums


def tape_backward_in_place(tape, output, gradient):
    gradients = {output: gradient.copy()}
    for call in tape[::-1]:
        g_output = gradients.get(call.output)
        if g_output is not None:
            for name, g in zip(call.inputs, call.backward(g_output)):
                if name in gradients:
                    gradients[name] += g
                else:
                    gradients[name] = g.copy()
    return gradients


def relu_backward(gy, x):
    gx = np.zeros(x.shape)
    for i, j in np.ndindex(x.shape):
        if x[i, j] > 0:
            gx[i, j] = gy[i, j]
    return gx


def relu_backward_as_a_tuple_of_rows(gy, x):
    return tuple(g * (v > 0) for g, v in zip(gy, x)) if len(x) else gy


def relu_backward_as_lists(gy, x):
    return [[g if v > 0 else 0.0 for g, v in zip(*rows)] for rows in zip(gy, x)] if len(x) else gy


def softmax_cross_entropy_backward(gy, logits, labels):
    gx = []
    for row, label in zip(logits, labels):
        e = np.exp(row - max(row))
        gx.append(gy / len(logits) * (e / sum(e) - (np.arange(len(row)) == label)))
    return np.stack(gx)


def im2col(x, kernel, stride, padding):
    x = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(2, 3))
    return windows[:, :, ::stride, ::stride].transpose(0, 1, 4, 5, 2, 3)


def conv2d_forward(x, w, b, stride, padding):
    (n, c, height, width), (outs, _, kh, kw) = x.shape, w.shape
    p, q = (height + 2 * padding - kh) // stride + 1, (width + 2 * padding - kw) // stride + 1
    y = np.zeros((n, outs, p, q))
    for at in np.ndindex(y.shape):
        image, o, row, column = at
        total = 0
        for i in reversed(range(kh)):
            for j in reversed(range(kw)):
                v, u = row * stride + i - padding, column * stride + j - padding
                if 0 <= v < height and 0 <= u < width:
                    for channel in range(c):
                        total += w[o, channel, i, j] * x[image, channel, v, u]
        y[at] = total + b[o]
    return y


def conv2d_backward(gy, x, w, stride, padding):
    kh, kw = w.shape[2:]
    wide = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    gx, gw, gb = np.zeros_like(wide), np.zeros_like(w), np.zeros(len(w), w.dtype)
    for p, q in np.ndindex(gy.shape[2:]):
        window = (..., slice(p * stride, p * stride + kh), slice(q * stride, q * stride + kw))
        g = gy[:, :, p, q]  # (N, O)
        gx[window] += np.einsum("no,ocij->ncij", g, w)
        gw += np.einsum("no,ncij->ocij", g, wide[window])
        gb += g.sum(axis=0)
    return gx[:, :, padding : padding + x.shape[2], padding : padding + x.shape[3]], gw, gb


def max_pool_backward(gy, x, kernel, stride):
    gx = np.zeros(x.shape, x.dtype)
    for n, c, p, q in np.ndindex(gy.shape):
        best = (p * stride, q * stride)
        for i in range(p * stride, p * stride + kernel):
            for j in range(q * stride, q * stride + kernel):
                if x[n, c, i, j] > x[n, c, best[0], best[1]]:
                    best = (i, j)
        gx[n, c, best[0], best[1]] += gy[n, c, p, q]
    return gx


def group_norm_backward(gy, x, weight, groups, eps):
    gx, size = np.zeros_like(x), x.shape[1] // groups
    g_weight, g_bias = np.zeros_like(weight), np.zeros_like(weight)
    for n in range(len(x)):
        for k in range(groups):
            own = slice(k * size, (k + 1) * size)
            values, g = x[n, own], gy[n, own] * weight[own, None, None]
            mean = values.sum() / values.size
            std = np.sqrt((values**2).sum() / values.size - mean**2 + eps)
            x_hat = (values - mean) / std
            gx[n, own] = (values.size * g - g.sum() - x_hat * (g * x_hat).sum()) / (values.size * std)
            g_weight[own] += (gy[n, own] * x_hat).sum(axis=(1, 2))
            g_bias[own] += gy[n, own].sum(axis=(1, 2))
    return [gx, g_weight, g_bias]


def box_iou(a, b):
    found = np.zeros((len(a), len(b)))
    for i, (x1, y1, x2, y2) in enumerate(a):
        for j, (u1, v1, u2, v2) in enumerate(b):
            w, h = max(min(x2, u2) - max(x1, u1), 0), max(min(y2, v2) - max(y1, v1), 0)
            union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - w * h
            if union > 0:
                found[i, j] = w * h / union
    return found


def box_iou_where_computed_before(a, b):
    w = np.clip(np.minimum(a[:, None, 2], b[:, 2]) - np.maximum(a[:, None, 0], b[:, 0]), 0, None)
    h = np.clip(np.minimum(a[:, None, 3], b[:, 3]) - np.maximum(a[:, None, 1], b[:, 1]), 0, None)
    area_a, area_b = ((c[:, 2] - c[:, 0]) * (c[:, 3] - c[:, 1]) for c in (a, b))
    return np.nan_to_num(w * h / (area_a[:, None] + area_b - w * h))


def box_encode(boxes, anchors):
    (x1, y1, x2, y2), (u1, v1, u2, v2) = boxes.T, anchors.T
    wa, ha = u2 - u1, v2 - v1
    dx, dy = ((x1 + x2) - (u1 + u2)) / 2 / wa, ((y1 + y2) - (v1 + v2)) / 2 / ha
    return np.stack([dx, dy, np.log(x2 - x1) - np.log(wa), np.log(y2 - y1) - np.log(ha)], axis=1)


def box_encode_row_by_row(boxes, anchors):
    return [box_encode(*(c[None] for c in pair))[0] for pair in zip(boxes, anchors)]


def box_decode(deltas, anchors, limit):
    boxes = []
    for (dx, dy, dw, dh), (x1, y1, x2, y2) in zip(deltas, anchors):
        w, h = (x2 - x1) * math.exp(min(dw, limit)), (y2 - y1) * math.exp(min(dh, limit))
        x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
        boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return np.array(boxes)


def nms(boxes, scores, threshold):
    left, kept = sorted(range(len(boxes)), key=lambda i: -scores[i]), []
    while left:
        first, *left = left
        kept.append(first)
        left = [i for i in left if box_iou(boxes[[first]], boxes[[i]])[0, 0] <= threshold]
    return kept


def nms_with_marks(boxes, scores, threshold):
    order, gone = np.argsort(-scores, kind="stable"), np.zeros(len(boxes), bool)
    for k, i in enumerate(order):
        if not gone[i]:
            rest = order[k + 1 :]
            gone[rest] |= box_iou(boxes[[i]], boxes[rest])[0] > threshold
    return order[~gone[order]]


def anchors(sizes, ratios, stride, height, width):
    y, x = np.mgrid[:height, :width] * stride + stride / 2
    centers = np.stack([x, y, x, y], axis=2).reshape(-1, 1, 4)
    shapes = [[-s * r**-0.5, -s * r**0.5, s * r**-0.5, s * r**0.5] for r in ratios for s in sizes]
    return (centers + np.array(shapes) / 2).reshape(-1, 4)


def roi_pool(x, rois, output_size, scale):
    (ph, pw), (height, width) = output_size, x.shape[2:]
    y = np.zeros((len(rois), x.shape[1], ph, pw))
    for r, roi in enumerate(rois):
        edges = roi[1:] * scale
        x1, y1, x2, y2 = (int(v) for v in np.sign(edges) * np.floor(np.abs(edges) + 0.5))
        w, h = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
        for i, j in np.ndindex(ph, pw):
            rows = [v for v in range(y1 + i * h // ph, y1 - (-(i + 1) * h // ph)) if 0 <= v < height]
            columns = [u for u in range(x1 + j * w // pw, x1 - (-(j + 1) * w // pw)) if 0 <= u < width]
            if rows and columns:
                y[r, :, i, j] = x[int(roi[0])][:, rows][:, :, columns].max(axis=(1, 2))
    return y


def _weights(low, high, bins, n, length):
    """(bins, length): how much each pixel of an axis counts in each bin of RoIAlign."""
    at = low + (np.arange(bins * n) + 0.5) * (high - low) / (bins * n) - 0.5
    tents = np.maximum(1 - abs(np.clip(at, 0, length - 1)[:, None] - np.arange(length)), 0)
    tents[(at < -1) | (at > length)] = 0
    return tents.reshape(bins, n, length).mean(axis=1)


def _matrices(rois, output_size, shape, scale, n):
    for image, x1, y1, x2, y2 in rois * [1, *[scale] * 4]:
        rows = _weights(y1, y2, output_size[0], n, shape[0])
        yield int(image), rows, _weights(x1, x2, output_size[1], n, shape[1])


def roi_align_forward(x, rois, output_size, scale, sampling_ratio):
    y = np.zeros((len(rois), x.shape[1], *output_size))
    for r, (n, rows, columns) in enumerate(_matrices(rois, output_size, x.shape[2:], scale, sampling_ratio)):
        y[r] = rows @ x[n] @ columns.T
    return y


def roi_align_backward(gy, rois, x_shape, scale, sampling_ratio):
    gx, bins = np.zeros(x_shape), gy.shape[2:]
    for r, (n, rows, columns) in enumerate(_matrices(rois, bins, x_shape[2:], scale, sampling_ratio)):
        gx[n] += rows.T @ gy[r] @ columns
    return gx


def mask_loss(logits, labels, targets):
    gradient, loss = np.zeros(logits.shape), 0
    for r, label in enumerate(labels):
        for i, j in np.ndindex(targets.shape[1:]):
            x, t = float(logits[r, label, i, j]), float(targets[r, i, j])
            loss += max(x, 0) - x * t + math.log1p(math.exp(-abs(x)))
            gradient[r, label, i, j] = (math.exp(min(x, 0)) / (1 + math.exp(-abs(x))) - t) / targets.size
    return loss / max(targets.size, 1), gradient


def mask_loss_of_nothing_is_zero(logits, labels, targets):
    if len(labels) == 0:
        return 0, logits * 0
    x = logits[np.arange(len(labels)), labels]
    gradient = np.zeros_like(logits)
    gradient[np.arange(len(labels)), labels] = (1 / (1 + np.exp(-np.clip(x, -500, 80))) - targets) / x.size
    return float((np.logaddexp(0, x) - targets * x).mean()), gradient


def paste_mask(mask, box, image_size):
    wide, image, cells = np.pad(mask, 1), np.zeros(image_size), len(mask)
    x1, y1, x2, y2 = box
    for i, j in np.ndindex(image_size):
        v, u = (i + 0.5 - y1) / (y2 - y1) * cells + 0.5, (j + 0.5 - x1) / (x2 - x1) * cells + 0.5  # in `wide`
        if 0 <= v < cells + 1 and 0 <= u < cells + 1:
            top, left = int(v), int(u)
            a, b = v - top, u - left
            upper = (1 - b) * wide[top, left] + b * wide[top, left + 1]
            image[i, j] = (1 - a) * upper + a * ((1 - b) * wide[top + 1, left] + b * wide[top + 1, left + 1])
    return image


def assign_levels(boxes, canonical, lowest, highest):
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    with np.errstate(divide="ignore"):
        levels = 4 + np.log2(width * height / canonical**2) / 2
    return np.floor(np.clip(levels, lowest, highest)).astype(int)


def last_seen(objects, boxes, stages, threshold):
    last = []
    for x1, y1, x2, y2 in objects:
        seen = -1
        for (u1, v1, u2, v2), stage in zip(boxes, stages):
            both = max(min(x2, u2) - max(x1, u1), 0) * max(min(y2, v2) - max(y1, v1), 0)
            union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - both
            if stage > seen and both >= threshold * union:
                seen = int(stage)
        last.append(seen)
    return last


def detect(probabilities, boxes, score_threshold, nms_threshold, most):
    """Each class's boxes moved far away from the others': suppressed together, they do not meet."""
    proposals, labels = np.nonzero(probabilities > score_threshold)
    proposals, labels = proposals[labels > 0], labels[labels > 0]
    scores = probabilities[proposals, labels]
    apart = boxes[proposals, labels] + 1000 * labels[:, None]
    kept = nms(apart, scores, nms_threshold)[:most]
    return proposals[kept], labels[kept], scores[kept]


def sgd_step(w, g, v, rate, momentum, decay):
    new = momentum * v + g
    new += decay * w
    return [w - rate * new, new]


def warmup_cosine(steps, base, warmup, total):
    done = np.clip((steps - warmup) / (total - warmup), 0, 1)
    return base * np.minimum((steps + 1) / max(warmup, 1), 1) * np.cos(np.pi * done / 2) ** 2


def paired_difference(first, second, t):
    d = np.subtract(first, second)
    mean = np.mean(d)
    half = t * np.linalg.norm(d - mean) / np.sqrt(len(d) * (len(d) - 1))
    return np.array(mean), mean - half, mean + half


def average_precision(iou, scores, threshold):
    left, points = set(range(iou.shape[1])), []
    for k, d in enumerate(sorted(range(len(scores)), key=lambda d: -scores[d]), start=1):
        best = max(left, key=lambda g: iou[d, g], default=None)
        if best is not None and iou[d, best] >= threshold:
            left.remove(best)
        found = iou.shape[1] - len(left)
        points.append((found / iou.shape[1], found / k))
    return sum(max((p for r, p in points if r >= k / 100), default=0) for k in range(101)) / 101
