"""One checkpoint, one folder of three files, or a few more: what they hold, and that they are what was written.

- ``manifest.json``: what a person asks first (when, which versions, the caller's metadata), and the
  size and checksum of the other files, and of itself;
- ``state.json``: the tree;
- ``tensors.safetensors``: its tensors;
- ``shard-RANK.safetensors``: parts of tensors that are cut up among ranks, if there are any; see `shards`.

The checksum is CRC-32, which the zip container of `torch.save` uses too. It finds accidents: torn
writes, flipped bits. No checksum kept beside the data finds intent, since whoever changes the one
can change the other; against intent stand the checks of `strictjson`, `tensor_file` and `codec`,
and that nothing here is a pickle. It is the fastest that Python has (4 GB/s, where SHA-256 makes
1.7 and BLAKE2 0.9), and runs in a thread beside the writing.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

import torch
from torch import Tensor

from statemachine_trainer.snapshot import codec, strictjson, tensor_file
from statemachine_trainer.snapshot.filesystem import FileSystem, LocalFileSystem, OutputFile
from statemachine_trainer.snapshot.leaves import Undecodable
from statemachine_trainer.snapshot.snapshot_errors import (
    Damaged,
    FormatTooNew,
    NotACheckpoint,
    SnapshotError,
    Unreadable,
    Unwritable,
)
from statemachine_trainer.snapshot.strictjson import Json
from statemachine_trainer.snapshot.threads import Staged, Worker

if TYPE_CHECKING:
    from statemachine_trainer.snapshot.mapped_weights import MappedWeights

crc32_combine: Callable[[int, int, int], int] | None
try:
    from zlib_ng.zlib_ng import crc32 as crc32
    from zlib_ng.zlib_ng import crc32_combine
except ImportError:  # where it has no wheel; the same numbers, several times slower
    from zlib import crc32 as crc32

    crc32_combine = None

FORMAT = 1
FORMAT_IN_PARTS = 2
MANIFEST = "manifest.json"
STATE = "state.json"
TENSORS = "tensors.safetensors"
NAMES = (MANIFEST, STATE, TENSORS)

_SHARD = re.compile(r"shard-\d{1,9}\.safetensors")

_MANIFEST_LIMIT = 16 << 20
_STATE_LIMIT = 256 << 20
_LIMITS = {MANIFEST: _MANIFEST_LIMIT, STATE: _STATE_LIMIT}
_INLINE = 256 << 10  # below this a thread costs more than it saves
_HALF = 2 << 20  # and below this, to read with two threads
_PIECE = 8 << 20

# The checksum of a manifest stands in the manifest, at a fixed place, and covers all that follows.
_OPENING = b'{\n  "checksum": "'
_CLOSING = b'",\n'
_DIGITS = 8

_NOT_DAMAGE = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


@dataclass(frozen=True)
class FileEntry:
    """What a manifest says of a file beside it."""

    size: int
    checksum: str


@dataclass(frozen=True)
class Manifest:
    """The first page of a checkpoint."""

    name: str
    created: datetime
    versions: dict[str, str]
    metadata: dict[str, object]
    files: dict[str, FileEntry]

    @property
    def size(self) -> int:
        """Bytes of state and tensors."""
        return sum(entry.size for entry in self.files.values())


@dataclass(frozen=True)
class Draft:
    """A checkpoint in memory, ready to be written: nothing in it changes any more.

    `beside` writes further files into its folder, durably, and returns what they are.
    """

    name: str
    created: datetime
    versions: Mapping[str, str]
    metadata: Json
    document: codec.Document
    tensors: Mapping[str, Tensor] | Staged
    beside: Callable[[Path], Mapping[str, FileEntry]] | None = None


def write(files: FileSystem, folder: Path, draft: Draft) -> tuple[Manifest, bytes]:
    """Make `folder` and write a checkpoint into it, durably.

    Returns:
        Its manifest, and the text of that.

    Raises:
        Unwritable: when the tree is too large for JSON; nothing was written then
        OSError: when the disk does not take it; an unfinished folder stays behind
    """
    state = strictjson.dumps(draft.document)
    if len(state) > _STATE_LIMIT:
        raise Unwritable(
            "",
            f"without its tensors it is {len(state) >> 20} MB of JSON, "
            f"and {_STATE_LIMIT >> 20} MB are allowed",
            "keep long lists of numbers as tensors or arrays",
        )
    files.make_folder(folder)
    entries: dict[str, FileEntry] = {}
    with ExitStack() as stack:
        sinks = [stack.enter_context(_Sink(files.create(folder / STATE)))]
        sinks[-1].write(state)
        entries[STATE] = sinks[-1].finish()
        sinks.append(stack.enter_context(_Sink(files.create(folder / TENSORS))))
        _write_into(sinks[-1], draft.tensors)
        entries[TENSORS] = sinks[-1].finish()
        if draft.beside is not None:
            entries |= draft.beside(folder)
        sinks.append(stack.enter_context(_Sink(files.create(folder / MANIFEST))))
        text = _manifest_text(draft, entries)
        sinks[-1].write(text)
        sinks[-1].finish()
        # All that is waited for is under way by now. The folder gets its name after this.
        files.sync_folder(folder)
        for sink in sinks:
            sink.sync()
    metadata = codec.decode({"tree": draft.metadata, "tensors": {}}, {})
    assert isinstance(metadata, dict)
    versions = dict(draft.versions)
    return Manifest(draft.name, draft.created, versions, metadata, entries), text


def read(
    files: FileSystem,
    folder: Path,
    *,
    map_location: codec.MapLocation = None,
    check_shards: bool = True,
    lend: bool = False,
) -> tuple[Manifest, object, MappedWeights | None]:
    """Read a checkpoint, and check each byte of it; those of its shards only if asked.

    Returns:
        Its manifest, its tree, and the file that weights of a model are lent from, if it is to `lend` them.

    Raises:
        NotACheckpoint: when there is none
        Damaged: when a file is not what was written
        FormatTooNew: when a later version wrote it
        Unreadable: when it may be whole, but the system does not let it be read, or memory is short
    """
    lent = None
    with ExitStack() as undoing:
        with _reading(folder):
            manifest = read_manifest(files, folder)
            _check_names(files, folder, manifest)
            for name in sorted(manifest.files.keys() - {STATE, TENSORS}) if check_shards else ():
                _check_content(files, folder / name, manifest.files[name])
            state = _read_whole(files, folder / STATE, manifest.files[STATE])
            document = _parsed(folder / STATE, state)
            if lend and isinstance(files, LocalFileSystem):
                # Imported here, because a fit that begins anew needs none of it.
                from statemachine_trainer.snapshot.mapped_weights import MappedWeights, mappable

                lent = MappedWeights(mappable(document))
                undoing.callback(lent.close)
            tensors = _read_tensors(files, folder / TENSORS, manifest.files[TENSORS], lent)
        try:
            tree = codec.decode(document, tensors, map_location=map_location)
        except Undecodable as error:
            raise Damaged(folder / STATE, str(error)) from None
        undoing.pop_all()
    return manifest, tree, lent if lent is not None and lent.is_open else None


def _parsed(path: Path, state: bytes) -> Json:
    try:
        return strictjson.loads(state)
    except strictjson.BadJson as error:
        raise Damaged(path, str(error)) from None


def check(files: FileSystem, folder: Path) -> Manifest:
    """Read the manifest alone, and check that the files it names are there in their sizes.

    Raises: as `read`
    """
    with _reading(folder):
        manifest = read_manifest(files, folder)
        _check_names(files, folder, manifest)
        for name, entry in manifest.files.items():
            with _Reading(files, folder / name) as reading:
                reading.check_size(entry.size)
        return manifest


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


def read_manifest(files: FileSystem, folder: Path) -> Manifest:
    """Read the manifest of a checkpoint.

    Raises: as `read`
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise NotACheckpoint(_why_not_a_folder(folder))
    if MANIFEST not in files.names(folder):
        raise NotACheckpoint(f"{folder} is no checkpoint: it has no {MANIFEST}; name one that has")
    text = _read_whole(files, path, None)
    body_at = len(_OPENING) + _DIGITS + len(_CLOSING)
    opening, body = text[:body_at], text[body_at:]
    if opening != _opening(body):
        raise Damaged(path, "its checksum does not fit its content")
    try:
        content = strictjson.loads(text)
        return _parse_manifest(path, content)
    except (TypeError, ValueError, KeyError) as error:
        raise Damaged(path, f"it is not a manifest ({error})") from None


