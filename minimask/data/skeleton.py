"""The names of an object's keypoints, which of them lines join, and which change places in a mirror."""

import re
from dataclasses import dataclass

_SIDE = re.compile(r"(?<![a-z])(left|right)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Skeleton:
    """What a data set says about its keypoints; the same for all of its classes.

    Attributes
    ----------
    names : tuple of K str
    edges : tuple of (int, int)
        Pairs of indices into `names`, to be joined by lines. COCO's count from 1, these from 0.
    """

    names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] = ()

    @property
    def mirrored(self) -> list[int]:
        """For each keypoint, the index of the one that takes its place in a mirror: left_eye for right_eye.

        A name has a side if it contains the word left or right. A keypoint without a counterpart stays.
        """
        places = {name: k for k, name in enumerate(self.names)}
        return [places.get(_SIDE.sub(_other_side, name), k) for k, name in enumerate(self.names)]

    def category(self) -> dict[str, list]:
        """The entries of a COCO category: keypoints, and skeleton counted from 1."""
        return {"keypoints": list(self.names), "skeleton": [[a + 1, b + 1] for a, b in self.edges]}


def _other_side(match: re.Match) -> str:
    word = match.group()
    other = "right" if word.lower() == "left" else "left"
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other
