"""How a model lies on the ranks of a run: which ranks read data of their own, and what each holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from statemachine_trainer.parallel.cut_up import is_cut_up, is_fully_sharded
from statemachine_trainer.parallel.gradient_sync import GradientSync
from statemachine_trainer.parallel.parallel_errors import UnsupportedWrapper


@dataclass(frozen=True)
class Layout:
    """How a model lies on the ranks, read from its parameters and from what averages its gradients.

    Attributes:
        size: Ranks of the run.
        rank: This one.
        data_rank: Which of the ranks that read data of their own this is. Ranks of one number hold
            parts of the same layers (tensor parallelism), and read the same data.
        data_size: How many read data of their own.
        cut_up: Names of the parameters of which each rank has a part.
        several_meshes: Whether they lie on several meshes, or others on none: torch adds no norms of them.
        by: What averages the gradients; "" if nothing does.
    """

    size: int
    rank: int
    data_rank: int
    data_size: int
    cut_up: frozenset[str]
    several_meshes: bool
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
            return cls(size, rank, rank, size, frozenset(), False, sync.by)
        kind, first = type(model).__name__, next(iter(cut))
        if sync.by not in ("", "fully_shard"):
            raise UnsupportedWrapper(
                f"The parameters of {kind} are cut up among the ranks ({first!r} is a DTensor), and it is in a "
                f"{sync.by}. That is not supported. Give the axis of data of the mesh to fully_shard(model, "
                'mesh=mesh["data"]).'
            )
        meshes = {id(one.device_mesh): one.device_mesh for one in cut.values()}
        data = _data_mesh(model) if sync.by else None
        together = 1 if data is None else data.size()
        if any("other" in map(_axis, one.placements) for one in cut.values()):
            raise UnsupportedWrapper(
                f"Parameters of {kind} are sums that are not added up yet. Cut them up by Shard, or repeat them by "
                "Replicate."
            )
        # Where layers are cut up by tensor parallelism, their mesh is that of all ranks.
        if together != size and max(one.size() for one in meshes.values()) != size:
            by = sync.by or "Tensor parallelism"
            raise UnsupportedWrapper(
                f"{by} has cut up {kind} over {max(one.size() for one in meshes.values())} of the {size} ranks of "
                "this run: nothing averages the gradients of the others. Give it a mesh of all ranks: "
                f"init_device_mesh(device, ({size},)); or, for tensor parallelism within groups, one of two axes, "
                "(data, tensor), whose axis of data is given to fully_shard."
            )
        number = 0 if data is None else _place_in(data)
        several = len(meshes) > 1 or len(cut) < len([*model.parameters()])
        return cls(size, rank, number, together, frozenset(cut), several, sync.by)


def _data_mesh(model: nn.Module) -> Any:
    """Return the mesh over which `fully_shard` averages the gradients of a model."""
    for module in model.modules():
        if is_fully_sharded(module):
            state: Any = module._get_fsdp_state()  # type: ignore[operator]
            group = getattr(state, "_fsdp_param_group", None)
            if group is not None:
                return group.mesh_info.mesh
    raise UnsupportedWrapper(
        f"The parameters of {type(model).__name__} are cut up, and no fully_shard of it has any: call it on the model "
        "after its parts."
    )


def _place_in(mesh: Any) -> int:
    """Return the number of this rank in a mesh, row by row."""
    number = 0
    for place, length in zip(mesh.get_coordinate(), mesh.shape, strict=True):
        number = number * length + place
    return number


def _axis(placement: Any) -> str:
    if placement.is_replicate():
        return "replicate"
    return "shard" if hasattr(placement, "dim") else "other"
