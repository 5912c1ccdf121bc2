"""How a model lies on the ranks of a run: which ranks read data of their own, and what each holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from statemachine_trainer.parallel.gradient_sync import GradientSync, is_cut_up
from statemachine_trainer.parallel.parallel_errors import UnsupportedWrapper


@dataclass(frozen=True)
class Layout:
    """How a model lies on the ranks, read from its parameters and from what averages its gradients.

    Attributes:
        size: Ranks of the run.
        rank: This one.
        mesh: The shape of the mesh of devices; `(size,)` where each rank has the whole model.
        axes: What each axis of the mesh does: "shard" cuts up parameters, "replicate" repeats them.
            Each rank of both reads data of its own.
        cut_up: Names of the parameters of which each rank has a part.
        by: What averages the gradients; "" if nothing does.
    """

    size: int
    rank: int
    mesh: tuple[int, ...]
    axes: tuple[str, ...]
    cut_up: frozenset[str]
    by: str

    @classmethod
    def of(cls, model: nn.Module, sync: GradientSync, rank: int, size: int) -> Layout:
        """Read the layout of a model.

        Args:
            model: The model, without wrappers.
            sync: How its gradients are averaged.
            rank: This rank.
            size: Ranks of the run.

        Raises:
            UnsupportedWrapper: Its parameters are cut up in a way that is not supported.
        """
        cut: dict[str, Any] = {name: p for name, p in model.named_parameters() if is_cut_up(p)}
        if not cut:
            return cls(size, rank, (size,), ("replicate",), frozenset(), sync.by)
        kind = type(model).__name__
        if sync.by != "fully_shard":
            raise UnsupportedWrapper(
                f"The parameters of {kind} are cut up among the ranks, and not by fully_shard: tensor "
                f"parallelism ({next(iter(cut))!r} is a DTensor) is not supported. Use "
                "fully_shard(model) alone, or DistributedDataParallel(model)."
            )
        meshes = {
            (tuple(one.device_mesh.shape), tuple(map(_axis, one.placements)))
            for one in cut.values()
        }
        (mesh, axes), *others = sorted(meshes)
        if others or "other" in axes or len(axes) > 2 or axes[0:2] == ("shard", "shard"):
            raise UnsupportedWrapper(
                f"The parameters of {kind} are cut up in several ways: over different meshes, or by tensor "
                "parallelism together with fully_shard. That is not supported. Give all calls of fully_shard one "
                "mesh of one axis, or of two, (replicate, shard), and leave out tensor parallelism."
            )
        together = 1
        for length in mesh:
            together *= length
        if together != size:
            raise UnsupportedWrapper(
                f"fully_shard has cut up {kind} over {together} of the {size} ranks of this run: nothing averages "
                "the gradients of the others. Give it a mesh of all ranks: init_device_mesh(device, "
                f"({size},))."
            )
        return cls(size, rank, mesh, axes, frozenset(cut), sync.by)


def _axis(placement: Any) -> str:
    if placement.is_replicate():
        return "replicate"
    return "shard" if type(placement).__name__ == "Shard" else "other"
