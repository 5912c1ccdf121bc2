"""Reports before training which objects of a fit its checkpoints can hold, and which they cannot."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

from statemachine_trainer.audit.reachable import (
    Roots,
    Searches,
    feeds_of,
    roots_besides_model_and_data,
    roots_of_feed,
)
from statemachine_trainer.data import Feed
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.context_state import lasting_state
from statemachine_trainer.machine.board import SignalBoard
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.snapshot import encode
from statemachine_trainer.snapshot.generators import kind_of
from statemachine_trainer.snapshot.marks import take_out
from statemachine_trainer.snapshot.sampling import OF_ONE_TYPE
from statemachine_trainer.snapshot.search import Search

Verdict = Literal["held", "reseeded", "not held"]

_TOLD = 8
_SEEDED = "its workers seed it for each sample"
_UNSEEDED = (
    "workers draw from copies of it, and nobody sees where those stand",
    "leave seed_samples out, or say seed_samples=True",
)
_IN_STREAM = (
    "workers draw from copies of it, and nobody sees where those stand",
    "use a map-style data set, or draw from generators that follow from the index and the epoch",
)


class NotHeld(UserWarning):
    """A fit with checkpoints uses something that no checkpoint can hold."""


@dataclass(frozen=True)
class Item:
    """One object that a fit uses.

    Attributes:
        path: Where it is.
        what: What it is.
        verdict: Whether checkpoints hold it.
        why: How it is held; or why it is not, and what to do.
    """

    path: str
    what: str
    verdict: Verdict
    why: str


@dataclass
class Audit:
    """All random number generators that a fit uses, and all objects that its checkpoints cannot hold.

    `print` shows one line for each item.

    Attributes:
        items: What was found, in the order of the search.
        visited: Number of objects that were searched.
        unfinished: Messages on where the search ended early.
    """

    items: list[Item] = field(default_factory=list)
    visited: int = 0
    unfinished: list[str] = field(default_factory=list)

    def of(self, verdict: Verdict) -> list[Item]:
        """Return the items with a verdict."""
        return [one for one in self.items if one.verdict == verdict]

    def __str__(self) -> str:
        if not self.items:
            lines = ["Nothing besides weights, optimizers, counters and the global generators."]
        else:
            width = max(len(one.path) for one in self.items)
            lines = [
                f"{one.verdict:<9} {one.path:<{width}}  {one.what}: {one.why}" for one in self.items
            ]
        counts = ", ".join(
            f"{len(self.of(verdict))} {verdict}" for verdict in ("held", "reseeded", "not held")
        )
        return "\n".join([*lines, *self.unfinished, f"{counts}; {self.visited} objects visited"])


def audit(
    board: SignalBoard,
    driver: Driver,
    context: Context,
    search: Search | None = None,
    of_data: Searches | None = None,
) -> Audit:
    """Search all objects that a fit uses.

    Args:
        board: The signals of the trainer.
        driver: The driver of the fit.
        context: The context of the fit.
        search: What was found of the model and of all else but the data, if somebody has looked already.
        of_data: What was found in data sets, likewise.
    """
    found = Audit()
    seen: set[int] = set()
    for name, feed in feeds_of(context):
        known = (of_data or {}).get((name, id(feed.loader)))
        _of_feed(found, name, feed, seen, known)
    if search is None:
        rest: Roots = {"model": context.model}
        search = Search(rest | roots_besides_model_and_data(board, driver, context))
    for path, place in search.places.items():
        if id(place.generator) not in seen:
            why = "written and put back by its path"
            found.items.append(Item(path, kind_of(place.generator), "held", why))
    _finish(found, search)
    return found


def tell_what_is_not_held(
    board: SignalBoard, driver: Driver, context: Context, search: Search, of_data: Searches
) -> list[str] | None:
    """Warn, once for a fit, of all objects that its checkpoints cannot hold; see `audit`.

    Returns:
        Their paths; None at a rank that did not look.

    Warns:
        NotHeld: There is such an object. The message has its path and a way out.
    """
    if not Ranks.is_first():
        return None  # one of them is enough
    found = audit(board, driver, context, search, of_data)
    paths = [one.path for one in found.of("not held")]
    told = [f"{one.path} is {one.what}: {one.why}" for one in found.of("not held")]
    told += [one for one in found.unfinished if one.startswith("The search")]
    if not told:
        return paths
    more = [f"and {len(told) - _TOLD} more, which `print(trainer.audit())` lists"]
    lines = told if len(told) <= _TOLD else told[:_TOLD] + more
    warnings.warn(
        "No checkpoint holds the following, so that a resumed run may differ from one that was not "
        "interrupted:\n  " + "\n  ".join(lines),
        NotHeld,
        stacklevel=level_of_caller(),
    )
    return paths


def check_writable(driver: Driver, context: Context, callbacks: list[Any]) -> None:
    """Encode the lasting state of a fit without writing it, to find what cannot be saved.

    Raises:
        Unwritable: A scheduler, a metric object, a callback or a field of a loop holds something that no
            checkpoint can hold.
    """
    tree: dict[str, Any] = {
        "machine": driver.state_dict(),
        "context": lasting_state(context),
        "callbacks": [
            {"state": one.state_dict()}
            for one in callbacks
            # Hooks of other libraries run while their state is taken.
            if not type(one).__module__.startswith("statemachine_trainer.integrations.")
        ],
    }
    # What is cut up is written beside the tree, where there are ranks.
    encode(tree if Ranks.here() is None else take_out(tree)[0])


def _of_feed(
    found: Audit, name: str, feed: Feed, seen: set[int], search: Search | None = None
) -> None:
    roots = roots_of_feed(name, feed)
    search = search or Search(roots)
    inside = (f"{name}.dataset", f"{name}.loader")
    read = {path: thing for path, thing in roots.items() if path.startswith(inside)}
    where = feed.draws_in
    in_workers = set()
    if where != "this process":
        copied = {f"{name}.dataset": read.get(f"{name}.dataset")}
        for part in ("collate_fn", "worker_init_fn"):
            copied[f"{name}.loader.{part}"] = getattr(feed.loader, part, None)
        in_workers = {id(one.generator) for one in Search(copied).places.values()}
    for path, place in search.places.items():
        seen.add(id(place.generator))
        what = kind_of(place.generator)
        if id(place.generator) not in in_workers:
            item = Item(path, what, "held", "written and put back by its path")
        elif where == "seeded":
            item = Item(path, what, "reseeded", _SEEDED)
        elif where == "read again":
            item = Item(path, what, "held", "the pass is read again from its start")
        else:
            why, remedy = _UNSEEDED if where == "workers" else _IN_STREAM
            item = Item(path, what, "not held", f"{why}; {remedy}")
        found.items.append(item)
    _finish(found, search)


def _finish(found: Audit, search: Search) -> None:
    known = {one.path for one in found.items}
    found.items += [
        Item(one.path, one.what, "not held", one.remedy)
        for one in search.unheld
        if one.path not in known
    ]
    found.visited += search.visited
    if not search.complete:
        found.unfinished.append(
            f"The search ended after {search.visited} objects; generators that lie further are not held. "
            "Keep large trees of objects in arrays or files, or generators near the top."
        )
    found.unfinished += [
        f"Of the {count} elements of {path} the first of each type were looked at."
        for path, count in search.sampling.partly.items()
    ]
    found.unfinished += [
        f"Of all objects {kind.__qualname__} in containers {OF_ONE_TYPE} were looked at."
        for kind in search.sampling.passed_over()
    ]
