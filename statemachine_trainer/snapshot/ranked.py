"""A checkpoint of several ranks: one folder, written by rank 0, with the state of every rank.

The tree of rank 0 is the checkpoint, as that of a run with one process is. Beside it, under
`ranks`, stands what the tree of each other rank has that rank 0 has not: random numbers, where its
data stand, its batch in flight. Tensors that are the same to the bit at the same place, as weights
and the state of the optimizers are, stand there once. The others hand their parts to rank 0 over
the process group, so that the folder appears whole or not at all, as ever. Tensors that are cut up
among ranks go their own way: each rank writes its parts into a file beside; see `shards`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import nn

from statemachine_trainer.parallel import leaves_with_paths, map_leaves
from statemachine_trainer.parallel.cut_up import is_cut_up
from statemachine_trainer.parallel.ranks import Json, Ranks
from statemachine_trainer.snapshot import checkpoint_folder, codec, strictjson, tensor_file
from statemachine_trainer.snapshot.checkpoint import Loaded
from statemachine_trainer.snapshot.checkpoint_folder import FileEntry
from statemachine_trainer.snapshot.filesystem import LocalFileSystem
from statemachine_trainer.snapshot.marks import is_mark, take_out, whole
from statemachine_trainer.snapshot.snapshot_errors import (
    SnapshotError,
    Unwritable,
    WriteFailed,
)
from statemachine_trainer.snapshot.store import Store
from statemachine_trainer.snapshot.tensor_file import plain_bytes
from statemachine_trainer.snapshot.threads import Staged

OTHERS: Final = "of_other_ranks"
"""Stands in a state that another number of ranks goes on with, beside what was not the same at each."""

_RANKS: Final = "ranks"
_OWN: Final = "own"
_SHARED: Final = "shared"
_LENGTH: Final = 8


class AnotherRankFailed(SnapshotError):
    """A checkpoint was not written, or not read, because of another rank."""


def save_alone(
    store: Store, tree: Mapping[str, Any], *, name: str, metadata: Mapping[str, Any]
) -> Path:
    """Write the state of the only process there is: tensors that are cut up, if any are, come as whole ones.

    Args, Returns and Raises: those of `Store.save`.
    """
    try:
        return store.save(tree, name=name, metadata=metadata)
    except Unwritable:
        # Only what cannot be written is looked at: most trees have no tensors that are cut up.
        gathered = whole(tree)
        if gathered is tree:
            raise
    return store.save(gathered, name=name, metadata=metadata)


def save_together(
    ranks: Ranks, store: Store, tree: Mapping[str, Any], *, name: str, metadata: Mapping[str, Any]
) -> Path:
    """Write the states of all ranks as one checkpoint. A collective: each rank calls it.

    Args:
        ranks: The ranks.
        store: Where rank 0 writes; the others do not touch it.
        tree: The state of this rank.
        name: As for `Store.save`.
        metadata: The same; that of rank 0 is written.

    Returns:
        What `Store.save` returned at rank 0.

    Raises:
        Unwritable: The state of a rank, the first one, cannot be written.
        WriteFailed: The disk did not take it.
        AnotherRankFailed: Something else went wrong at another rank.
    """
    tree, cut = take_out(tree)
    error: Exception | None = None  # told to the others, who would wait for ever
    digests: dict[str, str] = {}
    part, path = b"", None
    try:
        store.wait()  # all of them heard of what went wrong in the background
        digests = _digests(tree) if ranks.rank == 0 else {}
    except Exception as problem:
        error = problem
    digests = cast("dict[str, str]", ranks.from_first(cast(Json, digests)))
    try:
        part = _part(tree, digests) if ranks.rank > 0 and error is None else b""
    except Exception as problem:
        error = problem
    _raise_first(ranks, error)
    beside = _Beside.of(ranks, store, cut) if cut else None
    parts = ranks.to_first(part)
    if ranks.rank == 0:
        try:
            full = {**tree, _RANKS: [None, *map(_read, parts[1:])]}
            run = None if beside is None else beside.run
            path = store.save(full, name=name, metadata=metadata, beside=beside, run=run)
        except Exception as problem:
            error = problem
    if beside is not None and not beside.later:
        error = beside.take_part() or error
    _raise_first(ranks, error)
    if beside is not None and beside.later and ranks.rank > 0:
        store.take_part(beside.run)
    return Path(cast(str, ranks.from_first(None if path is None else str(path))))


class _Beside:
    """Writes the parts of all ranks into the folder that rank 0 has made, within its `Store.save`.

    In the background it is a thread of each rank that writes a copy of its parts. These threads talk to each other in a
    group of their own.

    Args:
        ranks: The ranks, in the group of those that call it.
        parts: What this rank writes.
        later: Whether it is written in the background.
    """

    def __init__(
        self, ranks: Ranks, parts: Mapping[str, torch.Tensor] | Staged, *, later: bool
    ) -> None:
        self.later = later
        self._ranks = ranks
        self._parts = parts
        self._done = False

    @classmethod
    def of(cls, ranks: Ranks, store: Store, cut: dict[str, torch.Tensor]) -> _Beside:
        """Plan what each rank writes, and copy it for the background. A collective.

        Args:
            ranks: The ranks.
            store: Where rank 0 writes.
            cut: Tensors of this rank that are cut up, by their paths.
        """
        from statemachine_trainer.snapshot.shards import parts_of

        parts = parts_of(ranks, cut)
        staging = store.staging_of_parts
        if staging is None:
            return cls(ranks, parts, later=False)
        error: Exception | None = None
        try:
            copied: Mapping[str, torch.Tensor] | Staged = staging.copy(parts) if parts else {}
        except Exception as problem:  # there is too little memory
            error = problem
        _raise_first(ranks, error)
        return cls(ranks.of_threads(), copied, later=True)

    def __call__(self, folder: Path) -> dict[str, FileEntry]:
        """Write, at rank 0. The others call `take_part`."""
        return self._write(folder)

    def take_part(self) -> Exception | None:
        """Write, at another rank than 0, and return what went wrong. Nothing is done where rank 0 has no folder."""
        if self._done:
            return None
        try:
            self._write(None)
        except Exception as error:
            return error
        return None

    def run(self, write: Callable[[], None] | None = None) -> None:
        """Write in the background, at each rank; where it fails at one, all of them raise.

        Args:
            write: At rank 0, what writes the checkpoint.
        """
        error: Exception | None = None
        try:
            if write is not None:
                write()
        except Exception as problem:
            error = problem
        error = self.take_part() or error
        _raise_first(self._ranks, error)

    def _write(self, folder: Path | None) -> dict[str, FileEntry]:
        from statemachine_trainer.snapshot.shards import file_of

        self._done = True
        ranks = self._ranks
        path = ranks.from_first(None if folder is None else str(folder))
        if path is None:
            return {}
        file = Path(cast(str, path)) / file_of(ranks.rank)
        mine: Json = None
        error: Exception | None = None
        try:
            if self._parts:
                parts = self._parts
                if not isinstance(parts, Staged):
                    parts = {name: one.cpu().contiguous() for name, one in parts.items()}
                entry = checkpoint_folder.write_tensors(LocalFileSystem(), file, parts)
                mine = [entry.size, entry.checksum]
        except Exception as problem:
            error = problem
            number = problem.errno if isinstance(problem, OSError) else None
            mine = {**_told(problem), "number": number}
        told = cast("list[Any]", ranks.from_all(mine))
        if error is not None:
            raise error
        for rank, one in enumerate(told):
            if isinstance(one, dict):
                # As an error of the disk here, of which the store says what to do about it.
                number = one["number"]
                if number is None:
                    raise _as_error(rank, one)
                raise OSError(number, f"{os.strerror(number)} (at rank {rank})")
        return {file_of(rank): FileEntry(*one) for rank, one in enumerate(told) if one is not None}


def do_together(ranks: Ranks | None, act: Callable[[], object]) -> None:
    """Do something at each rank; where it fails at one, all of them raise. A collective.

    Raises:
        AnotherRankFailed: It failed at another rank; where it failed at a rank itself, the error is its own.
    """
    if ranks is None:
        act()
        return
    error: Exception | None = None
    try:
        act()
    except Exception as problem:
        error = problem
    _raise_first(ranks, error)


def find_together(ranks: Ranks, find: Callable[[], Loaded | None]) -> Loaded | None:
    """Let rank 0 find a checkpoint and check it, and all of them read that one. A collective.

    Args:
        ranks: The ranks.
        find: How rank 0 finds it.

    Raises:
        AnotherRankFailed: Another rank could not read it; where a rank itself could not, the error
            is its own.
    """
    loaded: Loaded | None = None
    error: Exception | None = None
    try:
        loaded = find() if ranks.rank == 0 else None
    except Exception as problem:
        error = problem
    _raise_first(ranks, error)
    path = ranks.from_first(None if loaded is None else str(loaded.path.resolve()))
    if path is None:
        return None
    try:
        if loaded is None:
            folder = Path(cast(str, path))
            loaded = Store(folder.parent).load(folder, check_shards=False)
    except Exception as problem:
        error = problem
    _raise_first(ranks, error)
    return loaded


def read_parts_together(loaded: Loaded, model: nn.Module) -> Any:
    """Return the state of this rank with the parts of tensors that are cut up. A collective, if there are any.

    Raises:
        AnotherRankFailed: Another rank could not read its parts; where a rank itself could not, the
            error is its own.
    """
    tree: Any = loaded.tree
    marked = any(is_mark(one) for _, one in leaves_with_paths(tree, is_leaf=is_mark))
    if not marked and not any(map(is_cut_up, model.parameters())):
        return tree
    from statemachine_trainer.snapshot.shards import with_parts  # most runs have none

    def read() -> None:
        nonlocal tree
        tree = with_parts(tree, loaded.path, model)

    do_together(Ranks.here(), read)
    return tree


def ranks_of(tree: Any) -> int:
    """Return how many ranks have written the tree of a checkpoint."""
    return len(tree.get(_RANKS, [None])) if isinstance(tree, Mapping) else 1


def trees_of_ranks(tree: Any) -> list[Any]:
    """Return the state of each rank that has written a checkpoint. They share the tensors that were the same."""
    if not isinstance(tree, Mapping):
        return [tree]
    first = {name: value for name, value in tree.items() if name != _RANKS}
    tensors = dict(_tensors(first))
    return [first, *(_completed(part, tensors) for part in tree.get(_RANKS, [None])[1:])]


def tree_of_rank(tree: Any, rank: int) -> Any:
    """Return the state of one of the ranks that have written a checkpoint."""
    if not isinstance(tree, Mapping):
        return tree
    first = {name: value for name, value in tree.items() if name != _RANKS}
    return first if rank == 0 else _completed(tree[_RANKS][rank], dict(_tensors(first)))


def _completed(part: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return the tree of a rank, with the tensors that it shares with rank 0."""
    shared = set(part[_SHARED])
    paths = (path for path, _ in leaves_with_paths(part[_OWN]))

    def completed(leaf: object) -> object:
        path = next(paths)
        return tensors[path] if path in shared else leaf

    return map_leaves(completed, part[_OWN])


