"""What stands in a saved tree for a tensor that is cut up among ranks; see `shards`."""

from __future__ import annotations

from typing import Any, Final

import torch

from statemachine_trainer.parallel import leaves, leaves_with_paths, map_leaves
from statemachine_trainer.parallel.gradient_sync import is_cut_up

_KEYS: Final = frozenset({"cut_up", "shape", "placements"})


def is_mark(value: object) -> bool:
    """Return whether a part of a tree stands for a tensor whose parts are in files beside it."""
    return isinstance(value, dict) and value.keys() == _KEYS


def take_out(tree: Any) -> tuple[Any, dict[str, Any]]:
    """Return a tree with marks where tensors are cut up, and these tensors by their paths.

    A tree without such tensors is returned as it is.
    """
    cut: dict[str, Any] = {
        path: leaf.detach()
        for path, leaf in leaves_with_paths(tree)
        if isinstance(leaf, torch.Tensor) and is_cut_up(leaf)
    }
    if not cut:
        return tree, cut
    paths = (path for path, _ in leaves_with_paths(tree))

    def marked(leaf: object) -> object:
        path = next(paths)
        if path not in cut:
            return leaf
        placements = ["R" if one.is_replicate() else f"S{one.dim}" for one in cut[path].placements]
        return {"cut_up": path, "shape": [*cut[path].shape], "placements": placements}

    return map_leaves(marked, tree), cut


def whole(tree: Any) -> Any:
    """Return a tree with whole tensors where they are cut up among ranks of which there is one only."""
    if not any(map(is_cut_up, [one for one in leaves(tree) if isinstance(one, torch.Tensor)])):
        return tree

    def gathered(leaf: Any) -> Any:
        cut: Any = leaf
        return cut.full_tensor() if isinstance(leaf, torch.Tensor) and is_cut_up(leaf) else leaf

    return map_leaves(gathered, tree)
