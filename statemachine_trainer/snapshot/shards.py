"""Tensors that are cut up among ranks, in a checkpoint: each rank writes and reads parts of its own.

In the tree of such a checkpoint a mark stands for each of them, with its shape. Its parts are in
files beside the tree, `shard-RANK.safetensors`, under names that say where they belong. Who writes
which part, and who reads which, is planned by torch.distributed.checkpoint: what several ranks hold
is written once. Its own files are not used, for they are pickles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from statemachine_trainer.parallel import leaves_with_paths, map_leaves
from statemachine_trainer.parallel.cut_up import is_cut_up
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.parallel.wrappers import PlainNames
from statemachine_trainer.snapshot import reading
from statemachine_trainer.snapshot.filesystem import FileSystem, LocalFileSystem
from statemachine_trainer.snapshot.marks import is_mark
from statemachine_trainer.snapshot.snapshot_errors import Damaged, SnapshotMismatch

_PART: Final = re.compile(r"(.*)@([\d,]*)", re.DOTALL)


def parts_of(ranks: Ranks, cut: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the parts that this rank writes, by the names that they have in its file. A collective.

    Ranks tell each other shapes and places, and no numbers. The parts share the memory of the tensors.

    Args:
        ranks: The ranks.
        cut: Tensors of this rank that are cut up, by their paths.
    """
    writer = _Planned()
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    save(cut, storage_writer=writer, planner=planner, process_group=ranks.group)
    return writer.parts


def file_of(rank: int) -> str:
    """Return the name of the file with the parts that a rank has written."""
    return f"shard-{rank}.safetensors"


def with_parts(tree: Any, folder: Path, model: nn.Module) -> Any:
    """Return a tree from a checkpoint with tensors in the place of marks.

    They are cut up as the parameters of the model are, of which this process reads its own parts.
    Without such parameters they are whole. Tensors that are whole in the checkpoint are cut up too,
    if they belong to such parameters.

    Args:
        tree: A tree of the checkpoint, or a part of it.
        folder: The checkpoint.
        model: The model that they are for.

    Raises:
        Damaged: A part is missing.
        SnapshotMismatch: Two parts do not fit together.
    """
    found = dict(leaves_with_paths(tree, is_leaf=is_mark))
    marks = {path: cast("dict[str, Any]", one) for path, one in found.items() if is_mark(one)}
    owners = _owners(tree, found, model)
    parts = _read_parts(marks, owners, folder, model) if marks else {}
    paths = iter(found)

    def filled(leaf: object) -> object:
        path = next(paths)
        if path in parts:
            return parts[path]
        owner = owners.get(path)
        alone = owner is None or not is_cut_up(owner)
        return leaf if alone else _cut(cast(torch.Tensor, leaf), owner)

    return map_leaves(filled, tree, is_leaf=is_mark)


def _read_parts(
    marks: Mapping[str, Mapping[str, Any]],
    owners: Mapping[str, Any],
    folder: Path,
    model: nn.Module,
) -> dict[str, torch.Tensor]:
    """Read the tensors that marks stand for, by the paths of these."""
    shards = _Shards(folder, LocalFileSystem())
    like: Any = next((one for one in model.parameters() if is_cut_up(one)), None)
    targets, wanted = {}, {}
    for path, mark in marks.items():
        saved = mark["cut_up"]
        if saved not in targets:
            targets[saved] = _empty(mark, shards.dtype(saved), owners.get(path), like)
            wanted[saved] = mark
    metadata = shards.metadata(wanted)
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(targets, metadata, is_coordinator=True)
    plan = planner.create_local_plan()
    shards.read(planner.finish_plan(planner.create_global_plan([plan])[0]), planner)
    return {path: targets[mark["cut_up"]] for path, mark in marks.items()}


def _owners(tree: Any, leaves: Mapping[str, object], model: nn.Module) -> dict[str, Any]:
    """Return the parameter that each tensor of a state belongs to, by its path; nothing if none is cut up.

    A tensor belongs to a parameter of whose name and shape it is, as weights and averages are, or
    whose state it is in an optimizer.
    """
    known: dict[str, Any] = dict(PlainNames(model).parameters())
    if not any(map(is_cut_up, known.values())):
        return {}
    names = {f"[{name!r}]": name for name in known}
    found = {}
    context = tree.get("context") if isinstance(tree, Mapping) else None
    for index, slot in enumerate(context["optimizers"] if isinstance(context, Mapping) else ()):
        of_slot = [name for group in slot["parameters"] for name in group]
        numbers = [n for group in slot["optimizer"]["param_groups"] for n in group["params"]]
        at = f"['context']['optimizers'][{index}]['optimizer']['state']"
        names |= {f"{at}[{n!r}]": name for n, name in zip(numbers, of_slot, strict=True)}
    for path, leaf in leaves.items():
        last = path[path.rfind("[") :]
        name = names.get(last) or names.get(path[: -len(last)])
        shape = (
            leaf["shape"]
            if isinstance(leaf, dict) and is_mark(leaf)
            else getattr(leaf, "shape", None)
        )
        if name in known and shape is not None and [*shape] == [*known[name].shape]:
            found[path] = known[name]
    return found


