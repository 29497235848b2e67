"""The backward pass: it visits the graph that Functions leave behind, the last one computed first.

A node of the graph is a `minimask.autograd.Function` object. Its edges lead to where its inputs came from:
(Function, output slot) for a computed input, the Tensor itself for a leaf, None for a constant.
"""

from __future__ import annotations

import heapq
import sys

import numpy as np


def run_backward(roots) -> None:
    """Visit the graph from its roots in reverse order of creation, freeing each node on the way.

    Parameters
    ----------
    roots : sequence of (creator, slot, gradient)
        The outputs from which the pass starts: the Function that computed each, which of its outputs it is,
        and an array of that output's shape and dtype.
    """
    # For each node reached, [gradient, owned] or None for each of its outputs; owned: nobody else holds the
    # array, so it may be added to in place (see `_ALONE`).
    pending: dict = {}
    heap: list[tuple] = []  # of (-order, node): the node created last is popped first

    def deliver(node, slot: int, gradient, owned: bool) -> None:
        if node not in pending:
            if node.edges is None:
                raise RuntimeError(
                    f"backward: the graph was freed by an earlier backward pass (at {type(node).__name__}); "
                    "compute the output again"
                )
            pending[node] = [None] * len(node.output_kinds)
            heapq.heappush(heap, (-node.order, node))
        pending[node][slot] = _add(pending[node][slot], gradient, owned)

    for root in roots:
        deliver(*root, owned=False)
    while heap:
        node = heapq.heappop(heap)[1]
        node.check_saved()
        upstream = [
            entry[0] if entry else node.xp.zeros(shape, dtype)
            for entry, (shape, dtype) in zip(pending.pop(node), node.output_kinds)
        ]
        try:
            gradients = _checked(node, node.backward(*upstream))
        except MemoryError as error:
            raise node.out_of_memory("backward", upstream, error) from error
        for i, edge in enumerate(node.edges):
            if edge is None or gradients[i] is None:
                continue
            owned = sys.getrefcount(gradients[i]) <= _ALONE and _owns_memory(gradients[i])
            if isinstance(edge, tuple):
                deliver(*edge, gradients[i], owned)
            else:
                accumulate(edge, gradients[i], owned)
        node.saved, node.edges = (), None


def _checked(node, gradients) -> tuple:
    """The gradients as a tuple, after a check of their number, shapes and dtypes."""
    name = type(node).__name__
    gradients = tuple(gradients) if isinstance(gradients, (tuple, list)) else (gradients,)
    if len(gradients) != len(node.edges):
        raise RuntimeError(f"{name}.backward gave {len(gradients)} gradients for {len(node.edges)} inputs")
    for i, (g, kind) in enumerate(zip(gradients, node.input_kinds)):
        if kind is None:
            continue
        if g is None:
            raise RuntimeError(f"{name}.backward gave no gradient for input {i}, which needs one")
        if not hasattr(g, "base"):  # a number, or a Tensor
            raise RuntimeError(f"{name}.backward gave a {type(g).__name__} for input {i}; give an array")
        if (g.shape, g.dtype) != kind:
            gave = f"{name}.backward gave a gradient of {g.shape} {g.dtype} for input {i}"
            hint = " (do its inputs have different dtypes?)" if g.shape == kind[0] else ""
            raise RuntimeError(f"{gave} of {kind[0]} {kind[1]}{hint}")
    return gradients


def _references_of_a_tuple() -> int:
    """What `sys.getrefcount` gives for an array that nothing but a tuple holds."""
    gradients = (np.empty(0),)
    return sys.getrefcount(gradients[0])


# An array with no more references than this has no other holder, neither in the graph nor in the Function
# that returned it, and no view, which would hold it as its base. So it may be added to in place.
_ALONE = _references_of_a_tuple()


def _references_of_a_base() -> int:
    """What `sys.getrefcount` gives for an array that nothing but one view of it holds."""
    view = np.empty(1).reshape(1, 1)
    base = view.base
    return sys.getrefcount(base)


_VIEWED_ONCE = _references_of_a_base()


def _owns_memory(array) -> bool:
    """Whether the array is not a view, or is the only view of an array of its size that nobody else holds.

    The last line of a `backward` is often a `reshape`, whose array would otherwise be copied.
    """
    base = array.base
    if base is None:
        return True
    if type(base) is not type(array) or base.base is not None or base.size != array.size:
        return False
    writeable = getattr(array.flags, "writeable", True)  # CuPy's always are
    return writeable and sys.getrefcount(base) <= _VIEWED_ONCE


def _add(entry, gradient, owned: bool):
    """The sum of two gradients, as [array, owned]; only an array that belongs to this pass is written to."""
    if entry is None:
        return [gradient, owned]
    total, total_owned = entry
    if total_owned:
        total += gradient
        return [total, True]
    return [total + gradient, True]


def accumulate(leaf, gradient, owned: bool) -> None:
    """Add a gradient to ``.grad`` of a leaf Tensor."""
    if leaf.grad is None:
        leaf.grad = gradient if owned else gradient.copy()
    else:
        leaf.grad = leaf.grad + gradient


def holds(saved, array) -> bool:
    """Whether an array, or a view of the same memory, is among what was saved."""
    if isinstance(saved, dict):
        saved = tuple(saved.values())
    if isinstance(saved, (tuple, list)):
        return any(holds(value, array) for value in saved)
    if saved is array:
        return True
    base = getattr(saved, "base", None)
    return base is not None and (base is array or base is array.base)
