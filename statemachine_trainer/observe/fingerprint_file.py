"""The file of a run's fingerprints: how it is laid out, and how it is read. Needs no torch.

    magic | block, block, ...                          block: kind, length, checksum | payload

Blocks are only ever added: one that says how the run was looked at, one for each list of names that is
new (a layout), and two for each look: its head, with one root for each kind of state (weights,
gradients, ...), and its leaves, one digest of 8 bytes for each tensor. A root is the digest of the
leaves of its kind. So two runs are compared by their heads, and the leaves of one look are read at last.

A block that is cut short at the end is that of a process that was killed, and is left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, get_args

from statemachine_trainer.files import open_regular, parse_json
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.run_record import FINGERPRINTS, FINGERPRINTS_OF_RANK

MAGIC: Final = b"smt-prints1\n"
BLOCK: Final = struct.Struct("<cII")
_LONGEST: Final = 256 << 20
"""Bytes of a file that are read."""

_LONGEST_BLOCK: Final = 32 << 20

Place = Literal["batch_start", "batch_end", "checkpoint"]
Kind = Literal["batch", "generators", "weights", "buffers", "optimizer", "loss", "gradients"]
PLACES: Final = get_args(Place)
KINDS: Final = get_args(Kind)

ORDER: Final[Mapping[str, Sequence[tuple[str, tuple[Kind, ...]]]]] = {
    "batch_start": (
        ("before the step", ("batch", "generators", "weights", "buffers", "optimizer")),
    ),
    "batch_end": (
        ("forward", ("generators", "buffers", "loss")),
        ("backward", ("gradients",)),
        ("optimizer step", ("weights",)),
    ),
    "checkpoint": (("the checkpoint", ("generators", "weights", "buffers", "optimizer")),),
}
"""By place: the phases that it tells of, each with what is compared, in the order in which it comes to be."""


class BadFingerprints(StateMachineError):
    """A file of fingerprints that cannot be read."""


Leaves = tuple[tuple[str, str], ...]
"""Names of leaves, each with what it is, such as `float32 (10, 3)`; "" if it is no tensor, "?" if nobody looked."""


@dataclass(frozen=True)
class Look:
    """What a run was at one boundary, as digests.

    Attributes:
        place: Where it was looked at: before or after a batch, or as a checkpoint was written.
        path: Path of the state about to run.
        epoch: Epochs done.
        batch: Batches done.
        step: Optimizer steps done.
        roots: One digest for each kind of state.
        at_work: Number of the step that the batch belongs to, from 1; 0 at a checkpoint.
        name: Of the checkpoint.
        digests: Version of the way in which the digests were computed. Those of two versions are never equal.
    """

    place: Place
    path: str
    epoch: int
    batch: int
    step: int
    roots: Mapping[str, str]
    at_work: int = 0
    name: str = ""
    digests: int = 1

    @property
    def where(self) -> str:
        """The batch, or the checkpoint, in words."""
        if self.place == "checkpoint":
            return f"checkpoint {self.name}"
        batch = self.batch + (self.place == "batch_start")
        return f"step {self.at_work} (batch {batch}, epoch {self.epoch + 1})"

    def __str__(self) -> str:
        part = {"batch_start": "the start of ", "batch_end": "the end of "}.get(self.place, "")
        return f"{part}{self.where}"


@dataclass(frozen=True)
class Taken:
    """A look with its leaves.

    Attributes:
        look: The look.
        layouts: Names of the leaves by kind.
        leaves: Digests of 8 bytes each, one after the other, by kind.
    """

    look: Look
    layouts: Mapping[str, Leaves]
    leaves: Mapping[str, bytes]


def root_of(layout: Leaves, leaves: bytes) -> str:
    """Return the root of a kind: a digest of the digests of its leaves, and of what they are."""
    found = hashlib.blake2b(leaves, digest_size=8)
    found.update(_written(layout))
    return found.hexdigest()


@lru_cache(maxsize=256)
def _written(layout: Leaves) -> bytes:
    return repr(layout).encode()


# -- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """A block of the file: its kind, its payload (of leaves none), and where it stands."""

    kind: bytes
    payload: bytes
    offset: int
    end: int


@dataclass
class _Head:
    """A look, and where its leaves stand; `end` is 0 as long as they are not known."""

    look: Look
    layouts: dict[str, int]
    offset: int = 0
    end: int = 0


@dataclass
class FingerprintFile:
    """The fingerprints in the folder of a run.

    Attributes:
        path: The file.
        facts: How the run was looked at: "every", the interval; "hardware" and "data", as they were last. Of a run
            with several ranks "processes", which is the same in the files of all of them.
    """

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    _heads: list[_Head] = field(default_factory=list)
    _layouts: list[tuple[Leaves, int]] = field(default_factory=list)

    @property
    def looks(self) -> list[Look]:
        """The looks, in the order of the run."""
        return [one.look for one in self._heads]

    def end_of(self, checkpoint: str | None) -> int:
        """Return where the look at a checkpoint ends, or the last one if there is none at it."""
        ends = {one.look.name: one.end for one in self._heads if one.look.place == "checkpoint"}
        last = self._heads[-1].end if self._heads else 0
        return ends.get(checkpoint or "", last)

    def layouts_before(self, end: int) -> dict[Leaves, int]:
        """Return the numbers of the lists of names that stand before a place in the file."""
        return {one: number for number, (one, at) in enumerate(self._layouts) if at < end}

    def size_of(self, look: Look) -> int:
        """Return how many bytes the leaves of a look take."""
        return next(one.end - one.offset for one in self._heads if one.look is look)

    def taken(self, look: Look) -> Taken:
        """Read the leaves of a look.

        Raises:
            BadFingerprints: They are damaged.
        """
        head = next(one for one in self._heads if one.look is look)
        try:
            with os.fdopen(open_regular(self.path), "rb") as file:
                file.seek(head.offset)
                found = _next_block(file, head.end)
        except OSError as error:
            raise BadFingerprints(
                f"{self.path} cannot be read: {error.strerror or error}."
            ) from error
        except ValueError as error:
            raise _damaged(self.path, error) from error
        payload = b"" if found is None else found.payload
        layouts = {name: self._layouts[number][0] for name, number in head.layouts.items()}
        leaves, at = {}, 0
        for name, layout in layouts.items():
            leaves[name] = payload[at : at + 8 * len(layout)]
            at += 8 * len(layout)
            if root_of(layout, leaves[name]) != look.roots[name]:
                raise _damaged(self.path, f"the leaves of {name} are not those of their root")
        if at != len(payload):
            raise _damaged(self.path, "the leaves of a look are others")
        return Taken(look, layouts, leaves)


def name_of_rank(rank: int) -> str:
    """Return the name of the file with the fingerprints of one rank."""
    return FINGERPRINTS_OF_RANK.format(rank) if rank else FINGERPRINTS


def read_fingerprints(folder: Path, rank: int = 0) -> FingerprintFile | None:
    """Read the heads of all looks in the folder of a run; None if it has no fingerprints.

    Args:
        folder: The folder.
        rank: Whose, of a run with several ranks.

    Raises:
        BadFingerprints: The file is something else, or damaged.
    """
    path = folder / name_of_rank(rank)
    if not os.path.lexists(path):
        return None
    found = FingerprintFile(path)
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            if os.fstat(file.fileno()).st_size > _LONGEST:
                raise ValueError("it is too long")
            if file.read(len(MAGIC)) != MAGIC:
                raise ValueError("it does not begin like one")
            while (one := _next_block(file, _LONGEST_BLOCK, skip=b"V")) is not None:
                _add(found, one)
    except OSError as error:
        raise BadFingerprints(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise _damaged(path, error) from error
    # The last look may be without its leaves.
    found._heads = [one for one in found._heads if one.end]
    return found


def _damaged(path: Path, why: object) -> BadFingerprints:
    return BadFingerprints(f"{path} is damaged, or no file of fingerprints: {why}.")


def _next_block(file: BinaryIO, longest: int, skip: bytes = b"") -> _Block | None:
    """Read a block; None if the file ends within it. The payload of the kind `skip` is passed over.

    Raises:
        ValueError: It is damaged.
    """
    offset = file.tell()
    head = file.read(BLOCK.size)
    if len(head) < BLOCK.size:
        return None
    kind, length, checksum = BLOCK.unpack(head)
    end = offset + BLOCK.size + length
    if kind not in (b"M", b"L", b"K", b"V"):
        raise ValueError("a block of it is none")
    if end > os.fstat(file.fileno()).st_size:
        return None
    if kind == skip:
        file.seek(end)
        return _Block(kind, b"", offset, end)
    if length > longest:
        raise ValueError("a block of it is too long")
    payload = file.read(length)
    if zlib.crc32(payload, kind[0]) != checksum:
        raise ValueError("a block of it has another checksum")
    return _Block(kind, payload, offset, end)


def _add(found: FingerprintFile, one: _Block) -> None:
    """Take a block into what is known.

    Raises:
        ValueError, TypeError, KeyError, IndexError, AttributeError: It holds something else.
    """
    heads = found._heads
    if one.kind == b"V":
        if not heads or heads[-1].end:
            raise ValueError("leaves have no head")
        heads[-1].offset, heads[-1].end = one.offset, one.end
        return
    if heads and not heads[-1].end:
        raise ValueError("a head has no leaves")
    said = parse_json(one.payload)
    if one.kind == b"M":
        if not isinstance(said, dict):
            raise ValueError("its facts are malformed")
        found.facts = said
    elif one.kind == b"L":
        layout = tuple((name, described) for name, described in said)
        if not all(isinstance(text, str) for pair in layout for text in pair):
            raise ValueError("names are no texts")
        found._layouts.append((layout, one.offset))
    else:
        layouts = said.pop("layouts")
        look = _look_of(said)
        if layouts.keys() != look.roots.keys() or not all(
            type(number) is int and 0 <= number < len(found._layouts) for number in layouts.values()
        ):
            raise ValueError("the head of a look is malformed")
        heads.append(_Head(look, layouts))


def _look_of(said: dict[str, Any]) -> Look:
    look = Look(**said)
    numbers = (look.epoch, look.batch, look.step, look.at_work, look.digests)
    texts = (look.path, look.name, *look.roots, *look.roots.values())
    if (
        look.place not in PLACES
        or not all(type(one) is int and one >= 0 for one in numbers)
        or not all(isinstance(one, str) for one in texts)
        or not set(look.roots) <= set(KINDS)
    ):
        raise ValueError("the head of a look is malformed")
    return look


# -- blocks -----------------------------------------------------------------------------------------


def block(kind: bytes, payload: bytes) -> bytes:
    """Return a block as it stands in the file."""
    return BLOCK.pack(kind, len(payload), zlib.crc32(payload, kind[0])) + payload


def blocks_of(taken: Taken, known: dict[Leaves, int]) -> bytes:
    """Return the blocks of a look; layouts that are new are added to those that are known."""
    found = b""
    numbers = {}
    for kind, layout in taken.layouts.items():
        number = known.get(layout)
        if number is None:
            number = known[layout] = len(known)
            found += block(b"L", json.dumps(layout).encode())
        numbers[kind] = number
    head = {**vars(taken.look), "layouts": numbers}
    if taken.look.digests == Look.digests:  # as the first version wrote it
        del head["digests"]
    leaves = b"".join(taken.leaves[kind] for kind in taken.layouts)
    return found + block(b"K", json.dumps(head).encode()) + block(b"V", leaves)
