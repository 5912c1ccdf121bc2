"""Dividing a data set into folds: plain, stratified, grouped, repeated, or by scikit-learn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from statemachine_trainer.loops.errors import SettingError

Fold = tuple[torch.Tensor, torch.Tensor]
"""Indices to train on, and indices to test on."""


@runtime_checkable
class Splitter(Protocol):
    """What scikit-learn's splitters look like (`KFold`, `StratifiedGroupKFold`, ...)."""

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterable[Any]:  # noqa: N803
        """Yield pairs of arrays of indices."""
        ...


def folds_by(
    splitter: Splitter, length: int, labels: Sequence[Any] | None, groups: Sequence[Any] | None
) -> list[Fold]:
    """Let a splitter of scikit-learn's kind divide a data set."""
    y = None if labels is None else np.asarray(labels)
    pairs = splitter.split(np.zeros((length, 1)), y, groups)
    return [(_indices(train), _indices(test)) for train, test in pairs]


def make_folds(
    length: int,
    number: int,
    *,
    labels: Sequence[Any] | None = None,
    groups: Sequence[Any] | None = None,
    repeats: int = 1,
    shuffle: bool = True,
    seed: int = 0,
) -> list[Fold]:
    """Divide `length` samples into folds; each is left out once in each repeat.

    Args:
        length: How many samples there are.
        number: How many folds.
        labels: Of each sample, for folds with the same share of each label.
        groups: Of each sample; no group is on both sides of a fold.
        repeats: Divide anew so many times.
        shuffle: Whether chance divides. It comes from `seed`, never from the global generators.
        seed: Of the first repeat; the others follow from it.

    Raises:
        SettingError: It cannot be done.
    """
    if labels is not None and groups is not None:
        raise SettingError(
            "Folds that are stratified and grouped at once need a splitter of scikit-learn: "
            "KFoldLoop(StratifiedGroupKFold(5), stratify=..., groups=...)."
        )
    if repeats > 1 and not shuffle:
        raise SettingError("Without shuffling every repeat would be the same: shuffle=True.")
    _check_length("samples", length, number)
    for name, given in (("stratify", labels), ("groups", groups)):
        if given is not None and len(given) != length:
            raise SettingError(f"{name} has {len(given)} entries for {length} samples.")
    found: list[Fold] = []
    for repeat in range(repeats):
        generator = torch.Generator().manual_seed(seed + repeat) if shuffle else None
        if groups is not None:
            place = _by_groups(groups, number, generator)
        else:
            place = _by_labels([0] * length if labels is None else labels, number, generator)
        for fold in range(number):
            out = place == fold
            found.append((torch.nonzero(~out).flatten(), torch.nonzero(out).flatten()))
    return found


def _by_labels(
    labels: Sequence[Any], number: int, generator: torch.Generator | None
) -> torch.Tensor:
    """Deal the samples of each label out in turn, each label beginning where the last one ended."""
    place = torch.empty(len(labels), dtype=torch.int64)
    dealt = 0
    for members in _members(labels):
        order = _order(len(members), generator)
        for at in order:
            place[members[at]] = dealt % number
            dealt += 1
    return place


def _by_groups(
    groups: Sequence[Any], number: int, generator: torch.Generator | None
) -> torch.Tensor:
    """Put each group, the largest first, into the fold that has the fewest samples."""
    members = list(_members(groups))
    _check_length("groups", len(members), number)
    sizes = [0] * number
    place = torch.empty(len(groups), dtype=torch.int64)
    shuffled = [members[at] for at in _order(len(members), generator)]
    for group in sorted(shuffled, key=len, reverse=True):
        fold = sizes.index(min(sizes))
        sizes[fold] += len(group)
        place[group] = fold
    return place


def _members(keys: Sequence[Any]) -> Iterator[list[int]]:
    """Yield the numbers of the samples of each key, keys in the order of their first sample."""
    found: dict[Any, list[int]] = {}
    for number, key in enumerate(keys):
        found.setdefault(key.item() if hasattr(key, "item") else key, []).append(number)
    yield from found.values()


def _order(length: int, generator: torch.Generator | None) -> list[int]:
    if generator is None:
        return list(range(length))
    return [int(at) for at in torch.randperm(length, generator=generator)]


def _check_length(what: str, length: int, number: int) -> None:
    if length < number:
        raise SettingError(f"{length} {what} cannot make {number} folds. Use fewer folds.")


def _indices(found: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(found), dtype=torch.int64).clone()
