"""The layout of a black box: a file of fixed size that a process writes through its memory.

    magic, length of the facts | facts (JSON) | laps, call | length of the names | names, one a line | entries

An entry is the optimizer step, the state, the way there, and the time, which is stored last. What a
process has stored belongs to the kernel: it is in the file whatever becomes of the process, SIGKILL
included. (Not whatever becomes of the machine: nothing here waits for a disk.)

Entries carry no number: to store one costs time at each transition. Their times never go back, and
at the beginning of each lap of the ring its number and its time are noted, in two places by turns:
so the number of an entry follows from its place and its time. The one place at which an entry may be
half written is that of the oldest, which is not read; and what changes while it is read is left out.

The call is that of a receiver that is being called: its name and the time, or zeros.

Names are only ever added, so that an entry never changes its meaning.
"""

from __future__ import annotations

import json
import mmap
import struct
import time
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any, Final, NamedTuple

from statemachine_trainer.files import parse_json, read_regular
from statemachine_trainer.machine.errors import StateMachineError

CAPACITY: Final = 8192
"""Entries that there is room for: those of about a thousand batches, in 200 kB."""

ENTRY: Final = struct.Struct("<QIIQ")
_MAGIC: Final = b"smt-box2"
_LENGTH: Final = struct.Struct("<I")
_LAP: Final = struct.Struct("<QQQ")
CALL: Final = struct.Struct("<QQ")
_FACTS_AT: Final = len(_MAGIC) + _LENGTH.size
_LAPS_AT: Final = 1984
CALL_AT: Final = _LAPS_AT + 2 * _LAP.size
_NAMES_AT: Final = 2048
_ENTRIES_AT: Final = 65536
_ROOM: Final = _ENTRIES_AT - _NAMES_AT - _LENGTH.size
_LONGEST: Final = 64 << 20
"""Bytes of a file that are read."""

_UNNAMED: Final = "(no room for its name)"

clock: Final = time.perf_counter_ns
"""Tells the time of entries: never goes back, and is fine enough on every system."""


class BadRing(StateMachineError):
    """A file that is no black box, or one of a version that is not known here."""


class RawEntry(NamedTuple):
    """An entry as it was read: `state` and `way` are numbers of names, `time` is that of the day.

    The number counts from 1, the time is in nanoseconds since the epoch.
    """

    number: int
    time: int
    step: int
    state: int
    way: int


