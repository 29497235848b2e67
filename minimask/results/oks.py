"""How far off a keypoint may be: the sigmas of object keypoint similarity (OKS), COCO's measure.

    OKS = mean over labelled keypoints k of exp(-d_k^2 / (2 area (2 sigma_k)^2))

with d_k the distance and area the object's area, in pixels: a keypoint that is off by 2 sigma_k
times the object's scale, sqrt(area), counts exp(-1/2) = 0.61.
"""

import numpy as np

# COCO's keypoints of a person and their sigmas, from several people's annotations of the same keypoints.
COCO = {
    "nose": 0.026,
    "left_eye": 0.025,
    "right_eye": 0.025,
    "left_ear": 0.035,
    "right_ear": 0.035,
    "left_shoulder": 0.079,
    "right_shoulder": 0.079,
    "left_elbow": 0.072,
    "right_elbow": 0.072,
    "left_wrist": 0.062,
    "right_wrist": 0.062,
    "left_hip": 0.107,
    "right_hip": 0.107,
    "left_knee": 0.087,
    "right_knee": 0.087,
    "left_ankle": 0.089,
    "right_ankle": 0.089,
}
UNIFORM = 0.05
"""The sigma of keypoints for which nobody has measured how well annotators agree."""


def similarity(found: np.ndarray, keypoints: np.ndarray, areas: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Object keypoint similarity (OKS) of every detection with every object.

    Parameters
    ----------
    found : (D, K, 2) float
        x, y in pixels.
    keypoints : (G, K, 3) float
        x, y and visibility: 0 is not labelled.
    areas : (G,) float
        In pixels, of the objects.
    sigmas : (K,) float

    Returns
    -------
    (D, G), in 0..1; 0 for an object without a labelled keypoint.
    """
    squared = ((found[:, None] - keypoints[..., :2]) ** 2).sum(axis=3)  # (D, G, K): d^2
    each = np.exp(-squared / (2 * areas[:, None] * (2 * sigmas.astype(areas.dtype)) ** 2))
    labelled = keypoints[..., 2] > 0  # (G, K)
    return (each * labelled).sum(axis=2) / np.maximum(labelled.sum(axis=1), 1).astype(areas.dtype)


def oks_sigmas(document: dict) -> tuple[np.ndarray, str]:
    """The sigmas (K,) of a COCO document's keypoints, and a line that says which they are.

    COCO's if the categories have COCO's keypoints, else `UNIFORM`.
    """
    names = next(names for category in document["categories"] if (names := category.get("keypoints")))
    if list(names) == list(COCO):
        return np.array(list(COCO.values())), "keypoint: OKS with COCO's sigmas"
    told = f"keypoint: OKS with sigma {UNIFORM} for all: COCO has none for these keypoints"
    return np.full(len(names), UNIFORM), told
