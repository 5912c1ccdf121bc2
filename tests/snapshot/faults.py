"""A disk that fails at the n-th call, or loses power there.

The model of a loss of power: the content of a file is safe once the file was synced, a change of
names (created, renamed, removed) once its folder was. Of all that was not safe an arbitrary part is
lost, in any order, and files that were not synced are torn.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from statemachine_trainer.snapshot.filesystem import LocalFileSystem, OutputFile


class Crash(BaseException):
    """The process ends here, and nothing that would clean up runs."""


@dataclass
class Change:
    """A change of names that a loss of power may undo."""

    path: Path
    undo: Callable[[Path], None]


class FaultyFileSystem:
    """The disk of this machine, with one thing that goes wrong.

    Args:
        fail_at: the call that fails, counted from 0
        error: the number of the error that it raises; None crashes after the call instead
        lasting: whether each call after it fails too, as on a full disk
    """

    def __init__(
        self, fail_at: int | None = None, *, error: int | None = None, lasting: bool = False
    ) -> None:
        self.calls: list[str] = []
        self.happened = False
        self._fail_at = fail_at
        self._error = error
        self._lasting = lasting
        self._disk = LocalFileSystem()
        self._changes: list[Change] = []
        self._torn: list[Change] = []

    def call(
        self, name: str, act: Callable[[], None], partly: Callable[[], None] | None = None
    ) -> None:
        """Count a call, and let it go wrong if it is its turn."""
        number = len(self.calls)
        self.calls.append(name)
        if self.happened and self._error is None:
            raise Crash
        due = number == self._fail_at or (self._lasting and self.happened)
        self.happened = self.happened or due
        if due and self._error is not None:
            if partly is not None:
                partly()
            raise OSError(self._error, os.strerror(self._error))
        act()
        if due:
            raise Crash

    def lose_power(self, chance: random.Random) -> None:
        """Undo an arbitrary part of what is not safe on the disk yet."""
        for torn in self._torn:
            torn.path.write_bytes(tear(torn.path.read_bytes(), chance))
        survives = chance.choice([0.0, 0.5, 1.0])
        for change in reversed(self._changes):
            if chance.random() >= survives:
                change.undo(change.path)

    # -- the calls

    def create(self, path: Path) -> OutputFile:
        content = Change(path, lambda now: None)
        opened: list[OutputFile] = []

        def act() -> None:
            opened.append(self._disk.create(path))
            self._changes.append(Change(path, lambda now: now.unlink(missing_ok=True)))
            self._torn.append(content)

        try:
            self.call("create", act)
        except Crash:
            for file in opened:
                file.close()
            raise
        return _FaultyFile(self, opened[0], lambda: self._torn.remove(content))

    def open(self, path: Path) -> BinaryIO:
        opened: list[BinaryIO] = []
        try:
            self.call("open", lambda: opened.append(self._disk.open(path)))
        except Crash:
            for file in opened:
                file.close()  # as the end of a process does
            raise
        return opened[0]

    def make_folder(self, path: Path) -> None:
        def act() -> None:
            self._disk.make_folder(path)
            self._changes.append(Change(path, remove_all))

        self.call("make_folder", act)

    def names(self, folder: Path) -> list[str]:
        names: list[str] = []
        self.call("names", lambda: names.extend(self._disk.names(folder)))
        return names

    def rename(self, source: Path, target: Path) -> None:
        replaced = target.read_bytes() if target.is_file() else None

        def undo(now: Path) -> None:
            if now.exists():
                now.rename(source)
            if replaced is not None:
                now.write_bytes(replaced)

        def act() -> None:
            self._disk.rename(source, target)
            for change in (*self._changes, *self._torn):
                if change.path.is_relative_to(source):
                    change.path = target / change.path.relative_to(source)
            self._changes.append(Change(target, undo))

        self.call("rename", act)

    def remove(self, path: Path) -> None:
        content = path.read_bytes() if path.exists() else b""

        def undo(now: Path) -> None:
            if now.parent.exists():
                now.write_bytes(content)

        def act() -> None:
            self._disk.remove(path)
            self._torn = [torn for torn in self._torn if torn.path != path]
            self._changes.append(Change(path, undo))

        self.call("remove", act)

    def remove_folder(self, path: Path) -> None:
        self.call("remove_folder", lambda: self._disk.remove_folder(path))

    def sync_folder(self, path: Path) -> None:
        def act() -> None:
            self._changes = [change for change in self._changes if change.path.parent != path]

        self.call("sync_folder", act)


class _FaultyFile:
    def __init__(
        self, files: FaultyFileSystem, file: OutputFile, synced: Callable[[], None]
    ) -> None:
        self._files = files
        self._file = file
        self._synced = synced

    def write(self, data: bytes | memoryview) -> None:
        # A full disk takes a part before it refuses the rest.
        self._files.call(
            "write",
            lambda: self._file.write(data),
            lambda: self._file.write(data[: len(data) // 2]),
        )

    def begin_sync(self) -> None:
        """Leave all to `sync`: a loss of power may come before."""

    def sync(self) -> None:
        self._files.call("sync", self._synced)

    def close(self) -> None:
        self._file.close()  # the end of a process closes files too


def tear(content: bytes, chance: random.Random) -> bytes:
    """What a loss of power leaves of a file: a part, or zeros, or nothing."""
    cut = chance.randrange(len(content) + 1)
    return chance.choice([b"", content[:cut], content[:cut] + bytes(len(content) - cut)])


def remove_all(folder: Path) -> None:
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
