"""What a store tells of a checkpoint, and what it reads of one."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from statemachine_trainer.snapshot.checkpoint_folder import Manifest

if TYPE_CHECKING:
    from statemachine_trainer.snapshot.mapped_weights import MappedWeights


@dataclass(frozen=True)
class Info:
    """What a manifest says of a checkpoint.

    Args:
        name: what the caller named it
        path: its folder
        sequence: checkpoints of a store are numbered in the order in which they were saved
        created: when
        metadata: the caller's
        size: bytes of its state and tensors
        damage: None, or what is wrong with it as far as a look at the manifest and the sizes of
            the files tells; then all but name, path and sequence is empty
    """

    name: str
    path: Path
    sequence: int
    created: datetime
    metadata: dict[str, object]
    size: int
    damage: str | None = None


def info_of(manifest: Manifest, sequence: int, name: str, path: Path) -> Info:
    """Return what the manifest of a checkpoint says of it."""
    return Info(name, path, sequence, manifest.created, manifest.metadata, manifest.size)


def info_of_damaged(sequence: int, name: str, path: Path, damage: str) -> Info:
    """Return what is known of a checkpoint whose manifest tells nothing."""
    nothing = datetime.fromtimestamp(0, UTC)
    return Info(name, path, sequence, nothing, {}, 0, damage=damage)


@dataclass(frozen=True)
class Loaded:
    """A checkpoint read back.

    Args:
        tree: what was saved
        metadata: what the caller said of it
        path: its folder
        versions: of python, torch, numpy and whatever else the writer named
        mapped: the file in which large weights of its model still lie, if it was read with `mmap`
    """

    tree: object
    metadata: dict[str, object]
    path: Path
    versions: dict[str, str]
    mapped: MappedWeights | None = field(default=None, repr=False, compare=False)

    def taken_over(self, model: nn.Module | None = None) -> AbstractContextManager[None]:
        """Make a context in which a model is loaded from this. After it no file is in use any more.

        Args:
            model: the model; None if all of the tree is to last
        """
        if self.mapped is None:
            return nullcontext()
        tree: Any = self.tree
        return self.mapped.copied(tree["context"]["model"]["weights"], model)

    def close(self) -> None:
        """Give back the file in which weights still lie; they are gone then."""
        if self.mapped is not None:
            self.mapped.close()