def _opening(body: bytes) -> bytes:
    return _OPENING + _hex(crc32(body)).encode() + _CLOSING


def _hex(checksum: int) -> str:
    return f"{checksum:0{_DIGITS}x}"


def _manifest_text(draft: Draft, entries: Mapping[str, FileEntry]) -> bytes:
    content: dict[str, Json] = {
        "format": FORMAT_IN_PARTS if len(entries) > 2 else FORMAT,
        "name": draft.name,
        "created": draft.created.isoformat(),
        "versions": dict(draft.versions),
        "metadata": draft.metadata,
        "files": {
            name: {"size": entry.size, "crc32": entry.checksum} for name, entry in entries.items()
        },
    }
    body = strictjson.lines(content).removeprefix(b"{\n") + b"\n"
    if len(body) > _MANIFEST_LIMIT // 2:
        raise Unwritable(
            "metadata", f"it is {len(body) >> 20} MB", "keep what is large in the tree instead"
        )
    return _opening(body) + body


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


def _check_names(files: FileSystem, folder: Path, manifest: Manifest) -> None:
    present = set(files.names(folder))
    for name in (MANIFEST, *manifest.files):
        if name not in present:
            raise Damaged(folder / name, "it is missing")
    for name in sorted(present.difference((MANIFEST, *manifest.files))):
        raise Damaged(folder / name, "no checkpoint has such a file; move it elsewhere")


