"""Two runs side by side: what they were started with, and where they part. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.machine.keywords import refuses_unknown
from statemachine_trainer.observe.fingerprint_file import (
    ORDER,
    FingerprintFile,
    Leaves,
    Look,
    Taken,
    read_fingerprints,
)
from statemachine_trainer.observe.run import Run

_NAMES_SHOWN: Final = 3
_WORDS: Final = {
    "gradients": "gradient of {}",
    "weights": "weight {}",
    "buffers": "buffer {}",
    "generators": "generator of {}",
    "optimizer": "optimizer: {}",
}


class NoFingerprints(StateMachineError):
    """A run without fingerprints, or two that were never looked at in the same place."""


class OtherDigests(NoFingerprints):
    """Fingerprints whose digests were computed in two ways, so that they tell nothing about each other."""


def other_digests(one: Look, other: Look) -> OtherDigests:
    """Return the error for two looks with digests of two versions."""
    return OtherDigests(
        f"their digests were computed in two ways (versions {one.digests} and {other.digests} of the fingerprints), "
        "so they do not tell whether the two differ. Run one of them again with the software of the other."
    )


class Looks(Protocol):
    """Fingerprints that are compared: of a file, or in memory."""

    @property
    def looks(self) -> list[Look]:
        """The looks, in the order of the run."""

    def taken(self, look: Look) -> Taken:
        """Return the leaves of one of them."""
        ...


@dataclass(frozen=True)
class Values:
    """Something that differs: what it is in each of the two runs; None where it is not there."""

    a: object
    b: object


@dataclass(frozen=True)
class Parting:
    """The first place at which two runs part.

    Attributes:
        look: Where, as run A tells it.
        phase: In which part of the work there: "before the step", "forward", "backward", "optimizer step".
        kind: What differs there first: "batch", "generators", "weights", "buffers", "optimizer", "loss" or
            "gradients".
        names: Which of them, in their order.
        of: How many there are of this kind.
        also: What else differs before the step.
        equal_before: What was equal before the step.
        equal_since: What was equal after it.
        unseen: Of all that was equal, what holds something that has no digest.
        before: The last place at which all was equal; None if there is none.
        again: Whether the batches of one of the runs begin anew after it, as at the next fold.
    """

    look: Look
    phase: str
    kind: str
    names: list[str]
    of: int
    also: list[str]
    equal_before: list[str]
    equal_since: list[str]
    unseen: list[str]
    before: Look | None
    again: bool = False

    @property
    def steps(self) -> tuple[int, int]:
        """The optimizer steps between which they part: the same twice, if it is one step."""
        last = self.look.at_work or self.look.step
        return (self.before.step if self.between and self.before is not None else last), last

    @property
    def between(self) -> bool:
        """Whether they part somewhere between two looks: before the step at which they differ."""
        return self.before is not None and self.before.batch < self.look.batch - (
            self.look.place == "batch_end"
        )

    def __str__(self) -> str:
        text = f"{self.look.where}, {self.phase}: {in_words(self.kind, self.names, self.of)}"
        if self.also:
            text += f"; {_listed(self.also)} too"
        if self.equal_before:
            when = "" if self.phase == "before the step" else " before it"
            text += f"; {_were(self.equal_before, when)} equal"
        if self.equal_since:
            text += f"{', and' if self.equal_before else ';'} {_listed(self.equal_since)} after it"
            text += "" if self.equal_before else " were equal"
        if self.unseen:
            text += f" (as far as that can be told of {_listed(self.unseen)})"
        return text


@dataclass(frozen=True)
class Compared:
    """How far the fingerprints of two runs agree.

    Attributes:
        parting: Where they part first; None if they do not, as far as they were looked at.
        places: Places at which both were looked at, with digests of the same version.
        last: The last of them.
        left_out: Places at which their digests are of two versions, so that nothing can be told.
    """

    parting: Parting | None
    places: int
    last: Look
    left_out: int = 0


@dataclass(frozen=True)
class Difference:
    """What differs between two runs. As text it says so.

    Attributes:
        a: The folder of one.
        b: That of the other.
        settings: Hyperparameters by name; of runs with fingerprints also what loops, layers, callbacks and
            optimizers are set to, as "fit.epoch.batch.optimizer (OptimizerLoop): clip_norm". What was set while
            a run went on is there as "lr, set in the run".
        versions: Of Python and packages, and the commit of the code.
        hardware: What the bits may depend on beside the code.
        data: What tells that the data are others.
        compared: Their fingerprints; None if they cannot be compared, and `why` says so.
        why: Why not.
    """

    a: Path
    b: Path
    settings: dict[str, Values] = field(default_factory=dict)
    versions: dict[str, Values] = field(default_factory=dict)
    hardware: dict[str, Values] = field(default_factory=dict)
    data: dict[str, Values] = field(default_factory=dict)
    compared: Compared | None = None
    why: str = ""

    @property
    def parting(self) -> Parting | None:
        """Where they part first; None if they do not, or if that is not known."""
        return None if self.compared is None else self.compared.parting

    def to_dict(self) -> dict[str, Any]:
        """Return it as data that JSON can hold."""
        found = {**asdict(self), "a": str(self.a), "b": str(self.b)}
        if self.parting is not None:
            found["compared"]["parting"]["text"] = str(self.parting)
        return found

    def __str__(self) -> str:
        lines = [f"A: {self.a}", f"B: {self.b}"]
        for name in ("settings", "versions", "hardware", "data"):
            found: dict[str, Values] = getattr(self, name)
            lines.append(f"{name}: {'' if found else 'no difference known'}".rstrip())
            lines += [f"  {key}: {_shown(one.a)} | {_shown(one.b)}" for key, one in found.items()]
        return "\n".join([*lines, self.verdict])

    @property
    def verdict(self) -> str:
        """What their fingerprints tell, in words."""
        if self.compared is None:
            return f"fingerprints: {self.why}"
        return self._how_far(self.compared) + left_out_in_words(self.compared)

    def _how_far(self, compared: Compared) -> str:
        parting, last = compared.parting, compared.last
        if parting is None:
            many = f"{compared.places} places" if compared.places > 1 else "one place"
            return f"fingerprints: equal at {many}, up to {last}"
        if parting.before is None:
            return f"they differ where they were first looked at: {parting}"
        if parting.between:
            return (
                f"they part after {parting.before}, where all was equal, and before\n  {parting}\n"
                "  Fingerprints at shorter intervals tell where."
            )
        return f"they part at {parting}\n  All was equal at {parting.before}."


@refuses_unknown
def compare_runs(a: str | Path, b: str | Path) -> Difference:
    """Compare two runs: settings, versions, hardware, data, and where their fingerprints part.

    Fingerprints, hardware and data are known of runs with `Trainer(fingerprints=...)`.

    Args:
        a: The folder of one run.
        b: That of the other.

    Raises:
        NoRun: Nothing of a run is in a folder.
        BadRecord, BadJournal, BadFingerprints: A file in it cannot be read.
    """
    runs = Run(a), Run(b)
    prints = [read_fingerprints(one.path) for one in runs]
    facts = [{} if one is None else one.facts for one in prints]
    found = Difference(
        runs[0].path,
        runs[1].path,
        _settings(runs, facts),
        _differing(*(_versions(one) for one in runs)),
        _differing(*(_texts(one.get("hardware")) for one in facts)),
        _differing(*(_texts(one.get("data")) for one in facts)),
    )
    try:
        compared = _compare(runs, prints)
    except NoFingerprints as error:
        return _with(found, None, str(error))
    return _with(found, compared, "")


def _with(found: Difference, compared: Compared | None, why: str) -> Difference:
    return Difference(
        found.a, found.b, found.settings, found.versions, found.hardware, found.data, compared, why
    )


def _compare(runs: Sequence[Run], prints: Sequence[FingerprintFile | None]) -> Compared:
    for run, one in zip(runs, prints, strict=True):
        if one is None or not one.looks:
            raise NoFingerprints(
                f"{run.path} has none. Trainer(fingerprints=every(100, 'step')) keeps them."
            )
    first, second = prints
    assert first is not None
    assert second is not None
    return compare_looks(first, second)


# -- fingerprints ----------------------------------------------------------------------------------


def compare_looks(a: Looks, b: Looks) -> Compared:
    """Compare the looks that two runs have at the same places, in the order of the first.

    Of the first place at which a root differs, and of no other, the leaves are read.

    Raises:
        NoFingerprints: There is no place at which both were looked at.
        OtherDigests: There are such places, and at all of them the digests are of two versions.
        BadFingerprints: The leaves cannot be read.
    """
    mine, others = by_place(a.looks), by_place(b.looks)
    both = [(key, one, others[key]) for key, one in mine.items() if key in others]
    pairs = [pair for pair in both if pair[1].digests == pair[2].digests]
    left_out = len(both) - len(pairs)
    if both and not pairs:
        raise other_digests(both[0][1], both[0][2])
    if not pairs:
        raise NoFingerprints(
            "the two were never looked at in the same place: give both the same interval, "
            "fingerprints=every(n, 'step')."
        )
    before, last = None, pairs[-1][1]
    for key, one, other in pairs:
        parting = _parting(a, b, one, other, before)
        if parting is not None:
            again = any(key[0] < [*looks][-1][0] for looks in (mine, others))
            return Compared(replace(parting, again=again), len(pairs), last, left_out)
        before = one
    return Compared(None, len(pairs), last, left_out)


def by_place(looks: Sequence[Look]) -> dict[tuple[int, int, str, str], Look]:
    """Return looks by where they were taken. Where batches begin anew, as at each fold, a round is counted."""
    found: dict[tuple[int, int, str, str], Look] = {}
    rounds, last = 0, 0
    for one in looks:
        rounds += one.batch < last
        last = one.batch
        found[rounds, one.batch, one.place, one.path if one.place == "checkpoint" else ""] = one
    return found


def _parting(a: Looks, b: Looks, one: Look, other: Look, before: Look | None) -> Parting | None:
    if one.roots == other.roots:
        return None
    kinds: list[tuple[str, str]] = [(p, k) for p, many in ORDER[one.place] for k in many]
    differing = [(p, k) for p, k in kinds if one.roots.get(k) != other.roots.get(k)]
    if not differing:
        return None
    phase, kind = differing[0]
    at_end = one.place == "batch_end"
    upto = kinds.index(differing[0]) if at_end else len(kinds)
    equal = [k for _, k in kinds[:upto] if k in one.roots and (phase, k) not in differing]
    taken, there = a.taken(one), b.taken(other)
    size = max(len(each.layouts.get(kind, ())) for each in (taken, there))
    earlier = before if at_end and before is not None and _goes_with(before, one) else None
    return Parting(
        look=one,
        phase=phase,
        kind=kind,
        names=names_of(taken, there, kind),
        of=size,
        also=[] if at_end else [k for _, k in differing[1:]],
        equal_before=([] if earlier is None else [*earlier.roots]) if at_end else equal,
        equal_since=equal if at_end else [],
        unseen=[k for k in equal if any(what == "?" for _, what in taken.layouts[k])],
        before=before,
    )


def _goes_with(before: Look, after: Look) -> bool:
    """Whether two looks are before and after the same batch."""
    return before.place == "batch_start" and before.batch == after.batch - 1


def names_of(one: Taken, other: Taken, kind: str) -> list[str]:
    """Return the names of the leaves of a kind that differ; if none does, those that stand in another place."""
    layouts = [each.layouts.get(kind, ()) for each in (one, other)]
    leaves = [
        _named(each.layouts.get(kind, ()), each.leaves.get(kind, b"")) for each in (one, other)
    ]
    names = [*dict.fromkeys([*leaves[0], *leaves[1]])]
    differing = [name for name in names if leaves[0].get(name) != leaves[1].get(name)]
    return differing or [
        f"{name} (in another place)"
        for (name, _), (there, _) in zip(*layouts, strict=False)
        if name != there
    ]


def _named(layout: Leaves, leaves: bytes) -> dict[str, list[tuple[str, bytes]]]:
    found: dict[str, list[tuple[str, bytes]]] = {}  # parameters outside of the model share a name
    for index, (name, described) in enumerate(layout):
        found.setdefault(name, []).append((described, leaves[8 * index : 8 * index + 8]))
    return found


# -- parts -----------------------------------------------------------------------------------------


def left_out_in_words(compared: Compared) -> str:
    """Return what is to be said of places that could not be compared; "" if there are none."""
    many = compared.left_out
    if not many:
        return ""
    places = f"{many} more places" if many > 1 else "One more place"
    return f"\n  {places} could not be compared: another version of the software computed the digests of one run there."


def _settings(runs: Sequence[Run], facts: Sequence[Mapping[str, Any]]) -> dict[str, Values]:
    """Return hyperparameters that differ, and settings of loops, layers, callbacks and optimizers beside them."""
    found = _differing(*(one.hyperparameters() for one in runs))
    if all("settings" in one for one in facts):
        more = _differing(*(_texts(one["settings"]) for one in facts))
        found |= {n: one for n, one in more.items() if n.rpartition(": ")[2] not in found}
    return found | _differing(*map(_set_in_the_run, runs))


def _set_in_the_run(run: Run) -> dict[str, object]:
    """Return what was set while a run went on, by name: the values, each with its step."""
    found: dict[str, list[str]] = {}
    for event in run.noted("set"):
        for name, one in event.facts.items():
            if isinstance(one, Mapping):
                value = f"{one.get('to')} at step {event.step}"
                found.setdefault(f"{name}, set in the run", []).append(value)
    return {name: ", ".join(values) for name, values in found.items()}


def _versions(run: Run) -> dict[str, object]:
    record = run.record()
    return {} if record is None else {**record.versions, "commit of the code": record.commit}


def _texts(found: object) -> dict[str, object]:
    return {str(name): one for name, one in found.items()} if isinstance(found, Mapping) else {}


def _differing(a: Mapping[str, object], b: Mapping[str, object]) -> dict[str, Values]:
    return {
        name: Values(a.get(name), b.get(name))
        for name in dict.fromkeys([*a, *b])
        if a.get(name) != b.get(name)
    }


def _shown(value: object) -> str:
    return "(nothing)" if value is None else f"{value}"


def in_words(kind: str, names: Sequence[str], of: int) -> str:
    """Return what differs: the first names, and how many more there are of so many."""
    shown = names[:_NAMES_SHOWN]
    more = len(names) - len(shown)
    text = ", ".join(shown) + (f" and {more} more of {of}" if more else "")
    return _WORDS.get(kind, "{}").format(text)


def _were(names: Sequence[str], when: str) -> str:
    return f"{_listed(names)}{when} {'was' if [*names] == ['batch'] else 'were'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