def digest(tensor: torch.Tensor) -> str | None:
    """Return a digest of a tensor to the bit; None where its bytes do not lie side by side."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return None
    kind = f"{tensor.dtype} {tuple(tensor.shape)} {tensor.device.type} {tensor.requires_grad}"
    return hashlib.sha256(plain_bytes(tensor)).hexdigest() + kind


def _tensors(tree: object) -> Iterator[tuple[str, torch.Tensor]]:
    for path, leaf in leaves_with_paths(tree):
        if isinstance(leaf, torch.Tensor):
            yield path, leaf


def _digests(tree: object) -> dict[str, str]:
    found = ((path, digest(tensor)) for path, tensor in _tensors(tree))
    return {path: one for path, one in found if one is not None}


def _part(tree: object, digests: Mapping[str, str]) -> bytes:
    """Return what of a tree rank 0 has not, as bytes: the length of their JSON, that JSON, tensors.

    The tree has None where a tensor is that of rank 0; the places of these are listed beside it.
    """
    shared = {path for path, tensor in _tensors(tree) if digests.get(path, "") == digest(tensor)}
    paths = (path for path, _ in leaves_with_paths(tree))
    own = map_leaves(lambda leaf: None if next(paths) in shared else leaf, tree)
    document, tensors = codec.encode(own)
    text = strictjson.dumps({_OWN: document, _SHARED: [*sorted(shared)]})
    file = bytearray()
    tensor_file.write(tensors, file.extend)
    return len(text).to_bytes(_LENGTH, "little") + text + file


def _read(part: bytearray) -> dict[str, object]:
    """Return a part as a plain tree, which is how it stands in the checkpoint."""
    begin = _LENGTH + int.from_bytes(part[:_LENGTH], "little")
    content = cast("dict[str, Any]", strictjson.loads(bytes(part[_LENGTH:begin])))
    file = part[begin:]
    tensors = tensor_file.read(BytesIO(file), len(file), lambda _: None)
    return {_OWN: codec.decode(content[_OWN], tensors), _SHARED: content[_SHARED]}


def _raise_first(ranks: Ranks, error: Exception | None) -> None:
    """Raise what went wrong at the first rank at which anything did, at each of them. A collective."""
    told = ranks.from_all(None if error is None else _told(error))
    for rank, one in enumerate(told):
        if rank == ranks.rank and error is not None:
            raise error
        if isinstance(one, dict):
            raise _as_error(rank, one)


def _told(error: Exception) -> dict[str, Json]:
    where = error.where if isinstance(error, Unwritable) else None
    failed = isinstance(error, WriteFailed)
    of_another = isinstance(error, AnotherRankFailed)  # it says at which rank
    text = f"{error}" if of_another else f"{type(error).__name__}: {error}"
    return {"where": where, "failed": failed, "of_another": of_another, "text": text}


def _as_error(rank: int, told: Mapping[str, Json]) -> SnapshotError:
    text = f"{told['text']}" if told["of_another"] else f"At rank {rank}: {told['text']}"
    if isinstance(told["where"], str):
        return Unwritable(told["where"], text, "mend it there")
    return WriteFailed(text) if told["failed"] else AnotherRankFailed(text)
