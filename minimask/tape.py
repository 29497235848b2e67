"""The backward pass: it visits the graph that Functions leave behind, the last one computed first.

A node of the graph is a `minimask.autograd.Function` object. Its edges lead to where its inputs came from:
(Function, output slot) for a computed input, the Tensor itself for a leaf, None for a constant.
"""

from __future__ import annotations

import heapq


def run_backward(creator, slot: int, gradient) -> None:
    """Visit the graph from `creator` against the order of creation, freeing each node on the way.

    Parameters
    ----------
    creator : Function
        What computed the output from which the pass starts.
    slot : int
        Which of the creator's outputs that is.
    gradient : array
        Of that output's shape and dtype.
    """
    pending: dict = {}  # for each node reached, [gradient, owned] or None for each of its outputs
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

    deliver(creator, slot, gradient, owned=False)
    while heap:
        node = heapq.heappop(heap)[1]
        upstream = [
            entry[0] if entry else node.xp.zeros(shape, dtype)
            for entry, (shape, dtype) in zip(pending.pop(node), node.output_kinds)
        ]
        try:
            gradients = _checked(node, node.backward(*upstream))
        except MemoryError as error:
            raise node.out_of_memory("backward", upstream, error) from error
        for i, (edge, g) in enumerate(zip(node.edges, gradients)):
            if edge is None or g is None:
                continue
            owned = _is_fresh(g, i, gradients, upstream, node.saved)
            if isinstance(edge, tuple):
                deliver(*edge, g, owned)
            else:
                accumulate(edge, g, owned)
        node.saved, node.edges = (), None


def _checked(node, gradients) -> tuple:
    """The gradients as a tuple, once their number, shapes and dtypes are seen to be right."""
    name = type(node).__name__
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    if len(gradients) != len(node.edges):
        raise RuntimeError(f"{name}.backward gave {len(gradients)} gradients for {len(node.edges)} inputs")
    for i, (g, kind) in enumerate(zip(gradients, node.input_kinds)):
        if kind is None:
            continue
        if g is None:
            raise RuntimeError(f"{name}.backward gave no gradient for input {i}, which needs one")
        if (g.shape, g.dtype) != kind:
            raise RuntimeError(
                f"{name}.backward gave a gradient of {g.shape} {g.dtype} for input {i} of {kind[0]} {kind[1]}"
            )
    return gradients


def _is_fresh(g, i: int, gradients, upstream, saved) -> bool:
    """Whether nobody else holds this array, so that it may be added to in place."""
    others = [*upstream, *saved, *gradients[:i], *gradients[i + 1 :]]
    return g.base is None and all(g is not other for other in others)


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
