"""A short text for any value, the same in every process, so that a changed one can be told.

Large values are read at places that are spread over them. No code of users runs.
"""

from __future__ import annotations

import os
import platform
import re
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Hashable, Iterator
from functools import partial
from itertools import islice
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final, cast

from statemachine_trainer.audit.contents import numbers
from statemachine_trainer.audit.plain_values import base_of, inside_of, is_time, plain_text
from statemachine_trainer.snapshot.kinds import ATOMS, how_to_visit, is_of_users

_NUMBERS: Final = 1 << 14
"""Elements of a tensor that are read, spread over it; of a list of tensors, of all together."""

_ELEMENTS: Final = 1 << 12
"""Elements of a container that are read, spread over it."""

_OTHERS: Final = 1 << 8
"""The same, where some of them are no plain values: batches of tensors, for example."""

_WALKED: Final = 200_000
"""Elements of a list of whole numbers that are read; those that are passed over in a dict or a deque."""

_LONG_TEXT: Final = 1 << 12
_END_OF_TEXT: Final = 1 << 19
_DEPTH: Final = 4
_LONG: Final = 60
_PLAIN: Final = frozenset({bool, int, float, complex, str, bytes, type(None)})
_RANDOM_NAME: Final = re.compile(r"tmp[a-z0-9_]{8}")
_UNIQUE: Final = re.compile(r"\b[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}\b|\b0x[0-9a-f]{8,}\b")
_DATES: Final = ("%Y-%m-%d", "%Y%m%d", "%Y_%m_%d", "%y%m%d", "%d-%m-%Y", "%b %d")
_JOBS: Final = ("SLURM_JOB_ID", "SLURM_JOBID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
_A_TIME: Final = "a time"


class Texts:
    """Makes the texts of one walk.

    Args:
        room: Elements that may be read in all containers and tensors together; further ones tell their size alone.
    """

    def __init__(self, room: int = 1 << 18) -> None:
        self._room = room
        self._of_kinds: dict[type, bytes] = {}  # the texts of objects that tell their class alone
        # A name with the date of today is another one tomorrow, in the same script.
        days = [time.localtime(time.time() - day * 86_400) for day in (0, 1)]
        dates = [time.strftime(form, day) for form in _DATES for day in days]
        self._dates = re.compile("|".join(map(re.escape, dates)))
        self._temporary = tempfile.gettempdir()
        jobs = [os.environ.get(name, "") for name in _JOBS]
        self._of_machine = [one for one in (platform.node(), *jobs) if len(one) > 3]

    def of(self, value: object) -> str | None:
        """Return the text of a value; None if it has none that other processes would have too."""
        try:
            return self._read(value)
        except Exception:  # an odd class of a user is no reason to stop its run
            return None

    def _read(self, value: object) -> str | None:
        if type(value) in (str, bytes) and len(cast(str, value)) > _LONG_TEXT:
            return _of_long_text(cast("str | bytes", value))
        if is_time(value):
            return _A_TIME
        if (text := plain_text(value)) is not None:
            return _shortened(self._lasting(text))
        inner = inside_of(value)
        if (base := base_of(cast(Hashable, type(inner)))) is not None:
            return self._of_container(type(value), inner, base)
        if (text := self._numbers(value, _NUMBERS)) is not None:
            return text
        return _kind(value)

    def _lasting(self, text: str) -> str:
        """Leave out what differs from start to start: random names, dates of today, the name of the machine."""
        if "-" in text or len(text) >= 32 or "0x" in text:
            text = _UNIQUE.sub("...", text)
        if self._temporary in text:
            text = _RANDOM_NAME.sub("tmp...", text.replace(self._temporary, "/tmp"))
        for one in self._of_machine:
            text = text.replace(one, "...")
        return self._dates.sub("...", text) if len(text) > 6 else text

    def _numbers(self, value: object, most: int) -> str | None:
        text = numbers(value, max(1, min(most, self._room)))
        if text is not None:
            self._room -= most
        return text

    def _of_container(self, kind: type, inner: Any, base: Any) -> str:
        count = base.__len__(inner)
        if count <= 8 and not issubclass(base, set | frozenset):
            text = self._lasting(repr(_written(inner, base)))
            if len(text) <= _LONG:
                return text
        checksum = 0
        for piece in self._pieces(inner, base, _NUMBERS, _DEPTH):
            checksum = zlib.crc32(piece, checksum)
        return f"a {kind.__name__} of {count} #{checksum:08x}"

    def _pieces(self, inner: Any, base: Any, most: int, depth: int) -> Iterator[bytes]:
        count = base.__len__(inner)
        yield f"{base.__name__} {count}".encode()
        if self._room <= 0 or not count:
            return
        if issubclass(base, list | tuple) and count <= _WALKED and _are_ints(inner, base):
            yield str(
                hash(tuple(base.__iter__(inner)))
            ).encode()  # that of numbers is the same in every process
            self._room -= count >> 4
            return
        taken = _spread(inner, base, count, min(_ELEMENTS, most))
        self._room -= len(taken)
        if set(map(type, taken)) <= _PLAIN:
            texts = sorted(map(repr, taken)) if issubclass(base, set | frozenset) else taken
            yield self._lasting(repr(texts)).encode()
        elif issubclass(base, set | frozenset):
            return  # their order differs from process to process
        else:
            taken = taken[:: -(-len(taken) // _OTHERS)]
            kinds = {*map(type, taken)}
            if len(kinds) == 1 and (known := self._of_kinds.get(kinds.pop())) is not None:
                yield known * len(taken)
                return
            for one in taken:
                yield from self._piece(one, max(16, most // len(taken)), depth)

    def _piece(self, one: object, most: int, depth: int) -> Iterator[bytes]:
        inner = inside_of(one)
        base = base_of(cast(Hashable, type(inner)))
        text = None if is_time(one) else plain_text(one)
        if text is not None:
            yield self._lasting(text).encode()
        elif base is not None and depth:
            yield from self._pieces(inner, base, most, depth - 1)
        else:
            numbers_in_it = self._numbers(one, most)
            text_of_it = (numbers_in_it or _kind(one) or "").encode()
            if numbers_in_it is None and is_of_users(type(one)) and not callable(one):
                self._of_kinds[type(one)] = text_of_it
            yield text_of_it


def _of_long_text(value: str | bytes) -> str:
    """Return the length of a long text, and a checksum of its beginning and its end."""
    inside = value.encode(errors="replace") if isinstance(value, str) else value
    checksum = zlib.crc32(inside[-_END_OF_TEXT:], zlib.crc32(inside[:_END_OF_TEXT]))
    return f"a {type(value).__name__} of {len(value)} #{checksum:08x}"


def _written(inner: Any, base: Any) -> object:
    """Return a small container as Python writes it, if all in it is plain; a long text otherwise."""
    elements = [*base.items(inner)] if issubclass(base, dict) else [*base.__iter__(inner)]
    flat = [part for pair in elements for part in pair] if issubclass(base, dict) else elements
    if any(type(one) not in _PLAIN or is_time(one) for one in flat):
        return "_" * (_LONG + 1)
    if issubclass(base, dict):
        return dict(elements)
    return tuple(elements) if issubclass(base, tuple) else elements


def _spread(inner: Any, base: Any, count: int, most: int) -> list[Any]:
    """Return up to `most` elements of a container, spread over it; of a dict keys and values."""
    step = -(-count // most)
    if issubclass(base, list | tuple):
        return [*base.__getitem__(inner, slice(None, None, step))]
    if issubclass(base, dict):
        pairs = islice(base.items(inner), 0, min(count, _WALKED), step)
        return [part for pair in pairs for part in pair]
    if issubclass(base, set | frozenset):
        return [*base.__iter__(inner)] if count <= most else []
    assert issubclass(base, deque)
    return [*islice(base.__iter__(inner), 0, min(count, _WALKED), step)]


def _are_ints(inner: Any, base: Any) -> bool:
    return {*map(type, base.__iter__(inner))} == {int}


def _kind(value: object) -> str | None:
    """Return the name of a function or a class, or of the class of an object."""
    while isinstance(value, partial):
        value = value.func
    if isinstance(value, MethodType):
        value = value.__func__
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, FunctionType | type):
        return value.__qualname__
    kind = type(value)
    if (
        kind not in ATOMS and how_to_visit(cast(Hashable, kind))[0] == ""
    ):  # a part of the trainer itself
        return None
    return kind.__qualname__


def _shortened(text: str) -> str:
    if len(text) <= _LONG:
        return text
    return f"{text[: _LONG - 20]}... #{zlib.crc32(text.encode()):08x}"
