"""Checkpoints that lie at an address of fsspec, such as `s3://bucket/runs/mine`: brought here, and read.

An address is a text. A path object of one has lost its slashes, and is refused where paths are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from statemachine_trainer.files import is_address
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.snapshot.checkpoint import Loaded
from statemachine_trainer.snapshot.checkpoint_folder import MANIFEST
from statemachine_trainer.snapshot.filesystem import FOLDER
from statemachine_trainer.snapshot.loading import load_checkpoint
from statemachine_trainer.snapshot.mirror import Mirror, number_of
from statemachine_trainer.snapshot.snapshot_errors import NotACheckpoint, SnapshotMismatch
from statemachine_trainer.snapshot.store import Store


class _Source(Mirror):
    """An address that checkpoints are read from."""

    def fetch_newest(self, folder: Path) -> Path | None:
        """Bring the newest whole checkpoint, and nothing else, to an empty folder; None if there is none.

        Raises:
            Unreadable: The mirror cannot be read.
        """
        with self._reading():
            names = sorted(self.whole(), key=number_of, reverse=True)
            self._bring_beside(folder)
            return next((path for name in names if (path := self._passed_over(folder, name))), None)

    def copy(self, folder: Path) -> bool:
        """Bring all checkpoints to an empty folder, as they are: damaged ones too. Return whether there are any.

        Raises:
            Unreadable: The mirror cannot be read.
        """
        with self._reading():
            self._bring_beside(folder)
            whole = {name: files for name, files in self._content().items() if MANIFEST in files}
            for name, files in whole.items():
                (folder / name).mkdir()
                with suppress(FileNotFoundError):  # its run has deleted it meanwhile
                    self._get(name, files, folder / name)
        return bool(whole)

    def fetch_one(self, folder: Path, name: str) -> Path:
        """Bring one checkpoint to a folder that does not have it.

        Raises:
            NotACheckpoint: There is no such checkpoint.
            Damaged: It is not what was written.
            Unreadable: The mirror cannot be read.
        """
        with self._reading():
            if name not in self.whole():
                raise NotACheckpoint(f"There is no checkpoint {name} at {self.address!r}.")
            self._bring_beside(folder)
            return self._fetched(folder, name)


@contextmanager
def at_hand(place: str | Path, *, whole_run: bool = False) -> Iterator[str | Path]:
    """Yield a folder of this machine with what there is at a place: the place itself, unless it is an address.

    From an address checkpoints are brought to a temporary folder, which is gone when the block ends.

    Args:
        place: The folder or address of a run, or of one checkpoint.
        whole_run: Bring all checkpoints of the run as they are, not only the newest whole one.

    Raises:
        NotACheckpoint: There is none at the address.
        Damaged: The one that was named is not what was written.
        BadMirror: The kind of the address is unknown, or the package for it is not installed.
        Unreadable: It cannot be read.
    """
    if not (isinstance(place, str) and is_address(place)):
        yield place
        return
    run, name = _run_and_checkpoint(place)
    there = _Source(run)
    with tempfile.TemporaryDirectory(prefix="smt-") as temporary:
        folder = Path(temporary) / run.rpartition("/")[2]
        if name is not None:
            yield there.fetch_one(folder, name)
            return
        if not (there.copy(folder) if whole_run else there.fetch_newest(folder)):
            raise _none_at(place)
        yield folder


def find_at(
    address: str,
    store: Store | None,
    mirror: Mirror | None,
    misfit: Callable[[Loaded], str | None] | None = None,
) -> Loaded:
    """Find the checkpoint that a run goes on from at an address.

    Checkpoints are brought to the store, which goes on with them: it keeps what it has, if that is as new.
    Without a store the checkpoint is read from a temporary folder.

    Args:
        address: Of a run, or of one checkpoint.
        store: That of the run; None if it writes no checkpoints.
        mirror: That of the store.
        misfit: Says why a checkpoint cannot be used; see `Store.newest`.

    Raises:
        NotACheckpoint: There is none.
        SnapshotMismatch: The store, or its mirror, has another run; or none can be used.
        Damaged, BadMirror, Unreadable: As for `at_hand`.
    """
    if store is None:
        if Ranks.here() is not None:
            raise NotACheckpoint(
                f"resume={address!r} of several ranks needs a folder that all of them see, to bring the checkpoints "
                'to: Trainer(checkpoints="runs/name").'
            )
        with at_hand(address) as place:
            return load_checkpoint(place, misfit=misfit)
    store.wait()
    run, name = _run_and_checkpoint(address)
    there = _Source(run)
    if mirror is not None and mirror.address.rstrip("/") == run:
        there = _Source(run, options=mirror.options)
        mirror.fetch(store.root)  # it has to know what was there, to delete it some day
    else:
        if mirror is not None:
            _bring_from_mirror(store, mirror, run)
        there.fetch(store.root)
    if name is None:
        newest = store.newest(misfit=misfit)
        if newest is None:
            raise _none_at(address)
        return newest
    if not (store.root / name).exists():  # the store has newer ones alone
        there.fetch_one(store.root, name)
    return load_checkpoint(store.root / name, misfit=misfit)


def _bring_from_mirror(store: Store, mirror: Mirror, run: str) -> None:
    """Have the store hold what its mirror has. A new run cannot go where another one is."""
    if store.list():
        mirror.fetch(store.root)
    elif mirror.whole():
        raise SnapshotMismatch(
            f"The mirror {mirror.address!r} has checkpoints already, and the run is to go on from {run!r}. Go on with "
            'those of the mirror: resume="auto"; or choose another mirror.'
        )


def _run_and_checkpoint(address: str) -> tuple[str, str | None]:
    """Return the address of a run, and the name of the one checkpoint of it that was named, if it was."""
    kind, separator, path = address.partition("://")
    address = kind + separator + path.rstrip("/")
    run, _, last = address.rpartition("/")
    return (run, last) if FOLDER.fullmatch(last) else (address, None)


def _none_at(address: str) -> NotACheckpoint:
    return NotACheckpoint(f"There is no whole checkpoint at {address!r}.")
