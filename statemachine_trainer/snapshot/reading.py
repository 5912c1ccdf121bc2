"""Reading a checkpoint from its folder, and checking that its files are what was written.

What the files are, and how they are written: `checkpoint_folder`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from statemachine_trainer.files import near_folder
from statemachine_trainer.snapshot import codec, strictjson, tensor_file
from statemachine_trainer.snapshot.checked_file import CheckedFile
from statemachine_trainer.snapshot.checkpoint_folder import (
    FORMAT,
    FORMAT_IN_PARTS,
    MANIFEST,
    MANIFEST_LIMIT,
    OPENING_SIZE,
    STATE,
    STATE_LIMIT,
    TENSORS,
    FileEntry,
    Manifest,
    opening_of,
)
from statemachine_trainer.snapshot.filesystem import FileSystem, LocalFileSystem
from statemachine_trainer.snapshot.leaves import Undecodable
from statemachine_trainer.snapshot.snapshot_errors import (
    Damaged,
    FormatTooNew,
    NotACheckpoint,
    SnapshotError,
    Unreadable,
)
from statemachine_trainer.snapshot.strictjson import Json

if TYPE_CHECKING:
    from statemachine_trainer.snapshot.mapped_weights import MappedWeights

_SHARD = re.compile(r"shard-\d{1,9}\.safetensors")
_LIMITS = {MANIFEST: MANIFEST_LIMIT, STATE: STATE_LIMIT}
_PIECE = 8 << 20


def read(
    files: FileSystem,
    folder: Path,
    *,
    map_location: codec.MapLocation = None,
    check_shards: bool = True,
    mmap: bool = False,
) -> tuple[Manifest, object, MappedWeights | None]:
    """Read a checkpoint, and check each byte of it; those of its shards only if asked.

    Returns:
        Its manifest, its tree, and the file in which weights of a model still lie, if `mmap`.

    Raises:
        NotACheckpoint: when there is none
        Damaged: when a file is not what was written
        FormatTooNew: when a later version wrote it
        Unreadable: when it may be whole, but the system does not let it be read, or memory is short
    """
    mapped = None
    with ExitStack() as undoing:
        with _reading(folder):
            manifest = read_manifest(files, folder)
            _check_names(files, folder, manifest)
            for name in sorted(manifest.files.keys() - {STATE, TENSORS}) if check_shards else ():
                _check_content(files, folder / name, manifest.files[name])
            state = _read_whole(files, folder / STATE, manifest.files[STATE])
            document = _parsed(folder / STATE, state)
            if mmap and isinstance(files, LocalFileSystem):
                # Imported here, because a fit that begins anew needs none of it.
                from statemachine_trainer.snapshot.mapped_weights import MappedWeights, mappable

                path, entry = folder / TENSORS, manifest.files[TENSORS]
                again = partial(_read_tensors, files, path, entry, None)
                mapped = MappedWeights(mappable(document), again)
                undoing.callback(mapped.close)
            tensors = _read_tensors(files, folder / TENSORS, manifest.files[TENSORS], mapped)
        try:
            tree = codec.decode(document, tensors, map_location=map_location)
        except Undecodable as error:
            raise Damaged(folder / STATE, str(error)) from None
        undoing.pop_all()
    return manifest, tree, mapped if mapped is not None and mapped.is_open else None


def check(files: FileSystem, folder: Path) -> Manifest:
    """Read the manifest alone, and check that the files it names are there in their sizes.

    Raises: as `read`
    """
    with _reading(folder):
        manifest = read_manifest(files, folder)
        _check_names(files, folder, manifest)
        for name, entry in manifest.files.items():
            with CheckedFile(files, folder / name) as reading:
                reading.check_size(entry.size)
        return manifest


def read_manifest(files: FileSystem, folder: Path) -> Manifest:
    """Read the manifest of a checkpoint.

    Raises: as `read`
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise NotACheckpoint(_why_not_a_folder(folder))
    if MANIFEST not in files.names(folder):
        raise NotACheckpoint(f"{folder} is no checkpoint: it has no {MANIFEST}. Name one that has.")
    text = _read_whole(files, path, None)
    opening, body = text[:OPENING_SIZE], text[OPENING_SIZE:]
    if opening != opening_of(body):
        raise Damaged(path, "its checksum does not fit its content")
    try:
        content = strictjson.loads(text)
        return _parse_manifest(path, content)
    except (TypeError, ValueError, KeyError) as error:
        raise Damaged(path, f"it is not a manifest ({error})") from None


_NAME: Final = "Name the folder of a run, or of one checkpoint in it."


def _why_not_a_folder(path: Path) -> str:
    if path.is_file() and (path.parent / MANIFEST).is_file():
        return f"{path} is one file of a checkpoint, which is a folder. Name that: {path.parent}."
    if path.is_file():
        return (
            f"{path} is a file, and a checkpoint is a folder. If it is one of torch.save, it holds a pickle, which "
            "can run code when opened and is not read here. Load it in the script: "
            "model.load_state_dict(torch.load(path))."
        )
    if not path.exists():
        return (
            f"There is no checkpoint at {path}: no such folder exists. {near_folder(path) or _NAME}"
        )
    return f"There is no checkpoint at {path}. {_NAME}"