class RingWriter:
    """Writes a ring. Each entry costs a fraction of a microsecond.

    Args:
        path: The file; replaced if it is there.
        facts: What a reader is to know of the process, as data that JSON can hold.
        capacity: Entries that there is room for.

    Attributes:
        memory: The mapped file, for those who store entries themselves.
        places: Where the next entry, and those after it, are to be stored; without an end.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path, facts: dict[str, Any], *, capacity: int = CAPACITY) -> None:
        text = json.dumps({**facts, "capacity": capacity}).encode()
        if len(text) > _LAPS_AT - _FACTS_AT:
            raise BadRing(f"The facts of {path} are too long: {len(text)} bytes.")
        # Written out, not left sparse: to store into a page for which the disk has no room kills
        # the process.
        temporary = path.with_name(f"{path.name}.new")
        temporary.unlink(missing_ok=True)  # left by a crash, or a link to somewhere else
        with temporary.open("x+b") as file:
            file.write(_MAGIC + _LENGTH.pack(len(text)) + text)
            file.write(bytes(_ENTRIES_AT + capacity * ENTRY.size - file.tell()))
            file.flush()
            self.memory = mmap.mmap(file.fileno(), 0)
        temporary.replace(path)
        self._lap = range(_ENTRIES_AT, _ENTRIES_AT + capacity * ENTRY.size, ENTRY.size)
        self.places: Iterator[int] = chain.from_iterable(map(self._begin_lap, count(1)))
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

    def write(self, step: int, state: int, way: int) -> None:
        """Add an entry, in place of the oldest one."""
        ENTRY.pack_into(self.memory, next(self.places), step, state, way, clock())

    def _begin_lap(self, number: int) -> range:
        at = _LAPS_AT + number % 2 * _LAP.size
        _LAP.pack_into(self.memory, at, clock(), time.time_ns(), number)
        return self._lap


class RawRing(NamedTuple):
    """What a file holds at the moment it is read.

    Attributes:
        facts: What the process said of itself.
        names: The names, by number.
        entries: Whole entries without a gap, the oldest first.
        call: The receiver that is being called, as number of its name, and since when; None if none
            is.
    """

    facts: dict[str, Any]
    names: list[str]
    entries: list[RawEntry]
    call: tuple[int, int] | None


def read_ring(path: Path) -> RawRing:
    """Read a ring, also while it is being written or after its process was killed.

    Raises:
        BadRing: It is something else.
    """
    try:
        before, data = read_regular(path, _LONGEST), read_regular(path, _LONGEST)
    except OSError as error:
        raise BadRing(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        facts = _facts(data)
        capacity = facts["capacity"]
        now, earlier = (_written(one, capacity) for one in (data, before))
        # Of a young ring most was never written: nothing is there to be read.
        used = -(-len(now.rstrip(b"\0")) // ENTRY.size) * ENTRY.size
        pairs = zip(*(ENTRY.iter_unpack(one[:used]) for one in (now, earlier)), strict=True)
        still = [slot if slot == was else None for slot, was in pairs]
        names, laps = _names(data), _laps(data)
        return RawRing(facts, names, _in_order(still, laps, capacity), _call(data, laps))
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise BadRing(f"{path} is not a black box that can be read here: {error}.") from error


def _facts(data: bytes) -> dict[str, Any]:
    if not data.startswith(_MAGIC):
        raise ValueError("it does not begin like one")
    (length,) = _LENGTH.unpack_from(data, len(_MAGIC))
    facts = parse_json(data[_FACTS_AT : _FACTS_AT + min(length, _LAPS_AT - _FACTS_AT)])
    if not isinstance(facts, dict) or type(facts.get("capacity")) is not int:
        raise ValueError("its facts are malformed")
    return facts


def _written(data: bytes, capacity: int) -> bytes:
    """Return all entries, those included that were not written yet."""
    entries = data[_ENTRIES_AT : _ENTRIES_AT + capacity * ENTRY.size]
    if capacity <= 0 or len(entries) != capacity * ENTRY.size:
        raise ValueError("it is too short")
    return entries


def _names(data: bytes) -> list[str]:
    (used,) = _LENGTH.unpack_from(data, _NAMES_AT)
    start = _NAMES_AT + _LENGTH.size
    return data[start : start + min(used, _ROOM)].decode(errors="replace").split("\n")[:-1]


def _laps(data: bytes) -> list[tuple[int, ...]]:
    """Return number, clock and time of day at the beginning of the last two laps, newest first."""
    noted = [_LAP.unpack_from(data, _LAPS_AT + place * _LAP.size) for place in (0, 1)]
    found = sorted(((number, at, day) for at, day, number in noted if number), reverse=True)
    # A place whose time is newer than that of a later lap was being written over.
    return [lap for lap in found if lap[1] <= found[0][1]]


def _call(data: bytes, laps: list[tuple[int, ...]]) -> tuple[int, int] | None:
    name, at = CALL.unpack_from(data, CALL_AT)
    return (name, at - laps[0][1] + laps[0][2]) if name and laps else None


def _in_order(
    slots: list[tuple[int, ...] | None], laps: list[tuple[int, ...]], capacity: int
) -> list[RawEntry]:
    """Return the newest entries without a gap; that in the place to be written next is left out."""
    found: dict[int, RawEntry] = {}
    for place, slot in enumerate(slots):
        if slot is None or not slot[-1]:
            continue
        step, state, way, at = slot
        lap = next((lap for lap in laps if lap[1] <= at), None)
        if lap is not None:
            number = (lap[0] - 1) * capacity + place + 1
            found[number] = RawEntry(number, at - lap[1] + lap[2], step, state, way)
    newest = first = max(found, default=0)
    while first - 1 in found and newest - first + 2 < capacity:
        first -= 1
    return [found[number] for number in range(first, newest + 1) if number]
