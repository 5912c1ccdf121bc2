"""The ranks of one run side by side: whose replica of the weights is another one. Needs no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from statemachine_trainer.observe.difference import (
    NoFingerprints,
    by_place,
    in_words,
    names_of,
    other_digests,
)
from statemachine_trainer.observe.fingerprint_file import FingerprintFile, Look, read_fingerprints
from statemachine_trainer.observe.run import Run

_SHARED: Final = ("weights", "optimizer")
"""What replicas have in common. Batches, generators, losses and buffers are each rank's own."""


@dataclass(frozen=True)
class ReplicaParting:
    """The first place at which the replicas of a run are not equal. As text it says so.

    Attributes:
        look: Where, as rank 0 tells it.
        kind: What differs: "weights" or "optimizer".
        names: Which of them, in their order.
        of: How many there are.
        ranks: Whose replica is another one; of two ranks both, if it cannot be told.
        how: How that can be told; "" if it cannot.
        before: The last place at which all were equal; None if there is none.
    """

    look: Look
    kind: str
    names: list[str]
    of: int
    ranks: list[int]
    how: str
    before: Look | None

    def __str__(self) -> str:
        text = f"{self.look}: {in_words(self.kind, self.names, self.of)}. "
        ranks = f"rank{'s' * (len(self.ranks) > 1)} {', '.join(map(str, self.ranks))}"
        if self.how:
            return f"{text}It is another one at {ranks}: {self.how}"
        return f"{text}It differs between {ranks}; which of them is wrong cannot be told"