def _parse_manifest(path: Path, content: Json) -> Manifest:
    if not isinstance(content, dict) or type(content["format"]) is not int:
        raise TypeError("it has no format")
    if content["format"] < 1:
        raise ValueError("its format is below 1")
    files = content.get("files")
    newest = FORMAT_IN_PARTS if isinstance(files, dict) and len(files) > 2 else FORMAT
    if content["format"] > newest:
        raise FormatTooNew(
            f"{path} is of format {content['format']}, and this version reads {newest}; "
            f"read it with the version of this package that wrote it, or with a newer one"
        )
    created, name, versions = content["created"], content["name"], content["versions"]
    if not (isinstance(created, str) and isinstance(name, str) and isinstance(versions, dict)):
        raise TypeError("its date, name or versions are missing")
    metadata = codec.decode({"tree": content["metadata"], "tensors": {}}, {})
    if not isinstance(metadata, dict):
        raise TypeError("its metadata is missing")
    return Manifest(
        name=name,
        created=datetime.fromisoformat(created),
        versions={package: str(version) for package, version in versions.items()},
        metadata=metadata,
        files=_parse_entries(content["files"]),
    )


def _parse_entries(content: Json) -> dict[str, FileEntry]:
    """Only the names that a checkpoint has: no other path is ever opened."""
    if not isinstance(content, dict) or not {STATE, TENSORS} <= set(content):
        raise TypeError(f"it must list {STATE} and {TENSORS}")
    if not all(map(_SHARD.fullmatch, content.keys() - {STATE, TENSORS})):
        raise TypeError(f"it must list {STATE}, {TENSORS} and shards, and nothing else")
    entries = {}
    for name, entry in content.items():
        if not isinstance(entry, dict):
            raise TypeError(f"it says nothing of {name}")
        size, checksum = entry["size"], entry["crc32"]
        if type(size) is not int or size < 0 or not isinstance(checksum, str):
            raise TypeError(f"the size or checksum of {name} is malformed")
        entries[name] = FileEntry(size, checksum)
    return entries


# -- Files of a checkpoint -------------------------------------------------------------------------


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Tell what is no damage of the files as such."""
    try:
        yield
    except SnapshotError:
        raise
    except (OSError, MemoryError, RuntimeError) as error:  # torch says so when memory is short
        raise Unreadable(
            f"{folder} cannot be read ({error}). It may be whole: mend that, and try again."
        ) from error


def _check_names(files: FileSystem, folder: Path, manifest: Manifest) -> None:
    present = set(files.names(folder))
    for name in (MANIFEST, *manifest.files):
        if name not in present:
            raise Damaged(folder / name, "it is missing")
    for name in sorted(present.difference((MANIFEST, *manifest.files))):
        raise Damaged(folder / name, "no checkpoint has such a file; move it elsewhere")


def _read_whole(files: FileSystem, path: Path, entry: FileEntry | None) -> bytes:
    """A file of JSON; without `entry` (the manifest itself) its checksum is looked at later."""
    with CheckedFile(files, path) as reading:
        if entry is not None:
            reading.check_size(entry.size)
        if reading.size > _LIMITS[path.name]:
            raise Damaged(
                path, f"it has {reading.size} bytes, and {_LIMITS[path.name]} are allowed"
            )
        pieces = []
        while piece := reading.file.read(_PIECE):
            pieces.append(piece)
            reading.seen(piece)
        if entry is not None:
            reading.check_sum(entry.checksum)
        return b"".join(pieces)


def _parsed(path: Path, state: bytes) -> Json:
    try:
        return strictjson.loads(state)
    except strictjson.BadJson as error:
        raise Damaged(path, str(error)) from None


def _read_tensors(
    files: FileSystem, path: Path, entry: FileEntry, mapped: MappedWeights | None
) -> dict[str, Tensor]:
    with CheckedFile(files, path) as reading:
        reading.check_size(entry.size)
        with _damaged_tensors(path):
            if mapped is None:
                lend = None
            else:
                mapped.open(reading.file, entry.size)
                lend = mapped.lend
            tensors = tensor_file.read(reading.file, reading.size, reading.seen, lend, reading.fill)
        reading.check_sum(entry.checksum)
        return tensors


@contextmanager
def _damaged_tensors(path: Path) -> Iterator[None]:
    try:
        yield
    except tensor_file.BadTensorFile as error:
        raise Damaged(path, str(error)) from None


def _check_content(files: FileSystem, path: Path, entry: FileEntry) -> None:
    with CheckedFile(files, path) as reading:
        reading.check_size(entry.size)
        while piece := reading.file.read(_PIECE):
            reading.seen(piece)
        reading.check_sum(entry.checksum)


# -- Files of parts of tensors ---------------------------------------------------------------------


def shards_of(files: FileSystem, folder: Path) -> list[str]:
    """Return the names of the files with parts of tensors in a checkpoint.

    Raises: as `read`
    """
    with _reading(folder):
        return sorted(read_manifest(files, folder).files.keys() - {STATE, TENSORS})


def dtypes_of_parts(folder: Path) -> dict[str, torch.dtype]:
    """Return the type of each tensor of which a checkpoint has parts, by the path that its parts are named after.

    Raises: as `read`
    """
    files = LocalFileSystem()
    found = {}
    for file in shards_of(files, folder):
        for name, (dtype, _) in tensors_in(files, folder / file).items():
            found[name.rpartition("@")[0]] = dtype
    return found


def tensors_in(files: FileSystem, path: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return dtype and shape of each tensor in such a file.

    Raises: as `read`
    """
    with _reading(path), CheckedFile(files, path) as reading, _damaged_tensors(path):
        return tensor_file.describe(reading.file, reading.size)


def read_tensors(files: FileSystem, path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Read some of the tensors in such a file.

    Raises: as `read`
    """
    with _reading(path), CheckedFile(files, path) as reading, _damaged_tensors(path):
        return tensor_file.read_some(reading.file, reading.size, names)
