"""Exercises about fine-tuning on one's own images: whose weights fit, and which images may validate.

Shapes: N images, G groups, P arrays of a network.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minimask.lessons.exercises.exercise import exercise

# ----------------------------------------------------------------------------------------------- weights


def _networks(rng) -> dict[str, tuple]:
    def arrays(**shapes):
        return {name.replace("__", "."): rng.normal(size=shape) for name, shape in shapes.items()}

    mine = arrays(conv1=(4, 3), norm=(2, 3), rows=(4, 5), conv2=(4, 3))
    mine |= arrays(head__weight=(3, 5), head__bias=(3,), mask=(2, 2))
    theirs = arrays(conv2=(4, 3), norm=(3, 2), rows=(4, 3), conv1=(4, 3))
    theirs |= arrays(head__bias=(1,), extra=(2, 2), head__weight=(4, 5))
    return {
        "another head": (mine, theirs),
        "the same network": (mine, {name: array + 1 for name, array in mine.items()}),
        "no weights": (mine, {}),
    }


def _transfer(
    mine: dict, theirs: dict, unfit: Callable = lambda ours, other: ours, told: bool = True
) -> dict:
    """The right answer, or a wrong one: with something else where a name has another shape.

    With `told`, the answer says that this begins anew; else it passes for theirs if it is not ours.
    """
    fits = {name: name in theirs and theirs[name].shape == array.shape for name, array in mine.items()}
    state = {
        name: theirs[name] if fits[name] else unfit(array, theirs[name]) if name in theirs else array
        for name, array in mine.items()
    }
    anew = [state[name] is array if not told else not fits[name] for name, array in mine.items()]
    return state | {"anew": np.array(anew, np.int64)}


def _by_place(mine, theirs):
    return _transfer(mine, dict(zip(mine, theirs.values())))


def _places(unfit: Callable) -> list[Callable]:
    """A mistake about another shape, noticed under "anew" or not."""
    return [lambda *a: _transfer(*a, unfit), lambda *a: _transfer(*a, unfit, told=False)]


def _broadcast(ours, other):
    return np.broadcast_to(other, ours.shape) if other.shape == (1,) else ours


def _cut(ours, other):
    part = other[: len(ours)]
    return part if part.shape == ours.shape else ours


def _all_or_nothing(mine, theirs):
    fits = mine.keys() == theirs.keys() and all(theirs[name].shape == mine[name].shape for name in mine)
    return _transfer(mine, theirs if fits else {})


def _turned_round(mine, theirs):
    state = _transfer(mine, theirs)
    return state | {"anew": 1 - state["anew"]}


@exercise(
    _networks,
    {
        "by place: the order of arrays differs between networks, their names say what they are": _by_place,
        "an array of another shape was taken": _places(lambda ours, other: other),
        "an array of another shape was broadcast": _places(_broadcast),
        "an array of another shape was cut: its rows are of other classes": _places(_cut),
        "all or nothing: what fits is worth having even if the rest does not fit": _all_or_nothing,
        "anew turned round: 1 marks what begins anew": _turned_round,
    },
)
def transfer_weights(mine, theirs):
    """Fill a network with another's weights as far as they fit, and say what begins anew.

    mine : dict of name to array, a network's fresh weights
    theirs : dict of name to array, another's trained ones

    Give state : dict with the names of mine. Under each is the trained array where theirs has one
    of that name and shape, and the fresh one where it does not. One more entry, "anew", is (P,) int
    in the order of mine: 1 where the fresh array was kept, 0 elsewhere.
    """
    return _transfer(mine, theirs)


# ------------------------------------------------------------------------------------------------- splits

_GROUPS = np.array([3, 1, 1, 2, 0, 3, 2, 1, 4, 4, 4, 0])
_ORDER = np.array([2, 4, 1, 0, 3])


def _split(groups, order, wanted, enough: Callable = np.greater_equal) -> np.ndarray:
    validation = np.zeros(len(groups), np.int64)
    for group in order:
        if enough(validation.sum(), wanted):
            break
        validation[groups == group] = 1
    return validation


def _parted(groups, order, wanted):
    position = np.argsort(order)[groups] if len(order) else groups
    first = np.argsort(position, kind="stable")[:wanted]
    return np.isin(np.arange(len(groups)), first).astype(np.int64)


def _too_few(groups, order, wanted):
    validation = np.zeros(len(groups), np.int64)
    for group in order:
        if validation.sum() + (groups == group).sum() > wanted:
            break
        validation[groups == group] = 1
    return validation


@exercise(
    lambda rng: {
        "a group goes beyond what is wanted": (_GROUPS, _ORDER, 4),
        "groups make just what is wanted": (_GROUPS, _ORDER, 5),
        "nothing wanted": (_GROUPS, _ORDER, 0),
        "more wanted than there are": (_GROUPS, _ORDER, 20),
        "groups of any numbers": (7 * _GROUPS + 3, 7 * _ORDER + 3, 4),
        "no images": (np.zeros(0, np.int64), np.zeros(0, np.int64), 3),
    },
    {
        "a group is parted: some of its images train, others validate": _parted,
        "wanted counts images, not groups": lambda groups, order, wanted: _split(
            groups, order[:wanted], len(groups) + 1
        ),
        "training and validation have changed places": lambda *a: 1 - grouped_split(*a),
        "a group too many: it was enough already": lambda *a: _split(*a, enough=np.greater),
        "a group too few: validation is smaller than wanted": _too_few,
        "not in the given order": lambda groups, order, wanted: _split(groups, np.sort(order), wanted),
    },
)
def grouped_split(groups, order, wanted):
    """Choose images to validate on, so that no group is split.

    groups : (N,) int, which photo (scene, patient, field, ...) each image is of
    order : (G,) int, every group once, shuffled
    wanted : int, the least number of images to validate on

    Give validation : (N,) int, 1 for an image to validate on and 0 for one to train on. Take whole
    groups, in the given order, until there are `wanted` images or more.
    """
    return _split(groups, order, wanted)