def _read_whole(files: FileSystem, path: Path, entry: FileEntry | None) -> bytes:
    """A file of JSON; without `entry` (the manifest itself) its checksum is looked at later."""
    with _Reading(files, path) as reading:
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


def _read_tensors(
    files: FileSystem, path: Path, entry: FileEntry, lent: MappedWeights | None
) -> dict[str, Tensor]:
    with _Reading(files, path) as reading:
        reading.check_size(entry.size)
        try:
            if lent is None:
                tensors = tensor_file.read(reading.file, reading.size, reading.seen)
            else:
                lent.open(reading.file, path, entry.size)
                tensors = tensor_file.read(reading.file, reading.size, reading.seen, lent.lend)
        except tensor_file.BadTensorFile as error:
            raise Damaged(path, str(error)) from None
        reading.check_sum(entry.checksum)
        return tensors


def _check_content(files: FileSystem, path: Path, entry: FileEntry) -> None:
    with _Reading(files, path) as reading:
        reading.check_size(entry.size)
        while piece := reading.file.read(_PIECE):
            reading.seen(piece)
        reading.check_sum(entry.checksum)


# -- Shards ----------------------------------------------------------------------------------------


def write_tensors(
    files: FileSystem, path: Path, tensors: Mapping[str, Tensor] | Staged
) -> FileEntry:
    """Write a file of tensors, durably, and return what it became.

    Raises:
        OSError: when the disk does not take it
    """
    with _Sink(files.create(path)) as sink:
        _write_into(sink, tensors)
        entry = sink.finish()
        sink.sync()
    return entry


def _write_into(sink: _Sink, tensors: Mapping[str, Tensor] | Staged) -> None:
    if isinstance(tensors, Staged):
        tensors.write(sink.write)
    else:
        tensor_file.write(tensors, sink.write)


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
    with _reading(path), _Reading(files, path) as reading, _no_tensors(path):
        return tensor_file.describe(reading.file, reading.size)


