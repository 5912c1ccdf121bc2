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
from torch.distributed.checkpoint.api import CheckpointException
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
from statemachine_trainer.parallel.gradient_sync import is_cut_up
from statemachine_trainer.parallel.ranks import Json, Ranks
from statemachine_trainer.snapshot import checkpoint_folder
from statemachine_trainer.snapshot.checkpoint_folder import FileEntry
from statemachine_trainer.snapshot.filesystem import FileSystem, LocalFileSystem
from statemachine_trainer.snapshot.marks import is_mark
from statemachine_trainer.snapshot.snapshot_errors import Damaged, SnapshotMismatch

_PART: Final = re.compile(r"(.*)@([\d,]*)", re.DOTALL)


def write_shards(ranks: Ranks, folder: Path, cut: dict[str, Any]) -> dict[str, FileEntry]:
    """Write the parts of this rank into the folder of a checkpoint. A collective.

    Returns:
        The files of all ranks, with their sizes and checksums.

    Raises:
        CheckpointException: It failed at a rank.
    """
    writer = _Writer(folder, ranks.rank)
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    save(cut, storage_writer=writer, planner=planner, process_group=ranks.group)
    entry = writer.entry
    mine: Json = None if entry is None else [entry.size, entry.checksum]
    told = cast("list[tuple[int, str] | None]", ranks.from_all(mine))
    return {_file_of(rank): FileEntry(*one) for rank, one in enumerate(told) if one is not None}


def failures_of(error: CheckpointException) -> list[BaseException]:
    """Return what went wrong at the ranks at which something did."""
    return [one[0] for one in error.failures.values()]


def with_parts(tree: Any, folder: Path, model: nn.Module) -> Any:
    """Return a tree from a checkpoint with tensors in the place of marks.

    They are cut up as the parameters of the model are, of which this process reads its own parts.
    Without such parameters they are whole.

    Args:
        tree: A tree of the checkpoint, or a part of it. Without marks it is returned as it is.
        folder: The checkpoint.
        model: The model that they are for.

    Raises:
        Damaged: A part is missing.
        SnapshotMismatch: Two parts do not fit together.
    """
    found = (one for _, one in leaves_with_paths(tree, is_leaf=is_mark) if is_mark(one))
    marks = {one["cut_up"]: one for one in cast("Iterator[dict[str, Any]]", found)}
    if not marks:
        return tree
    shards = _Shards(folder, LocalFileSystem())
    like: Any = next((one for one in model.parameters() if is_cut_up(one)), None)
    targets = {path: _empty(mark, shards.dtype(path), like) for path, mark in marks.items()}
    metadata = shards.metadata(marks)
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(targets, metadata, is_coordinator=True)
    plan = planner.create_local_plan()
    shards.read(planner.finish_plan(planner.create_global_plan([plan])[0]), planner)

    def filled(leaf: object) -> object:
        return targets[leaf["cut_up"]] if isinstance(leaf, dict) and is_mark(leaf) else leaf

    return map_leaves(filled, tree, is_leaf=is_mark)


def as_kept(weights: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return weights cut up as those of a model are, which each rank has as a whole.

    Args:
        weights: The weights, by name.
        own: Those of the model.
    """
    from torch.distributed.tensor import distribute_tensor

    def kept(name: str, value: Any) -> Any:
        here = own.get(name)
        if (
            here is None
            or not is_cut_up(here)
            or not isinstance(value, torch.Tensor)
            or is_cut_up(value)
        ):
            return value
        moved = value.to(here.device)
        return distribute_tensor(moved, here.device_mesh, here.placements, src_data_rank=None)

    return {name: kept(name, value) for name, value in weights.items()}


# -- Marks -----------------------------------------------------------------------------------------


def _empty(mark: Mapping[str, Any], dtype: torch.dtype, like: Any) -> torch.Tensor:
    """Make a tensor to read into: whole, or cut up over the ranks as a parameter of the model is."""
    if like is None:
        return torch.empty(mark["shape"], dtype=dtype)
    from torch.distributed.tensor import Replicate, Shard, empty

    placements: Sequence[Any] = [
        Replicate() if text == "R" else Shard(int(text[1:])) for text in mark["placements"]
    ]
    if len(placements) != like.device_mesh.ndim:
        placements = like.placements
    return empty(mark["shape"], dtype=dtype, device_mesh=like.device_mesh, placements=placements)


# -- Files -----------------------------------------------------------------------------------------


def _file_of(rank: int) -> str:
    return f"shard-{rank}.safetensors"


def _name_of(path: str, offsets: Iterable[int]) -> str:
    return f"{path}@{','.join(map(str, offsets))}"


class _Writer(StorageWriter):
    """Writes the parts that a plan gives this rank into one file."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder = folder
        self._rank = rank
        self.entry: FileEntry | None = None

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        tensors, results = {}, []
        for item in plan.items:
            part = planner.resolve_data(item)
            assert isinstance(part, torch.Tensor)
            name = _name_of(item.index.fqn, item.index.offset or ())
            tensors[name] = part.detach().cpu().contiguous()
            size = part.numel() * part.element_size()
            results.append(WriteResult(item.index, size, _file_of(self._rank)))
        if tensors:
            path = self._folder / _file_of(self._rank)
            self.entry = checkpoint_folder.write_tensors(LocalFileSystem(), path, tensors)
        found: Future[list[WriteResult]] = Future()
        found.set_result(results)
        return found

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one checkpoint to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Rank 0 has made the folder."""

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
        for file in checkpoint_folder.shards_of(files, folder):
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
            tensors = checkpoint_folder.read_tensors(
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
        for name, (dtype, shape) in checkpoint_folder.tensors_in(
            self._files, self._folder / file
        ).items():
            match = _PART.fullmatch(name)
            if match is None:
                raise Damaged(self._folder / file, f"{name!r} names no part of a tensor")
            offsets = tuple(int(one) for one in match[2].split(",") if one)
            if len(offsets) != len(shape):
                raise SnapshotMismatch(
                    f"{self._folder / file} has a part of another shape than its place."
                )
            yield _Part(file, name, offsets, shape, dtype)
