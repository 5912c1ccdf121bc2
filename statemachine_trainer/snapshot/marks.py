"""What stands in a saved tree for a tensor that is cut up among ranks; see `shards`."""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any, Final

import torch

from statemachine_trainer.parallel import leaves_with_paths, map_leaves
from statemachine_trainer.parallel.containers import NO_CONTAINERS, parts
from statemachine_trainer.parallel.cut_up import is_cut_up

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
    if not _is_any_cut_up(tree):
        return tree

    def gathered(leaf: Any) -> Any:
        cut: Any = leaf
        return cut.full_tensor() if isinstance(leaf, torch.Tensor) and is_cut_up(leaf) else leaf

    return map_leaves(gathered, tree)


def _is_any_cut_up(tree: Any) -> bool:
    """Return whether a tensor of a tree is cut up.

    The types in each container are looked at in C: a permutation of a million indices takes no time.
    """
    if "torch.distributed.tensor" not in sys.modules:
        return False  # whoever cuts up a tensor imports it
    left: list[Any] = [tree]
    seen: dict[int, object] = {}  # held, so that no other container gets the id of one meanwhile
    while left:
        one = left.pop()
        kind = type(one)
        if kind is dict or kind is OrderedDict:
            inside: Any = one.values()
        else:
            inside = one if kind is list or kind is tuple else parts(one)
        if inside is None:
            if isinstance(one, torch.Tensor) and is_cut_up(one):
                return True
        elif not NO_CONTAINERS.issuperset(map(type, inside)) and id(one) not in seen:
            seen[id(one)] = one
            for part in inside:  # no call of a comprehension for each container
                if type(part) not in NO_CONTAINERS:
                    left.append(part)
    return False
