"""The 80 classes of COCO by their ids, which are not consecutive: 10 of 1 to 90 were never annotated."""

from minimask.data.skeleton import Skeleton

# fmt: off
COCO_CLASSES: dict[int, str] = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck",
    9: "boat", 10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench",
    16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear",
    24: "zebra", 25: "giraffe", 27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase",
    34: "frisbee", 35: "skis", 36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat",
    40: "baseball glove", 41: "skateboard", 42: "surfboard", 43: "tennis racket", 44: "bottle",
    46: "wine glass", 47: "cup", 48: "fork", 49: "knife", 50: "spoon", 51: "bowl", 52: "banana", 53: "apple",
    54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot", 58: "hot dog", 59: "pizza", 60: "donut",
    61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed", 67: "dining table", 70: "toilet",
    72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard", 77: "cell phone", 78: "microwave",
    79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book", 85: "clock", 86: "vase",
    87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}

_FACE = ("nose", "left_eye", "right_eye", "left_ear", "right_ear")
_PARTS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
_BODY = tuple(f"{side}_{part}" for part in _PARTS for side in ("left", "right"))
PERSON = Skeleton(
    _FACE + _BODY,
    # As in COCO's file, but counted from 0: legs, hips, trunk, arms, face, ears to shoulders.
    (
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
        (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
)
"""COCO's 17 keypoints of a person."""
# fmt: on


def contiguous_labels() -> tuple[list[str], list[int]]:
    """Names and ids of labels 1 to 80, in the order of the ids: detectron2's numbering, and `data`'s."""
    return list(COCO_CLASSES.values()), list(COCO_CLASSES)


def labels_by_id() -> tuple[list[str], list[int]]:
    """Names and ids of labels 1 to 90, which are the ids: torchvision's; "N/A" where there is none."""
    ids = list(range(1, 91))
    return [COCO_CLASSES.get(i, "N/A") for i in ids], ids