def read_tensors(files: FileSystem, path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Read some of the tensors in such a file.

    Raises: as `read`
    """
    with _reading(path), _Reading(files, path) as reading, _no_tensors(path):
        return tensor_file.read_some(reading.file, reading.size, names)


@contextmanager
def _no_tensors(path: Path) -> Iterator[None]:
    try:
        yield
    except tensor_file.BadTensorFile as error:
        raise Damaged(path, str(error)) from None


def _why_not_a_folder(path: Path) -> str:
    if path.is_file():
        return (
            f"{path} is a file, and a checkpoint is a folder; if it is one of torch.save, it holds "
            f"a pickle, which can run code when opened and is not read here"
        )
    if not path.exists():
        return f"There is no checkpoint at {path}: no such folder exists"
    return f"There is no checkpoint at {path}"


class _Sink:
    """A file that counts and checksums what is written to it."""

    def __init__(self, file: OutputFile) -> None:
        self._file = file
        self._size = 0
        self._sum = 0
        self._worker: Worker | None = None

    def __enter__(self) -> _Sink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._worker is not None:
            self._worker.close()
        self._file.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`; a long piece is checksummed while the disk takes it."""
        if not data:
            return
        view = memoryview(data)
        self._size += len(view)
        if len(view) < _INLINE:
            self._sum = crc32(view, self._sum)
            self._file.write(view)
            return
        if self._worker is None:
            self._worker = Worker("checkpoint-checksum")
        later = self._worker.submit(crc32, view, self._sum)
        self._file.write(view)
        self._sum = later.result()

    def finish(self) -> FileEntry:
        """Let the file go to the disk, and say what it became; `sync` makes it durable."""
        self._file.begin_sync()
        return FileEntry(self._size, _hex(self._sum))

    def sync(self) -> None:
        """Return when the file is on the disk."""
        self._file.sync()


class _Reading:
    """An open file, whose every failure is the damage of that file."""

    def __init__(self, files: FileSystem, path: Path) -> None:
        self._files = files
        self._path = path
        self._sum = 0
        self._worker = Worker("checkpoint-checksum")

    def __enter__(self) -> _Reading:
        try:
            self.file: BinaryIO = self._files.open(self._path)
        except OSError as error:
            self._explain(error)
            raise
        self.size = self.file.seek(0, 2)
        self.file.seek(0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._worker.close()
        self.file.close()
        if isinstance(error, OSError):
            self._explain(error)

    def _explain(self, error: OSError) -> None:
        if error.errno == errno.ENOENT:
            raise Damaged(self._path, "it is missing") from None
        if error.errno == errno.ELOOP:
            raise Damaged(self._path, "it is a link, and only regular files are read") from None
        if error.errno not in _NOT_DAMAGE:
            raise Damaged(self._path, f"it cannot be read ({error.strerror or error})") from error

    def seen(self, data: bytes | bytearray | memoryview) -> None:
        """Add to the checksum; of a long piece a thread takes the second half."""
        half = len(data) // 2
        if crc32_combine is None or half < _HALF:
            self._sum = crc32(data, self._sum)
            return
        view = memoryview(data)
        try:
            later = self._worker.submit(crc32, view[half:])
        except RuntimeError:  # no thread is to be had
            self._sum = crc32(data, self._sum)
            return
        first = crc32(view[:half], self._sum)
        self._sum = crc32_combine(first, later.result(), len(view) - half)

    def check_size(self, size: int) -> None:
        if self.size != size:
            raise Damaged(self._path, f"it has {self.size} bytes, and {size} were written")

    def check_sum(self, checksum: str) -> None:
        if _hex(self._sum) != checksum:
            raise Damaged(
                self._path, f"its checksum is {_hex(self._sum)}, and {checksum} was written"
            )
