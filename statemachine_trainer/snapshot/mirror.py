"""A second place for the checkpoints of a run: any address that fsspec knows, such as `s3://bucket/runs/mine`.

The folder on this machine stays what a run writes, and what it goes on from. A thread brings the other place to the
same checkpoints, so the run never waits for it. A checkpoint counts there once its manifest is there, which goes up
last and is deleted first: so one that is cut off half-way is none.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Final

from statemachine_trainer.files import is_address, names_in, path_given, read_regular
from statemachine_trainer.machine.keywords import HasSettings
from statemachine_trainer.snapshot import filesystem
from statemachine_trainer.snapshot.checkpoint_folder import MANIFEST
from statemachine_trainer.snapshot.filesystem import FOLDER, LocalFileSystem
from statemachine_trainer.snapshot.snapshot_errors import (
    BadMirror,
    Damaged,
    NotACheckpoint,
    SnapshotMismatch,
    Unreadable,
    WriteFailed,
)

_BESIDE: Final = ("run.json", "pins.json")
"""Small files of the folder that belong to the checkpoints: how the run was started, and what is kept for ever."""

_HALF: Final = f"{MANIFEST}.half"
_FILE: Final = re.compile(r"[\w.-]{1,100}")
_LONGEST: Final = 16 << 20
_EXTRAS: Final = {"s3": "'statemachine-trainer[remote]'", "s3a": "'statemachine-trainer[remote]'"}
_WITHOUT_FOLDERS: Final = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "memory"}
_log = logging.getLogger(__name__)


class Mirror(HasSettings):
    """Another place to which the checkpoints of a run are sent, in the background.

    Checkpoints("runs/mine", mirror=Mirror("s3://bucket/runs/mine", options={"anon": True}))

    It holds what the folder holds: what retention deletes goes there too, some time later. One run at a time
    writes to it. Nothing sees to that but a look at the beginning.

    Args:
        address: Such as "s3://bucket/runs/mine", "gs://bucket/runs/mine" or "file:///mnt/runs/mine".
        options: For the file system of fsspec, such as `endpoint_url`, or `key` and `secret`, of s3.

    Raises:
        BadMirror: It is no address, its kind is unknown, or the package for it is not installed.
    """

    def __init__(self, address: str, *, options: Mapping[str, Any] | None = None) -> None:
        if options is not None and not isinstance(options, Mapping):
            raise BadMirror(f"options={options!r}: give a dict, such as {{'endpoint_url': ...}}.")
        self.address = address
        self.options = dict(options or {})
        self._files, self._root, self._kind = _opened(address, self.options)
        self._seen: set[str] = set()
        self._same: set[str] = set()
        self._beside: dict[str, bytes] = {}
        self._lock = Lock()
        self._folder: Path | None = None
        self._wanted: Path | None = None
        self._thread: Thread | None = None
        self._failed: tuple[Path, Exception] | None = None

    def __repr__(self) -> str:
        return f"Mirror({self.address!r})"

    def fetch(self, folder: str | Path) -> list[Path]:
        """Bring the checkpoints of the mirror to a folder, unless its own newest one is as new.

        A file that has not the size that was written is told, and its checkpoint left where it is.

        Args:
            folder: Where; made if need be.

        Returns:
            The checkpoints that were brought, the oldest first.

        Raises:
            Unreadable: The mirror cannot be read.
            SnapshotMismatch: Folder and mirror hold different checkpoints under one name, or different runs.
            WriteFailed: There is a file in the place of the folder.
        """
        root = path_given(folder)
        self.forget()
        if root.exists() and not root.is_dir():
            raise WriteFailed(f"{root} is no folder to bring checkpoints to. Name another one.")
        with self._reading():
            there, here = self.whole(), _local(root)
            for name in sorted(there & here):
                self._check_same(root, name)
            if here and there and not there & here:
                self._check_same_run(root)
            self._seen |= here
            if _newest(here) >= _newest(there):
                return []
            self._bring_beside(root)
            # The newest comes last: until it is here, a fetch that was cut off is made again.
            found = [self._passed_over(root, name) for name in sorted(there - here, key=number_of)]
        return [path for path in found if path is not None]

    # -- for the checkpoints of a run ------------------------------------------------------------

    def whole(self) -> set[str]:
        """Return the names of the checkpoints that are whole there.

        Raises:
            Unreadable: The mirror cannot be read.
        """
        with self._reading():
            return {name for name, files in self._content().items() if MANIFEST in files}

    def belong_to(self, folder: Path) -> None:
        """Serve one folder alone: what is there is known by the names of its checkpoints.

        Raises:
            BadMirror: It serves another one, or it is that folder.
        """
        if self._folder not in (None, folder):
            raise BadMirror(
                f"{self!r} holds the checkpoints of {self._folder}, and not of {folder}. Make another one, with an "
                "address of its own."
            )
        if self._kind in ("file", "local") and Path(self._root).resolve() == folder.resolve():
            raise BadMirror(f"{self!r} is the folder itself. Name another place, or leave it out.")
        self._folder = folder

    def forget(self) -> None:
        """Forget what was sent: a new run begins."""
        self._seen.clear()
        self._same.clear()
        self._beside.clear()

    def try_to_write(self) -> None:
        """Write a few bytes there and take them away, to learn at the beginning that this can be done.

        Raises:
            WriteFailed: It cannot.
        """
        with self._writing("The mirror cannot be written"):
            probe = self._at(f"probe-{filesystem.temporary_name('')[-9:-1]}")
            self._put(probe, b".")
            self._files.rm_file(probe)

    def set_aside(self) -> None:
        """Move what an earlier run left there to a folder of its own below, such as `earlier-1`.

        Raises:
            WriteFailed: It cannot be moved.
        """
        with self._writing("What an earlier run left in the mirror cannot be moved"):
            content = self._content()
            if not any(MANIFEST in files for files in content.values()):
                return
            paths = [one[len(self._root) + 1 :] for one in self._files.find(self._root)]
            numbers = [int(n) for n in re.findall(r"^earlier-(\d+)/", "\n".join(paths), re.M)]
            aside = f"earlier-{max(numbers, default=0) + 1}"
            for name in sorted(
                content, key=number_of, reverse=True
            ):  # what is left is an older run
                for file in _in_order(content[name]):
                    self._copy(f"{name}/{file}", f"{aside}/{name}/{file}")
                self._remove(name, content[name])
            for name in _BESIDE:
                if self._files.exists(self._at(name)):
                    self._copy(name, f"{aside}/{name}")
                    self._files.rm_file(self._at(name))
            self.forget()

    def send(self, folder: Path) -> None:
        """Have a thread bring the mirror to what a folder holds; does not wait for it."""
        with self._lock:
            self._wanted = folder
            if self._thread is None:
                self._thread = Thread(target=self._run, name="checkpoint-mirror", daemon=False)
                self._thread.start()

    def wait(self) -> None:
        """Return when all is there that was sent. What failed is tried once more.

        Raises:
            WriteFailed: It failed again. The folder on this machine holds it.
        """
        while (thread := self._thread) is not None:
            thread.join()
        failed, self._failed = self._failed, None
        if failed is not None:
            with self._writing(
                f"The checkpoints of {failed[0]} could not all be sent to the mirror"
            ):
                self._bring(failed[0])

    # -- sending ---------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._lock:
                folder, self._wanted = self._wanted, None
                if folder is None:
                    self._thread = None
                    return
            try:
                self._bring(folder)
                self._failed = None
            except Exception as error:  # of any service; whoever waits hears of it
                self._failed = folder, error
                _log.error("The mirror %s could not be written: %s", self.address, error)

    def _bring(self, folder: Path) -> None:
        """Make the mirror hold what a folder holds."""
        here, content = _local(folder), self._content()
        self._seen |= here
        # The newest one is wanted most.
        there = {name for name in self._same if MANIFEST in content.get(name, ())}
        for name in sorted(here - there, key=number_of, reverse=True):
            self._send(folder, name, content.get(name, set()))
        for name in _BESIDE:
            text = _read_if_there(folder / name)
            if text is not None and self._beside.get(name) != text:
                self._put(self._at(name), text)
                self._beside[name] = text
        for name, files in content.items():
            gone = name in self._seen if MANIFEST in files else True  # else one that was cut off
            if gone and name not in _local(folder):
                self._remove(name, files)

    def _send(self, folder: Path, name: str, there: set[str]) -> None:
        path = folder / name
        try:
            manifest = read_regular(path / MANIFEST, _LONGEST)
            if MANIFEST in there:
                if self._files.cat_file(self._at(name, MANIFEST)) == manifest:
                    self._same.add(name)
                    return
                self._files.rm_file(self._at(name, MANIFEST))
            for file in sorted({*names_in(path)} - {MANIFEST}):
                self._make_folder(self._at(name))
                self._files.put_file(str(path / file), self._at(name, file))
            self._put_at_once(self._at(name, MANIFEST), manifest)
            self._same.add(name)
        except FileNotFoundError:
            if path.exists():
                raise
            # Retention has deleted it meanwhile.
            self._remove(name, self._content().get(name, set()))

    def _remove(self, name: str, files: set[str]) -> None:
        for file in reversed(_in_order(files)):
            self._files.rm_file(self._at(name, file))
        self._same.discard(name)
        if self._kind not in _WITHOUT_FOLDERS:
            with suppress(OSError):
                self._files.rmdir(self._at(name))

    # -- fetching --------------------------------------------------------------------------------

    def _check_same(self, root: Path, name: str) -> None:
        if read_regular(root / name / MANIFEST, _LONGEST) != self._files.cat_file(
            self._at(name, MANIFEST)
        ):
            raise SnapshotMismatch(
                f"{root / name} and {self.address}/{name} are different checkpoints: the run has gone on in two "
                "places. Move one of both elsewhere."
            )
        self._same.add(name)

    def _check_same_run(self, root: Path) -> None:
        """Refuse two runs of which no checkpoint has the same name. What is told of both began at another time."""
        record = _BESIDE[0]
        if not self._files.exists(self._at(record)):
            return
        there = _events(self._files.cat_file(self._at(record)))
        here = _events(_read_if_there(root / record) or b"")
        if there and here and not there & here:
            raise SnapshotMismatch(
                f"{root} and {self.address} hold different runs. Choose another folder, or another address; or move "
                "what is in the folder elsewhere."
            )

    def _bring_beside(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        for name in _BESIDE:
            if not (root / name).exists() and self._files.exists(self._at(name)):
                (root / name).write_bytes(self._files.cat_file(self._at(name)))

    def _passed_over(self, root: Path, name: str) -> Path | None:
        """Bring a checkpoint; one that is damaged is told, and left where it is."""
        try:
            return self._fetched(root, name)
        except (FileNotFoundError, Damaged, NotACheckpoint) as error:
            _log.error("%s/%s is damaged, and passed over: %s", self.address, name, error)
            return None

    def _fetched(self, root: Path, name: str) -> Path:
        from statemachine_trainer.snapshot.reading import check  # few fetch any

        temporary = root / filesystem.temporary_name(name)
        temporary.mkdir()
        try:
            self._get(name, self._content().get(name, set()), temporary)
            check(LocalFileSystem(), temporary)
        except (FileNotFoundError, Damaged, NotACheckpoint):
            for file in names_in(temporary):
                (temporary / file).unlink()
            temporary.rmdir()
            raise
        temporary.rename(root / name)
        self._seen.add(name)
        self._same.add(name)
        return root / name

    def _get(self, name: str, files: set[str], target: Path) -> None:
        for file in _in_order(files - {_HALF}):
            self._files.get_file(self._at(name, file), str(target / file))

    # -- parts -----------------------------------------------------------------------------------

    def _content(self) -> dict[str, set[str]]:
        """Return the files of each checkpoint that is there, whole or not."""
        self._files.invalidate_cache()
        content: dict[str, set[str]] = {}
        try:
            paths = self._files.find(self._root)
        except FileNotFoundError:
            paths = []
        for path in paths:
            folder, _, file = path[len(self._root) + 1 :].partition("/")
            if FOLDER.fullmatch(folder) and _FILE.fullmatch(file):
                content.setdefault(folder, set()).add(file)
        return content

    def _at(self, *names: str) -> str:
        return "/".join((self._root, *names))

    def _put(self, path: str, data: bytes) -> None:
        self._make_folder(path.rpartition("/")[0])
        self._files.pipe_file(path, data)

    def _put_at_once(self, path: str, data: bytes) -> None:
        """Write a file that is whole or not there, which object stores do by themselves."""
        if self._kind in _WITHOUT_FOLDERS:
            self._put(path, data)
        else:
            half = f"{path.rpartition('/')[0]}/{_HALF}"
            self._put(half, data)
            self._files.mv(half, path)

    def _copy(self, source: str, target: str) -> None:
        self._make_folder(self._at(target).rpartition("/")[0])
        self._files.cp_file(self._at(source), self._at(target))

    def _make_folder(self, path: str) -> None:
        if self._kind not in _WITHOUT_FOLDERS:
            self._files.makedirs(path, exist_ok=True)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (SnapshotMismatch, Unreadable, Damaged, NotACheckpoint):
            raise
        except Exception as error:
            raise Unreadable(
                f"The mirror {self.address} cannot be read ({_text(error)}). It may hold newer checkpoints than this "
                "machine: mend that and try again, or do without it."
            ) from error

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise WriteFailed(
                f"{what}: {self.address}: {_text(error)}. The checkpoints on this machine are untouched."
            ) from error


def mirror_given(mirror: object) -> Mirror | None:
    """Convert the argument of `Checkpoints(mirror=...)`.

    Raises:
        BadMirror: It is neither an address nor a `Mirror`.
    """
    if mirror is None or isinstance(mirror, Mirror):
        return mirror
    if isinstance(mirror, str):
        return Mirror(mirror)
    raise BadMirror(f"mirror={mirror!r}: give an address, such as 's3://bucket/runs/mine'.")


def _opened(address: object, options: Mapping[str, Any]) -> tuple[Any, str, str]:
    """Return the file system of an address, the path in it, and its kind, such as "s3"."""
    if not isinstance(address, str) or not is_address(address) or "::" in address:
        raise BadMirror(
            f"{address!r} is no address of a mirror. Give one such as 's3://bucket/runs/mine', or "
            "'file:///mnt/runs/mine'."
        )
    kind = address.partition(":")[0]
    known = importlib.import_module("fsspec.registry").known_implementations
    opening: Callable[..., tuple[Any, str]] = importlib.import_module("fsspec.core").url_to_fs
    try:
        files, root = opening(address, use_listings_cache=False, **options)
    except ImportError as error:
        package = (
            _EXTRAS.get(kind) or f"the package for it ({known.get(kind, {}).get('err', error)})"
        )
        raise BadMirror(f"{address!r}: pip install {package} first.") from error
    except Exception as error:
        raise BadMirror(
            f"{address!r} cannot be opened: {_text(error)}. Kinds of addresses are s3, gs, abfs, sftp, file and "
            "others that fsspec knows."
        ) from error
    root = root.rstrip("/")
    if not root:
        raise BadMirror(f"{address!r} names no folder. Add one: '{address.rstrip('/')}/runs/mine'.")
    return files, root, kind


def _local(folder: Path) -> set[str]:
    """Return the names of the checkpoints in a folder."""
    return {
        name
        for name in names_in(folder)
        if FOLDER.fullmatch(name) and (folder / name / MANIFEST).is_file()
    }


def _read_if_there(path: Path) -> bytes | None:
    try:
        return read_regular(path, _LONGEST)
    except OSError:
        return None


def _events(record: bytes) -> set[tuple[str, str]]:
    """Return the events of the record of a run, with their times; none where it is no such record."""
    try:
        history = json.loads(record)["history"]
        return {(str(one["event"]), str(one["at"])) for one in history}
    except (ValueError, TypeError, KeyError, RecursionError):
        return set()


def number_of(name: str) -> int:
    """Return the number of a checkpoint by its name: later ones have higher ones."""
    return int(name.partition("-")[0])


def _newest(names: set[str]) -> int:
    return max(map(number_of, names), default=0)


def _in_order(files: set[str]) -> list[str]:
    """Return the files of a checkpoint in the order in which they are written: the manifest last."""
    return sorted(files, key=lambda one: (one == MANIFEST, one))


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