def as_kept(weights: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return weights cut up as those of a model are, which each rank has as a whole.

    Args:
        weights: The weights, by name.
        own: Those of the model.
    """

    def kept(name: str, value: Any) -> Any:
        here = own.get(name)
        if here is None or not is_cut_up(here) or not isinstance(value, torch.Tensor):
            return value
        return _cut(value, here)

    return {name: kept(name, value) for name, value in weights.items()}


def _cut(whole: torch.Tensor, like: Any) -> torch.Tensor:
    """Cut up a tensor that each rank has as a whole; one that is cut up already comes back as it is."""
    if is_cut_up(whole):
        return whole
    from torch.distributed.tensor import distribute_tensor

    moved = whole.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


# -- Marks -----------------------------------------------------------------------------------------


def _empty(mark: Mapping[str, Any], dtype: torch.dtype, owner: Any, like: Any) -> torch.Tensor:
    """Make a tensor to read into: whole, or cut up over the ranks.

    Args:
        mark: What stands for it.
        dtype: Its type.
        owner: The parameter that it belongs to, if that is known. It is cut up as that is, or whole.
        like: Any parameter of the model that is cut up; None if there is none.
    """
    if like is None or (owner is not None and not is_cut_up(owner)):
        return torch.empty(mark["shape"], dtype=dtype)
    from torch.distributed.tensor import DTensor, Replicate, Shard, empty

    if owner is not None:
        part = torch.empty_like(owner.to_local(), dtype=dtype, requires_grad=False)
        return DTensor.from_local(
            part,
            owner.device_mesh,
            owner.placements,
            run_check=False,
            shape=owner.shape,
            stride=owner.stride(),
        )
    placements: Sequence[Any] = [
        Replicate() if text == "R" else Shard(int(text[1:])) for text in mark["placements"]
    ]
    if len(placements) != like.device_mesh.ndim:
        placements = like.placements
    return empty(mark["shape"], dtype=dtype, device_mesh=like.device_mesh, placements=placements)


# -- Files -----------------------------------------------------------------------------------------


def _name_of(path: str, offsets: Iterable[int]) -> str:
    return f"{path}@{','.join(map(str, offsets))}"


class _Planned(StorageWriter):
    """Writes nothing, and keeps the parts that a plan gives this rank."""

    def __init__(self) -> None:
        self.parts: dict[str, torch.Tensor] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results = []
        for item in plan.items:
            part = planner.resolve_data(item)
            assert isinstance(part, torch.Tensor)
            self.parts[_name_of(item.index.fqn, item.index.offset or ())] = part.detach()
            size = part.numel() * part.element_size()
            results.append(WriteResult(item.index, size, None))
        found: Future[list[WriteResult]] = Future()
        found.set_result(results)
        return found

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one checkpoint to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing is written here."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """The names of the parts say all that a reader needs."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


@dataclass(frozen=True)
class _Part:
    file: str
    name: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype


class _Shards:
    """The files with parts of a checkpoint, of which the headers are read."""

    def __init__(self, folder: Path, files: FileSystem) -> None:
        self._folder = folder
        self._files = files
        self._parts: dict[str, list[_Part]] = {}
        for file in reading.shards_of(files, folder):
            for part in self._header(file):
                path, _, _ = part.name.rpartition("@")
                self._parts.setdefault(path, []).append(part)

    def dtype(self, path: str) -> torch.dtype:
        if path not in self._parts:
            raise Damaged(self._folder, f"no file in it has a part of {path}")
        return self._parts[path][0].dtype

    def metadata(self, marks: Mapping[str, Any]) -> Metadata:
        """Return what a planner of torch needs to know."""
        described = {}
        for path, mark in marks.items():
            size = torch.Size(mark["shape"])
            parts = self._parts[path]
            if sum(torch.Size(one.shape).numel() for one in parts) != size.numel():
                raise Damaged(self._folder, f"parts of {path} are missing")
            chunks = [
                ChunkStorageMetadata(torch.Size(one.offsets), torch.Size(one.shape))
                for one in parts
            ]
            properties = TensorProperties(dtype=parts[0].dtype)
            described[path] = TensorStorageMetadata(properties, size, chunks)
        return Metadata(state_dict_metadata=dict(described))

    def read(self, plan: LoadPlan, planner: LoadPlanner) -> None:
        """Read what a plan lists, file by file."""
        wanted: dict[str, list[tuple[_Part, Any]]] = {}
        for item in plan.items:
            index = item.storage_index
            parts = self._parts[index.fqn]
            part = next(one for one in parts if one.offsets == tuple(index.offset or ()))
            wanted.setdefault(part.file, []).append((part, item))
        for file, items in wanted.items():
            tensors = reading.read_tensors(
                self._files, self._folder / file, {part.name for part, _ in items}
            )
            for part, item in items:
                found = tensors[part.name]
                for axis, (begin, length) in enumerate(
                    zip(item.storage_offsets, item.lengths, strict=True)
                ):
                    found = found.narrow(axis, begin, length)
                target = planner.resolve_tensor(item).detach()
                target.copy_(found)
                planner.commit_tensor(item, target)

    def _header(self, file: str) -> Iterator[_Part]:
        for name, (dtype, shape) in reading.tensors_in(self._files, self._folder / file).items():
            match = _PART.fullmatch(name)
            if match is None:
                raise Damaged(self._folder / file, f"{name!r} names no part of a tensor")
            offsets = tuple(int(one) for one in match[2].split(",") if one)
            if len(offsets) != len(shape):
                raise SnapshotMismatch(
                    f"{self._folder / file} has a part of another shape than its place."
                )
            yield _Part(file, name, offsets, shape, dtype)
