"""Low-rank changes applied unmerged, each to its own rows of a batch, by forward hooks on the linear modules.

The base weights are never touched, so base and organisms answer from one copy. Rows of one adapter stand together in
the batch; a hook adds ``scale * (x @ A.T) @ B.T`` to their slice. The reference pass of training uses the same hooks on all rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from backend.models.adapters import Adapter, LoraWeights


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Name to (out_features, in_features) of every linear module."""
    return {name: (m.out_features, m.in_features) for name, m in model.named_modules() if isinstance(m, nn.Linear)}


@contextmanager
def applied(model: nn.Module, routes: Sequence[tuple[slice, Adapter]]) -> Iterator[None]:
    """Apply each adapter to its slice of the batch's rows for the time of the block.

    Args:
        routes: Slices of the first axis, (batch, position, d_model) inputs, with the adapter of these rows.
    """
    by_module: dict[str, list[tuple[slice, LoraWeights]]] = {}
    for rows, adapter in routes:
        for name, weights in adapter.modules.items():
            by_module.setdefault(name, []).append((rows, weights))
    handles = []
    try:
        for name, changes in by_module.items():
            handles.append(model.get_submodule(name).register_forward_hook(partial(_add_changes, changes)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_changes(changes: list[tuple[slice, LoraWeights]], _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    x = inputs[0]
    if len(changes) == 1 and changes[0][0] == slice(None):
        return output + _change(changes[0][1], x, output)
    changed = output.clone()
    for rows, weights in changes:
        changed[rows] += _change(weights, x[rows], output)
    return changed


def _change(weights: LoraWeights, x: Tensor, output: Tensor) -> Tensor:
    """``scale * B(A(x))``, computed in the base's dtype."""
    low = x @ weights.a.T.to(output.dtype)
    return low @ (weights.b.T * weights.scale).to(output.dtype)
