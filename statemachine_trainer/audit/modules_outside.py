"""Modules that a fit reaches and that are no part of its model: a loss with buffers, an average in a callback.

Their weights and buffers are written into checkpoints if the fit changes them. Those that stay as
they were, such as a frozen teacher, are not: the script makes them anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from statemachine_trainer.audit.reachable import Roots
from statemachine_trainer.data import NotExact
from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.parallel.wrappers import PlainNames, modules_of
from statemachine_trainer.snapshot.search import Search
from statemachine_trainer.snapshot.snapshot_errors import SnapshotMismatch

if TYPE_CHECKING:
    from statemachine_trainer.snapshot.repeated_search import SearchResult

Print = tuple[tuple[str, float], ...]
"""What changes if a module does: a sum of each of its tensors."""

_PIECE = 1 << 20  # elements that are added up at once


class ModulesOutside:
    """Looks whether modules outside of the model change, and keeps those that did.

    Attributes:
        prints: What each was like when the fit began, by its path.
    """

    def __init__(self) -> None:
        self.prints: dict[str, Print] = {}
        self._changed: set[str] = set()

    def watch(self, search: Search, without: Collection[object]) -> None:
        """Look at the modules as a fit begins, or goes on: what was held already stays so.

        Args:
            search: What was found of all that the fit reaches.
            without: Modules that are held elsewhere, with all that are in them.
        """
        found = _modules(search, without)
        self.prints = {path: _print(module) for path, module in found.items()}

    def state(
        self, search: Search | SearchResult, without: Collection[object]
    ) -> dict[str, dict[str, Any]]:
        """Return the tensors of those that have changed since the fit began, by path and by name."""
        written = {}
        for path, module in _modules(search, without).items():
            if path not in self._changed and self.prints.get(path) != _print(module):
                self._changed.add(path)
            if path in self._changed:
                written[path] = _tensors(module)
        return written

    def restore(
        self,
        roots: Roots,
        without: Collection[object],
        state: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Put the tensors where `state` found them.

        Raises:
            SnapshotMismatch: A module has other tensors.

        Warns:
            NotExact: A module is not there.
        """
        if not state:
            return
        found = _modules(Search(roots), without)
        for path, saved in state.items():
            if path in found:
                _load(path, found[path], saved)
                self._changed.add(path)
        if missing := [path for path in state if path not in found]:
            warnings.warn(
                "The checkpoint holds the weights of modules that are not there when the run goes on: "
                f"{', '.join(missing)}. Make them when their owner is made: no signal fires again on "
                "resuming, `fit_start` neither.",
                NotExact,
                stacklevel=level_of_caller(),
            )


def _modules(search: Search | SearchResult, without: Collection[object]) -> dict[str, nn.Module]:
    """Return the outermost modules with tensors that are found, but for some, by path."""
    known = {id(part) for one in without if isinstance(one, nn.Module) for part in modules_of(one)}
    outermost: dict[str, nn.Module] = {}
    for path, module in search.modules.items():
        if id(module) not in known:
            known |= {id(part) for part in modules_of(module)}
            outermost[path] = module
    return {path: module for path, module in outermost.items() if _tensors(module)}


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    names = PlainNames(module)
    return {
        name: one.detach()
        for group in (names.parameters, names.buffers)
        for name, one in group()
        if not is_lazy(one)
    }


def _print(module: nn.Module) -> Print:
    return tuple((name, _sum(one)) for name, one in _tensors(module).items())


def _sum(tensor: torch.Tensor) -> float:
    """Add up a tensor, each element with a weight of its own, so that one that was turned over differs."""
    if tensor.is_meta or tensor.layout is not torch.strided or not tensor.numel():
        return 0.0
    flat = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    pieces = flat.reshape(-1).split(_PIECE)
    weights = torch.linspace(1, 2, len(pieces[0]), dtype=torch.float64, device=tensor.device)
    sums = [
        (place + 1) * (piece.double() * weights[: len(piece)]).sum()
        for place, piece in enumerate(pieces)
    ]
    return float(torch.stack(sums).sum())


def _load(path: str, module: nn.Module, saved: Mapping[str, torch.Tensor]) -> None:
    ours = _tensors(module)
    differ = sorted(
        name
        for name in ours.keys() | saved.keys()
        if name not in ours or name not in saved or ours[name].shape != saved[name].shape
    )
    if differ:
        raise SnapshotMismatch(
            f"{path} is a {type(module).__name__} with other tensors than in the checkpoint: "
            f"{', '.join(differ[:5])}. Make it as it was when the checkpoint was written."
        )
    for name, tensor in ours.items():
        tensor.copy_(saved[name])
