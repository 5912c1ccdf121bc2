"""The checkpoints of one run, in one folder."""

from __future__ import annotations

import difflib
import json
import os
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from types import TracebackType

import numpy as np
import torch

from statemachine_trainer.files import path_given
from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.snapshot import checkpoint_folder, codec, filesystem
from statemachine_trainer.snapshot.checkpoint import Info, Loaded, info_of, info_of_damaged
from statemachine_trainer.snapshot.checkpoint_folder import Beside
from statemachine_trainer.snapshot.filesystem import (
    FOLDER,
    NAME,
    FileSystem,
    LocalFileSystem,
    is_abandoned,
)
from statemachine_trainer.snapshot.retention import (
    PINS,
    Known,
    Retention,
    Written,
    no_longer_kept,
    pins_of,
)
from statemachine_trainer.snapshot.snapshot_errors import (
    BadName,
    CleanupWarning,
    Damaged,
    DamagedCheckpointWarning,
    FormatTooNew,
    NotACheckpoint,
    PassedOver,
    SnapshotMismatch,
    Unreadable,
    WriteFailed,
)
from statemachine_trainer.snapshot.threads import Background, Staging

_LATEST = "latest"


class Store:
    """The checkpoints of one run.

    A checkpoint appears whole or not at all: it is written to a temporary folder, made durable, and
    renamed into place; only then are older ones deleted. One process writes to a store; any number
    may read it meanwhile. In the folder stand ``000012-NAME/`` for each checkpoint, ``latest``, a
    file with the name of the newest folder, for people and scripts, and ``pins.json``.

    Args:
        root: the folder; made at the first save
        retention: which checkpoints are kept
        background: whether `save` returns once it has a copy, and a thread writes that. At most one
            write is under way: the next `save` waits for it first. A write that fails is raised by
            the next `save`, `wait` or `close`. The copy takes as much memory of the CPU as the tree
            has tensors, until `close`.
        versions: of packages to note in each manifest, beside python, torch and numpy
        files: the file system; another one is for tests

    Attributes:
        owned: makes a context around each write, in which the folder is that of this process
        staging_of_parts: copies what goes beside a checkpoint in the background; None in the foreground
        check_owned: called before each step of a write that others see; raises where the folder has become
            that of another run
        settled: called after each write, once what is no longer kept is deleted

    Example:
        >>> import tempfile, torch
        >>> store = Store(Path(tempfile.mkdtemp()), retention=Retention(last=2))
        >>> path = store.save({"w": torch.ones(2)}, name="step-1", metadata={"step": 1})
        >>> store.newest().tree
        {'w': tensor([1., 1.])}
    """

    def __init__(
        self,
        root: str | Path,
        *,
        retention: Retention | None = None,
        background: bool = False,
        versions: Mapping[str, str] | None = None,
        files: FileSystem | None = None,
    ) -> None:
        self.root = path_given(root)
        self.retention = retention or Retention()
        self.owned: Callable[[], AbstractContextManager[object]] = nullcontext
        self.check_owned: Callable[[], object] = _nobody_asks
        self.settled: Callable[[], object] = _nobody_asks
        self._files = files or LocalFileSystem(together=not background)
        self._staging = Staging() if background else None
        self.staging_of_parts = Staging() if background else None
        self._background = Background()
        self._writing = Lock()
        self._known: Known[Info] = Known()
        self._paths: dict[str, Path] = {}  # of the checkpoints, by name: a path takes long to make
        self.versions = {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            **(versions or {}),
        }

    # -- writing

    def save(
        self,
        tree: object,
        *,
        name: str,
        metadata: Mapping[str, object] | None = None,
        beside: Beside | None = None,
        run: Callable[[Callable[[], None]], None] | None = None,
    ) -> Path:
        """Write a checkpoint; one of the same name is replaced once this one is safe.

        Args:
            tree: see `encode`
            name: letters, digits and ``._=+-``
            metadata: a plain tree without tensors that `list` shows. Retention looks at ``step``,
                ``epoch`` and ``metrics``, a dict of numbers.
            beside: writes further files into the folder before it appears, and returns what they are
            run: in the background, calls what it is given, which writes

        Returns:
            The folder: in the foreground it is there, in the background it will be.

        Raises:
            Unwritable: when the tree or the metadata holds something that is not plain
            BadName: when no folder can have this name
            WriteFailed: when the disk did not take it, or, in the background, the one before
        """
        if not NAME.fullmatch(name):
            raise BadName(
                f"{name!r} cannot name a checkpoint; use up to 100 letters, digits and ._=+-, "
                f"beginning with a letter or digit"
            )
        self.wait()
        draft, tensors = checkpoint_folder.draft_of(
            tree, name=name, metadata=metadata or {}, versions=self.versions, beside=beside
        )
        with self._failing(name):
            filesystem.make_folders(self._files, self.root)
            target = self.root / f"{self._next_number():06d}-{name}"
        if self._staging is None:
            self._write(draft, target)
        else:
            copied = replace(draft, tensors=self._staging.copy(tensors))
            write = partial(self._write, copied, target)
            self._background.start(write if run is None else partial(run, write))
        return target

    def take_part(self, job: Callable[[], None]) -> None:
        """Do in the background what the process that writes to this folder waits for."""
        self._background.start(job)

    def try_to_write(self) -> None:
        """Make the folder if need be, write a byte in it, and take that away.

        Raises:
            OSError: It cannot be done.
        """
        filesystem.make_folders(self._files, self.root)
        probe = self.root / filesystem.temporary_name("probe")
        file = self._files.create(probe)
        try:
            file.write(b".")
        finally:
            file.close()
            self._files.remove(probe)

    def _write(self, draft: checkpoint_folder.Draft, target: Path) -> None:
        with self._writing, self.owned():
            self.check_owned()
            with self._failing(draft.name):
                hidden = [one for one in self._files.names(self.root) if one.startswith(".")]
                left = [path for path in map(self.root.__truediv__, hidden) if is_abandoned(path)]
                self._delete(left)
                manifest, text = self._commit(draft, target)
                self.check_owned()
            self._point_to(target)
            sizes = {name: entry.size for name, entry in manifest.files.items()}
            sizes[checkpoint_folder.MANIFEST] = len(text)
            info = info_of(manifest, int(target.name.partition("-")[0]), draft.name, target)
            self._retain(Written(info, (target / checkpoint_folder.MANIFEST, text), sizes))
        self.settled()

    def _point_to(self, target: Path) -> None:
        """Name the newest checkpoint in a file for people; nothing that resumes reads it."""
        try:
            filesystem.replace_file(
                self._files, self.root / _LATEST, target.name.encode() + b"\n", wait=False
            )
        except OSError as error:
            warnings.warn(
                f"{self.root / _LATEST} could not be written: {error}. The checkpoint is there; the next save "
                "tries again.",
                CleanupWarning,
                stacklevel=level_of_caller(),
            )

    def _commit(
        self, draft: checkpoint_folder.Draft, target: Path
    ) -> tuple[checkpoint_folder.Manifest, bytes]:
        temporary = self.root / filesystem.temporary_name(target.name)
        try:
            written = checkpoint_folder.write(self._files, temporary, draft)
            self.check_owned()  # while that was written somebody may have got the folder
            self._files.rename(temporary, target)
        except BaseException:
            with suppress(OSError):
                filesystem.remove_all(self._files, temporary)
            raise
        self._files.sync_folder(self.root)
        return written

    @contextmanager
    def _failing(self, name: str) -> Iterator[None]:
        """Tell an error of the disk as one of the checkpoint that was to be written."""
        try:
            yield
        except OSError as error:
            # Of a folder that cannot be listed, the error of the disk says what is to be mended.
            listing = isinstance(error, Unreadable) and isinstance(error.__cause__, OSError)
            cause = error.__cause__ if listing else error
            raise WriteFailed(
                f"checkpoint {name!r} could not be written to {self.root}: {cause}; make room, or "
                f"choose another folder. The checkpoints before it are untouched."
            ) from cause

    def _next_number(self) -> int:
        numbers = [int(match[1]) for match in map(FOLDER.fullmatch, self._names()) if match]
        return max(numbers, default=0) + 1

    # -- keeping and deleting

    def pin(self, name: str) -> None:
        """Keep a checkpoint whatever retention says; waits for a write that is under way."""
        with self._writing, self._failing(name):
            self._find(name)  # the write that was waited for may have deleted it
            self._write_pins(pins_of(self.root) | {name})

    def unpin(self, name: str) -> None:
        """Let retention decide again, from the next save on."""
        with self._writing, self._failing(name):
            self._write_pins(pins_of(self.root) - {name})

    def _write_pins(self, names: set[str]) -> None:
        text = json.dumps([*sorted(names)], indent=2, ensure_ascii=False)
        filesystem.replace_file(self._files, self.root / PINS, text.encode() + b"\n")

    def _retain(self, written: Written[Info]) -> None:
        """Delete what no rule keeps; what is damaged is left for a person to look at."""
        try:
            pins = pins_of(self.root)
            infos = self._known.of(self._entries(), self._info, written)
        except (Damaged, OSError) as error:
            warnings.warn(
                f"{error}. Nothing is deleted meanwhile.",
                CleanupWarning,
                stacklevel=level_of_caller(),
            )
            return
        self._delete(no_longer_kept(self.retention, infos, pins))

    def _delete(self, paths: Iterable[Path]) -> None:
        try:
            filesystem.delete(self._files, self.root, paths, self.check_owned)
        except OSError as error:
            warnings.warn(
                f"In {self.root}, what is no longer needed could not be deleted: {error}. "
                f"The next save tries again.",
                CleanupWarning,
                stacklevel=level_of_caller(),
            )

    # -- reading

    def list(self) -> Sequence[Info]:
        """All checkpoints, the oldest first, from their manifests alone."""
        found = [self._info(*entry) for entry in self._entries()]
        # The writer may have deleted one since its name was read.
        return [info for info in found if info.damage is None or os.path.lexists(info.path)]

    def load(
        self,
        name_or_path: str | Path,
        *,
        map_location: codec.MapLocation = None,
        check_shards: bool = True,
        mmap: bool = False,
    ) -> Loaded:
        """Read one checkpoint.

        Args:
            name_or_path: its name in this store, or the path of its folder anywhere
            map_location: see `decode`
            check_shards: whether parts of tensors that are cut up are checked, too
            mmap: whether large weights of the model of a fit may stay in their file, see `MappedWeights`;
                whoever asks for it has to `close` what is returned

        Raises:
            NotACheckpoint: when there is none
            Damaged: when its files are not what was written
            FormatTooNew: when a later version of this package wrote it
        """
        from statemachine_trainer.snapshot import reading  # a run that begins reads nothing

        is_name = isinstance(name_or_path, str) and NAME.fullmatch(name_or_path)
        path = self._find(str(name_or_path)) if is_name else path_given(name_or_path)
        try:
            manifest, tree, mapped = reading.read(
                self._files, path, map_location=map_location, check_shards=check_shards, mmap=mmap
            )
        except (Damaged, Unreadable):
            if os.path.lexists(path):
                raise
            raise NotACheckpoint(f"{path} was deleted while it was read; see list()") from None
        return Loaded(tree, manifest.metadata, path, manifest.versions, mapped)

    def newest(
        self,
        *,
        map_location: codec.MapLocation = None,
        misfit: Callable[[Loaded], str | None] | None = None,
        mmap: bool = False,
    ) -> Loaded | None:
        """Read the newest whole checkpoint; None when the store has none at all.

        A damaged one is passed over with a `DamagedCheckpointWarning` that names the damage.

        Args:
            map_location: see `decode`
            misfit: says why one cannot be used; such a one is passed over with a `PassedOver`
            mmap: see `load`

        Raises:
            Damaged: when there are checkpoints and none is whole: beginning anew is a decision
            FormatTooNew: when a later version of this package wrote it
            SnapshotMismatch: when there are whole ones, and none can be used
        """
        damages, misfits = [], []
        for _, _, path in reversed(self._entries()):
            try:
                loaded = self.load(path, map_location=map_location, mmap=mmap)
                why = None if misfit is None else misfit(loaded)
                if why is None:
                    return loaded
                loaded.close()
                misfits.append(f"{path.name}: {why}")
                warnings.warn(
                    f"Passing over {path.name}, and going on from an older one: {why}",
                    PassedOver,
                    stacklevel=level_of_caller(),
                )
            except (Damaged, NotACheckpoint) as error:
                if not path.exists():  # its writer has a newer one, and deleted this meanwhile
                    return self.newest(map_location=map_location, misfit=misfit, mmap=mmap)
                damages.append(str(error))
                warnings.warn(
                    f"Passing over a damaged checkpoint: {error}",
                    DamagedCheckpointWarning,
                    stacklevel=level_of_caller(),
                )
        if misfits:
            raise SnapshotMismatch(
                f"No checkpoint in {self.root} can be gone on from. {'; '.join([*misfits, *damages])}"
            )
        if damages:
            raise Damaged(self.root, "no checkpoint in it is whole: " + "; ".join(damages))
        return None

    def _names(self) -> Sequence[str]:
        try:
            return self._files.names(self.root)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise Unreadable(f"{self.root} cannot be read ({error}).") from error

    def _entries(self) -> Sequence[tuple[int, str, Path]]:
        """Number, name and folder of each checkpoint, the oldest first."""
        known, paths, found = self._paths, {}, []
        for match in map(FOLDER.fullmatch, self._names()):
            if match is None:
                continue
            path = known.get(match[0]) or self.root / match[0]
            paths[match[0]] = path
            if not path.is_symlink():
                found.append((int(match[1]), match[2], path))
        self._paths = paths
        return sorted(found)

    def _info(self, sequence: int, name: str, path: Path) -> Info:
        from statemachine_trainer.snapshot import reading

        try:
            manifest = reading.check(self._files, path)
        except (Damaged, NotACheckpoint, FormatTooNew, OSError) as error:
            return info_of_damaged(sequence, name, path, str(error))
        return info_of(manifest, sequence, name, path)

    def _find(self, name: str) -> Path:
        entries = self._entries()
        for _, present, path in reversed(entries):
            if present == name:
                return path
        near = difflib.get_close_matches(name, [present for _, present, _ in entries])
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "see its list()"
        raise NotACheckpoint(f"{self.root} has no checkpoint named {name!r}; {hint}")

    # -- the end

    def wait(self) -> None:
        """Return when no write is under way; raise the error of one that failed."""
        self._background.wait()

    def rest(self) -> None:
        """Return when no write is under way; the error of one that failed is left for whoever asks next."""
        self._background.join()

    def close(self) -> None:
        """Wait, and give back the memory of the copy."""
        try:
            self.wait()
        finally:
            for one in (self._staging, self.staging_of_parts):
                if one is not None:
                    one.release()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _nobody_asks() -> None:
    """See to nothing: a store by itself belongs to whoever writes to it."""
