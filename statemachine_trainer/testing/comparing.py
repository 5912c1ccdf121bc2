"""Finding out whether a resumed run differs, and where it does so first."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from statemachine_trainer.testing.hidden import compare_hidden, hidden_state, settled
from statemachine_trainer.testing.recording import Recording
from statemachine_trainer.testing.testing_errors import NotResumable
from statemachine_trainer.testing.trees import differences, digest
from statemachine_trainer.testing.watched_runs import Run

_MOST_TOLD = 4
_FIELD = re.compile(r"machine\.loops(?:\['([^']+)'\]|\.(\w+))\.fields\.(\w+)")

Resume = Callable[[Sequence[int]], Run]
"""Stops and resumes a run at each of some boundaries; it stands at the last one."""


def compare_end(
    recording: Recording,
    begun: int,
    signals: list[str],
    outcome: str | None,
    end: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> list[str]:
    """Say what differs between a resumed run that has ended and the undisturbed one.

    Args:
        recording: Of the undisturbed run.
        begun: Boundary at which the resumed run was resumed.
        signals: Signals it fired since.
        outcome: How it ended.
        end: Its state at the end.
        metrics: Its metrics at the end.
    """
    heard = recording.boundaries[begun].heard
    told = _compare_signals(recording.signals[heard:], signals, heard)
    if recording.outcome != outcome:
        told.append(f"the outcome is {recording.outcome!r} undisturbed and {outcome!r} resumed")
    told += differences(recording.end, end)
    return told + differences({"metrics": recording.metrics}, {"metrics": metrics})


def first_difference(
    recording: Recording, resume: Resume, stops: Sequence[int], at_end: list[str]
) -> NotResumable:
    """Make a run that came out differently once more, look at each boundary, and say what is wrong.

    Args:
        recording: Of the undisturbed run.
        resume: Stops and resumes a run.
        stops: Where it was stopped.
        at_end: What differed at its end.
    """
    last = len(recording.boundaries) - 1
    digests = recording.digests()  # now: it runs, and the run below must not be disturbed
    suspects: list[str] = []
    for done in range(1, len(stops) + 1):
        run = resume(stops[:done])
        suspects = _suspects(recording, run)
        found = _first(recording, digests, run, stops[done] if done < len(stops) else last)
        if found is not None:
            return _error(recording, stops, *found, suspects)
    return _error(recording, stops, last, at_end, suspects)


def only_in_processes(
    recording: Recording, stops: Sequence[int], at_end: list[str]
) -> NotResumable:
    """Return the error for a run that came out differently in fresh processes only."""
    told = recording.kept_in_process + [
        f"{one}, whose order differs from process to process" for one in recording.hash_ordered
    ]
    unknown = "a cache of a module or another thing that only this process has"
    return _error(recording, stops, len(recording.boundaries) - 1, at_end, told or [unknown])


def _first(
    recording: Recording, digests: list[str | None], run: Run, until: int
) -> tuple[int, list[str]] | None:
    """Go on, up to a boundary, until something differs; return where, and what."""
    last = len(recording.boundaries) - 1
    begun = recording.boundaries[run.position].heard
    for boundary in run.boundaries():
        number = run.position
        if number > last:
            return last, [f"the undisturbed run is over there, the resumed one is {boundary}"]
        expected, known = recording.boundaries[number], digests[number]
        signals = recording.signals[begun : expected.heard]
        if told := _compare_signals(signals, run.signals, begun):
            return number, told
        if boundary.path != expected.path:
            return number, [f"the undisturbed run is {expected}, the resumed one {boundary}"]
        if known is not None and digest(run.state()) != known:
            told = differences(recording.run_to(number).state(), run.state())
            if told:
                return number, told
        if number == until:
            return None
    return None


def _suspects(recording: Recording, run: Run) -> list[str]:
    """Compare what no state holds, right after the run was resumed.

    What differs between two undisturbed runs as well (a time, the name of a folder) is no state.
    """
    one, other = (hidden_state(recording.run_to(run.position).trainer) for _ in range(2))
    told = compare_hidden(settled(one, other), hidden_state(run.trainer))
    return told + recording.kept_in_process


def _error(
    recording: Recording,
    stops: Sequence[int],
    number: int,
    told: list[str],
    suspects: list[str],
) -> NotResumable:
    told = [_readable(one) for one in told]
    where = ", ".join(f"{one} ({recording.boundaries[one]})" for one in stops)
    many = "boundary" if len(stops) == 1 else "boundaries"
    lines = [
        f"A run stopped and resumed at {many} {where} of {len(recording.boundaries) - 1} differs "
        "from one that was never interrupted.",
        f"First difference, at boundary {number} ({recording.boundaries[number]}):",
        f"  {told[0]}",
        *(f"  then {one}" for one in told[1:_MOST_TOLD]),
    ]
    if len(told) > _MOST_TOLD:
        lines.append(f"  and {len(told) - _MOST_TOLD} more")
    if suspects:
        lines.append("Lost at the stop, because no snapshot holds it:")
        lines += [f"  {one}" for one in suspects[:_MOST_TOLD]]
    lines.append(f"To try this once more: assert_resumable(..., stops={[*stops]})")
    return NotResumable(
        "\n".join(lines),
        stops=tuple(stops),
        boundary=number,
        place=recording.boundaries[number].path,
        differences=tuple(told),
        suspects=tuple(suspects),
    )


def _compare_signals(expected: list[str], found: list[str], begun: int) -> list[str]:
    """Say at which place the signals part."""
    for place, (ours, theirs) in enumerate(zip(expected, found, strict=False)):
        if ours != theirs:
            return [f"signal {begun + place} is {ours} undisturbed and {theirs} resumed"]
    place = begun + min(len(expected), len(found))
    if len(expected) > len(found):
        return [f"signal {place} is {expected[len(found)]} undisturbed, and none resumed"]
    if len(found) > len(expected):
        return [f"signal {place} is {found[len(expected)]} resumed, and none undisturbed"]
    return []


def _readable(told: str) -> str:
    """Write the address of a loop's field as people say it."""
    return _FIELD.sub(lambda m: f"field {m[3]!r} of the loop {m[1] or m[2]}", told, count=1)
