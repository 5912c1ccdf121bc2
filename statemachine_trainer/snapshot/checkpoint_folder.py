"""One checkpoint, one folder of three files, or a few more: what they hold, and how they are written.

- ``manifest.json``: what a person asks first (when, which versions, the caller's metadata), and the
  size and checksum of the other files, and of itself;
- ``state.json``: the tree;
- ``tensors.safetensors``: its tensors;
- ``shard-RANK.safetensors``: parts of tensors that are cut up among ranks, if there are any; see `shards`.

The checksum is CRC-32, which the zip container of `torch.save` uses too. It finds accidents: torn
writes, flipped bits. No checksum kept beside the data finds intent, since whoever changes the one
can change the other; against intent stand the checks of `strictjson`, `tensor_file` and `codec`,
and that nothing here is a pickle. It is the fastest that Python has (4 GB/s, where SHA-256 makes
1.7 and BLAKE2 0.9), and runs in a thread beside the writing. `reading` checks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from torch import Tensor

from statemachine_trainer.snapshot import codec, strictjson, tensor_file
from statemachine_trainer.snapshot.filesystem import FileSystem, OutputFile
from statemachine_trainer.snapshot.snapshot_errors import Unwritable
from statemachine_trainer.snapshot.strictjson import Json
from statemachine_trainer.snapshot.threads import Staged, Worker

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

MANIFEST_LIMIT = 16 << 20
STATE_LIMIT = 256 << 20
_INLINE = 256 << 10  # below this a thread costs more than it saves

# The checksum of a manifest stands in the manifest, at a fixed place, and covers all that follows.
_OPENING = b'{\n  "checksum": "'
_CLOSING = b'",\n'
_DIGITS = 8
OPENING_SIZE = len(_OPENING) + _DIGITS + len(_CLOSING)


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


Beside: TypeAlias = Callable[[Path], Mapping[str, FileEntry]]
"""Writes further files into the folder of a checkpoint, durably, and returns what they are."""


@dataclass(frozen=True)
class Draft:
    """A checkpoint in memory, ready to be written: nothing in it changes any more."""

    name: str
    created: datetime
    versions: Mapping[str, str]
    metadata: Json
    document: codec.Document
    tensors: Mapping[str, Tensor] | Staged
    beside: Beside | None = None


def draft_of(
    tree: object,
    *,
    name: str,
    metadata: Mapping[str, object],
    versions: Mapping[str, str],
    beside: Beside | None = None,
) -> tuple[Draft, dict[str, Tensor]]:
    """Draft a checkpoint of a tree; return its tensors, too, to be copied where it is written later.

    Raises:
        Unwritable: when the tree or the metadata holds something that is not plain
    """
    document, tensors = codec.encode(tree)
    described, strangers = codec.encode({"metadata": dict(metadata)})
    for stranger in strangers:
        raise Unwritable(
            stranger, "metadata holds no tensors", "write its .item(), or put it in the tree"
        )
    content = described["tree"]
    assert isinstance(content, dict)
    draft = Draft(
        name=name,
        created=datetime.now(UTC),
        versions=versions,
        metadata=content["metadata"],
        document=document,
        tensors=tensors,
        beside=beside,
    )
    return draft, tensors


def write(files: FileSystem, folder: Path, draft: Draft) -> tuple[Manifest, bytes]:
    """Make `folder` and write a checkpoint into it, durably.

    Returns:
        Its manifest, and the text of that.

    Raises:
        Unwritable: when the tree is too large for JSON; nothing was written then
        OSError: when the disk does not take it; an unfinished folder stays behind
    """
    state = strictjson.dumps(draft.document)
    if len(state) > STATE_LIMIT:
        raise Unwritable(
            "",
            f"without its tensors it is {len(state) >> 20} MB of JSON, "
            f"and {STATE_LIMIT >> 20} MB are allowed",
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


def opening_of(body: bytes) -> bytes:
    """Return what a manifest begins with: the checksum of all that follows."""
    return _OPENING + checksum_text(crc32(body)).encode() + _CLOSING


def checksum_text(checksum: int) -> str:
    """Return a checksum as manifests write it."""
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
    if len(body) > MANIFEST_LIMIT // 2:
        raise Unwritable(
            "metadata", f"it is {len(body) >> 20} MB", "keep what is large in the tree instead"
        )
    return opening_of(body) + body


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
        return FileEntry(self._size, checksum_text(self._sum))

    def sync(self) -> None:
        """Return when the file is on the disk."""
        self._file.sync()