@dataclass(frozen=True)
class Replicas:
    """How far the ranks of one run agree. As text it says so.

    Attributes:
        path: The folder of the run.
        ranks: How many there are.
        places: Places at which all were looked at.
        last: The last of them.
        parting: The first at which they are not equal; None if they are.
        left_out: What each rank has a part of, so that it is not compared.
        other_digests: Places at which all were looked at, but not with the same version of the digests. They are not
            compared.
    """

    path: Path
    ranks: int
    places: int
    last: Look
    parting: ReplicaParting | None
    left_out: list[str]
    other_digests: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return it as data that JSON can hold."""
        found = {**asdict(self), "path": str(self.path)}
        if self.parting is not None:
            found["parting"]["text"] = str(self.parting)
        return found

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.ranks} ranks"]
        if self.left_out:
            lines.append(f"not compared, for each rank has its own: {', '.join(self.left_out)}")
        if self.parting is None:
            many = f"{self.places} place{'s' * (self.places > 1)}"
            lines.append(f"Their replicas are equal at {many}, up to {self.last}.")
        else:
            lines.append(f"Their replicas part at {self.parting}.")
            if self.parting.before is not None:
                lines.append(f"  All were equal at {self.parting.before}.")
        if self.other_digests:
            places = f"{self.other_digests} more place{'s' * (self.other_digests > 1)}"
            lines.append(
                f"{places} could not be compared: not all ranks computed their digests there with the same version of "
                "the software. Install one version for all ranks, and resume or run again: "
                "the places that follow can then be compared."
            )
        return "\n".join(lines)


def compare_ranks(run: str | Path) -> Replicas:
    """Compare the weights and optimizers of the ranks of one run, which are to be replicas of each other.

    Ranks that average their gradients have the same weights, to the bit. Where they have not, a rank
    has computed something else: its memory or its device is faulty, or its code is another one.

    Args:
        run: The folder of a run with `Trainer(fingerprints=...)`.

    Raises:
        NoRun: Nothing of a run is in the folder.
        NoFingerprints: It has one rank, no fingerprints, or not those of all ranks.
        BadFingerprints: A file cannot be read.
    """
    path = Run(run).path
    files = _files(path)
    places = [by_place(one.looks) for one in files]
    together = [key for key in places[0] if all(key in one for one in places)]
    keys = [key for key in together if len({one[key].digests for one in places}) == 1]
    if together and not keys:
        looks = [one[together[0]] for one in places]
        raise other_digests(looks[0], next(one for one in looks if one.digests != looks[0].digests))
    if not keys:
        raise NoFingerprints(f"The ranks of {path} were never looked at in the same place.")
    others = len(together) - len(keys)
    left_out: list[str] = []
    before: list[Look] | None = None
    for key in keys:
        looks = [one[key] for one in places]
        for kind in _SHARED:
            if kind in left_out or len({look.roots.get(kind) for look in looks}) == 1:
                continue
            found = _parting(files, looks, kind, before)
            if found is None:
                left_out.append(kind)
                continue
            return Replicas(
                path, len(files), len(keys), places[0][keys[-1]], found, left_out, others
            )
        before = looks
    return Replicas(path, len(files), len(keys), places[0][keys[-1]], None, left_out, others)


def _files(path: Path) -> list[FingerprintFile]:
    """Return the fingerprints of each rank, in their order."""
    first = read_fingerprints(path)
    if first is None or not first.looks:
        raise NoFingerprints(
            f"{path} has no fingerprints. Trainer(fingerprints=every(100, 'step')) keeps them."
        )
    processes = first.facts.get("processes")
    if not isinstance(processes, list) or len(processes) < 2:
        raise NoFingerprints(
            f"{path} is a run with one rank, so there is nothing to compare. Two runs are compared so: "
            "smt diff RUN_A RUN_B."
        )
    files = [first]
    for rank in range(1, len(processes)):
        one = read_fingerprints(path, rank)
        if one is None or not one.looks:
            raise NoFingerprints(
                f"{path} has no fingerprints of rank {rank}. A model that is cut up among the ranks (FSDP) has no "
                "replicas, and ranks on other machines write into a folder of this name there."
            )
        if one.facts.get("processes") != processes:
            raise NoFingerprints(
                f"The fingerprints of rank {rank} in {path} are those of another start of the run."
            )
        files.append(one)
    return files


def _parting(
    files: Sequence[FingerprintFile],
    looks: Sequence[Look],
    kind: str,
    before: Sequence[Look] | None,
) -> ReplicaParting | None:
    """Return how the replicas differ; None if they are none: each rank has other tensors."""
    taken = [file.taken(look) for file, look in zip(files, looks, strict=True)]
    if len({one.layouts.get(kind) for one in taken}) > 1:
        return None
    ranks, how = _whose(looks, kind, before)
    names = dict.fromkeys(
        name for one in taken for other in taken for name in names_of(one, other, kind)
    )
    order = [name for name, _ in taken[0].layouts[kind] if name in names]
    of = len(taken[0].layouts[kind])
    return ReplicaParting(looks[0], kind, order, of, ranks, how, before[0] if before else None)


def _whose(
    looks: Sequence[Look], kind: str, before: Sequence[Look] | None
) -> tuple[list[int], str]:
    """Return whose replica is another one, and how that can be told."""
    roots = [look.roots.get(kind) for look in looks]
    (most, count), *_ = Counter(roots).most_common(1)
    if count > len(roots) / 2:
        return [rank for rank, root in enumerate(roots) if root != most], "the others agree"
    # Nothing is to change a weight between the end of a batch and the start of the next one.
    if before is not None and _meet(before[0], looks[0]):
        earlier: list[Mapping[str, str]] = [one.roots for one in before]
        changed = [r for r, root in enumerate(roots) if earlier[r].get(kind) not in (None, root)]
        if 0 < len(changed) < len(roots):
            return changed, "it changed between two batches, where nothing is to change"
    return [*range(len(roots))], ""


def _meet(before: Look, after: Look) -> bool:
    """Whether nothing lies between two looks, and their digests can be compared."""
    at = "batch_end", "batch_start", after.batch, after.digests
    return (before.place, after.place, before.batch, before.digests) == at
