"""Writes the file of a run's fingerprints while the run goes on. Needs no torch."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from statemachine_trainer.observe.fingerprint_file import (
    MAGIC,
    BadFingerprints,
    FingerprintFile,
    Leaves,
    Look,
    Taken,
    block,
    blocks_of,
    name_of_rank,
    read_fingerprints,
)
from statemachine_trainer.run_record import BadRecord, set_damaged_aside

_log = logging.getLogger(__name__)

MOST: Final = 64 << 20
"""Bytes after which every second look is dropped."""

_CHECKPOINTS: Final = 100
"""Looks at checkpoints that are kept then: a run goes on from one of the newest."""


class FingerprintWriter:
    """Writes the fingerprints of a run. Whatever goes wrong with the file, the run goes on.

    Args:
        folder: The folder of the run; made if need be.
        facts: How the run is looked at, and on what machine.
        most: Bytes after which every second look is dropped.
        may_write: Whether the folder is still that of this run.
        rank: Rank of this process.
    """

    def __init__(
        self,
        folder: Path,
        facts: Mapping[str, Any],
        *,
        most: int = MOST,
        may_write: Callable[[], bool] = lambda: True,
        rank: int = 0,
    ) -> None:
        self.path = folder / name_of_rank(rank)
        self._rank = rank
        self._facts = dict(facts)
        self._most = most
        self._may_write = may_write
        self._known: dict[Leaves, int] = {}
        self._file: BinaryIO | None = None
        self._at: int | None = None  # where the file ends; None if nothing is written
        self._pid = os.getpid()
        self._told = False

    def begin(self) -> None:
        """Begin anew, in the place of what is there."""
        with self._telling():
            self._rewrite([])

    def go_on(self, checkpoint: str) -> None:
        """Go on from a checkpoint: what was looked at after it will be looked at again."""
        with self._telling():
            try:
                found = read_fingerprints(self.path.parent, self._rank)
            except BadFingerprints as error:
                aside = set_damaged_aside(self.path.parent, (self.path.name,))
                _log.warning("%s It is now in %s, and the run begins a new one.", error, aside)
                found = None
            if found is None:
                self._rewrite([])
            else:
                self._cut(found, found.end_of(checkpoint))
                self._at = (self._at or 0) + self._open().write(self._facts_block())
            self.close()  # as long as nothing runs

    def place(self) -> int | None:
        """Return where the file ends, for `rewind_to`; None if nothing is written."""
        return self._at

    def rewind_to(self, place: int) -> None:
        """Take out what was added since the file stood there."""
        with self._telling():
            found = read_fingerprints(self.path.parent, self._rank)
            if found is not None:
                self._cut(found, place)
            self.close()

    def add(self, taken: Taken) -> None:
        """Write a look."""
        if self._at is None or self._pid != os.getpid() or not self._may_write():
            return
        with self._telling():
            file = self._open()
            file.write(blocks_of(taken, self._known))
            self._at = file.tell()
            if self._at > self._most:
                self._thin()

    def close(self) -> None:
        """Let go of the file; it is opened again if need be."""
        file, self._file = self._file, None
        if file is not None and self._pid == os.getpid():
            with suppress(OSError):
                file.close()

    # -- parts -----------------------------------------------------------------------------------

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (OSError, BadFingerprints, BadRecord) as error:
            self.close()
            self._at = None
            if not self._told:
                self._told = True
                _log.warning(
                    "The fingerprints %s cannot be written: %s. The run goes on without them. Make room in the "
                    "folder, or let this user write there.",
                    self.path,
                    error,
                )

    def _facts_block(self) -> bytes:
        return block(b"M", json.dumps(self._facts).encode())

    def _open(self) -> BinaryIO:
        if self._file is None:
            descriptor = os.open(self.path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            self._file = os.fdopen(descriptor, "r+b", buffering=0)
            self._file.seek(self._at or 0)
        return self._file

    def _cut(self, found: FingerprintFile, end: int) -> None:
        self.close()
        if not end:
            self._rewrite([])
            return
        self._at = end
        self._open().truncate(end)
        self._known = found.layouts_before(end)

    def _rewrite(self, looks: Sequence[Taken]) -> None:
        """Put a new file with these looks in the place of the present one."""
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.new")
        temporary.unlink(missing_ok=True)  # left by a crash, or a link to somewhere else
        self._known = {}
        with temporary.open("xb") as file:
            file.write(MAGIC + self._facts_block())
            for taken in looks:
                file.write(blocks_of(taken, self._known))
            self._at = file.tell()
        temporary.replace(self.path)

    def _thin(self) -> None:
        """Drop every second look, and all but the newest checkpoints."""
        found = read_fingerprints(self.path.parent, self._rank)
        if found is None:
            return
        looks = found.looks
        room = self._most // 4 // max(1, found.size_of(looks[-1])) if looks else 0
        written = [one for one in looks if one.place == "checkpoint"]
        newest = written[-min(_CHECKPOINTS, max(1, room)) :]
        batches = dict.fromkeys(_of_batch(one) for one in looks if one.place != "checkpoint")
        kept = {one for index, one in enumerate(batches) if index % 2 == 0}
        wanted = [
            one
            for one in looks
            if any(one is other for other in newest)
            or (one.place != "checkpoint" and _of_batch(one) in kept)
        ]
        self._rewrite([found.taken(one) for one in wanted])


def _of_batch(look: Look) -> int:
    """Return the number of the batch that a look is before or after."""
    return look.batch - (look.place == "batch_end")
