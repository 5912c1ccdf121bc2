"""The layout of a black box: a file of fixed size that a process writes through its memory.

    magic, length of the facts | facts (JSON) | length of the names | names, one a line | entries

An entry is its number, the time, the optimizer step, the event, the state, and its number again.
The first number is stored before the others and the second after them: an entry whose two numbers
differ was being written when the process died, or is being written now. What a process has stored
belongs to the kernel: it is in the file whatever becomes of the process, SIGKILL included. (Not
whatever becomes of the machine: nothing here waits for a disk.)

Names of states and events are only ever added, so that an entry never changes its meaning.
"""

from __future__ import annotations

import json
import mmap
import struct
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

from statemachine_trainer.machine.errors import StateMachineError

CAPACITY: Final = 8192
"""Entries that are kept: those of about a thousand batches, in 320 kB."""

ENTRY: Final = struct.Struct("<QQQIIQ")
_MAGIC: Final = b"smt-box1"
_LENGTH: Final = struct.Struct("<I")
_FACTS_AT: Final = len(_MAGIC) + _LENGTH.size
_NAMES_AT: Final = 2048
_ENTRIES_AT: Final = 65536
_ROOM: Final = _ENTRIES_AT - _NAMES_AT - _LENGTH.size
_UNNAMED: Final = "(no room for its name)"


class BadRing(StateMachineError):
    """A file that is no black box, or one of a version that is not known here."""


class RawEntry(NamedTuple):
    """An entry as it is stored: `event` and `state` are numbers of names."""

    number: int
    time: int
    step: int
    event: int
    state: int


class RingWriter:
    """Writes a ring. Each entry costs a fraction of a microsecond.

    Args:
        path: The file; replaced if it is there.
        facts: What a reader is to know of the process, as data that JSON can hold.
        capacity: Entries that are kept.

    Attributes:
        memory: The mapped file, for those who store entries themselves.
        numbers: Numbers of the entries to come, from 1.
        start: Where the entries begin.
        capacity: Entries that are kept.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path, facts: dict[str, Any], *, capacity: int = CAPACITY) -> None:
        text = json.dumps({**facts, "capacity": capacity}).encode()
        if len(text) > _NAMES_AT - _FACTS_AT:
            raise BadRing(f"The facts of {path} are too long: {len(text)} bytes.")
        # Written out, not left sparse: to store into a page for which the disk has no room kills
        # the process.
        temporary = path.with_name(f"{path.name}.new")
        with temporary.open("w+b") as file:
            file.write(_MAGIC + _LENGTH.pack(len(text)) + text)
            file.write(bytes(_ENTRIES_AT + capacity * ENTRY.size - file.tell()))
            file.flush()
            self.memory = mmap.mmap(file.fileno(), 0)
        temporary.replace(path)
        self.numbers: Iterator[int] = count(1)
        self.start = _ENTRIES_AT
        self.capacity = capacity
        self._used = 0
        self._names: dict[str, int] = {}
        self.name(_UNNAMED)

    def name(self, text: str) -> int:
        """Return the number of a name, a new one if need be."""
        found = self._names.get(text)
        if found is not None:
            return found
        line = text.replace("\n", " ").encode() + b"\n"
        if self._used + len(line) > _ROOM:
            return 0
        at = _NAMES_AT + _LENGTH.size + self._used
        self.memory[at : at + len(line)] = line
        self._used += len(line)
        _LENGTH.pack_into(self.memory, _NAMES_AT, self._used)
        return self._names.setdefault(text, len(self._names))

    def write(self, step: int, event: int, state: int) -> None:
        """Add an entry, in place of the oldest one."""
        number = next(self.numbers)
        at = self.start + number % self.capacity * ENTRY.size
        ENTRY.pack_into(self.memory, at, number, time.time_ns(), step, event, state, number)


class RawRing(NamedTuple):
    """What a file holds at the moment it is read.

    Attributes:
        facts: What the process said of itself.
        names: The names, by number.
        entries: Whole entries without a gap, the oldest first.
        torn: Whether an entry was half written.
    """

    facts: dict[str, Any]
    names: list[str]
    entries: list[RawEntry]
    torn: bool


def read_ring(path: Path) -> RawRing:
    """Read a ring, also while it is being written or after its process was killed.

    Raises:
        BadRing: It is something else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadRing(f"{path} cannot be read: {error.strerror}.") from error
    try:
        facts = _facts(data)
        capacity = facts["capacity"]
        names = _names(data)
        slots = [*ENTRY.iter_unpack(data[_ENTRIES_AT : _ENTRIES_AT + capacity * ENTRY.size])]
        if len(slots) != capacity or not capacity:
            raise ValueError("it is too short")
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise BadRing(f"{path} is not a black box that can be read here: {error}.") from error
    return RawRing(facts, names, *_in_order(slots))


def _facts(data: bytes) -> dict[str, Any]:
    if not data.startswith(_MAGIC):
        raise ValueError("it does not begin like one")
    (length,) = _LENGTH.unpack_from(data, len(_MAGIC))
    facts = json.loads(data[_FACTS_AT : _FACTS_AT + length])
    if not isinstance(facts, dict) or not isinstance(facts.get("capacity"), int):
        raise ValueError("its facts are malformed")
    return facts


def _names(data: bytes) -> list[str]:
    (used,) = _LENGTH.unpack_from(data, _NAMES_AT)
    start = _NAMES_AT + _LENGTH.size
    return data[start : start + min(used, _ROOM)].decode(errors="replace").split("\n")[:-1]


def _in_order(slots: list[tuple[int, ...]]) -> tuple[list[RawEntry], bool]:
    """Return the newest run of whole entries, and whether the one after them is torn."""
    capacity = len(slots)
    whole = {
        slot[0]: RawEntry(*slot[:5])
        for place, slot in enumerate(slots)
        if slot[0] == slot[5] and slot[0] and slot[0] % capacity == place
    }
    newest = max(whole, default=0)
    first = newest
    while first - 1 in whole:
        first -= 1
    after = slots[(newest + 1) % capacity]
    entries = [whole[number] for number in range(first, newest + 1) if number]
    return entries, after[0] != after[5]
