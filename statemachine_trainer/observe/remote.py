"""A run of another process, as far as it can be asked: all its ranks, or one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from statemachine_trainer.control.buttons import AT_STATES, POSTED
from statemachine_trainer.control.control_errors import NobodyListens, NotNow, PageError
from statemachine_trainer.control.requests import Endpoint, endpoints_in
from statemachine_trainer.observe.blackbox import Look, Ring
from statemachine_trainer.observe.epoch_table import format_seconds

T = TypeVar("T")


class Folder(Protocol):
    """What is needed of the folder of a run."""

    @property
    def path(self) -> Path:
        """Where it is."""

    def look(self) -> Look:
        """Read what it tells of the run."""


class Remote:
    """Asks the processes of a run, each by its own request.

    Args:
        run: The run.
        rank: The only one to ask; all of them unless given.
        patience: Seconds to wait for an answer of each.
    """

    def __init__(self, run: Folder, *, rank: int | None = None, patience: float) -> None:
        self._run = run
        self._rank = rank
        self._patience = patience

    def looks(self, known: Look | None = None) -> dict[int, dict[str, Any]]:
        """Return what the fit of each rank is at; see `Buttons.look`.

        Args:
            known: What the folder tells, if that was just read.

        Raises:
            NobodyListens: The run is over, or takes no requests; the message says why.
            NoAnswer: A process hangs.
        """
        return self._of_each(lambda one: one.look(patience=self._patience), known, rank=self._rank)

    def press(self, name: str) -> dict[int, str]:
        """Ask for a button to be pressed, or an event to be posted, in each rank or in none.

        Of ranks that hand it on to each other one is asked: two would be asked for two.

        Returns:
            What becomes of it, by rank.

        Raises:
            NotNow: A rank refuses.
            NobodyListens: The run is over, or takes no requests; the message says why.
            NoAnswer: A process hangs.
        """
        looks = self.looks()
        for rank, look in looks.items():
            if (why := _refusal(name, look)) is not None:
                raise NotNow(why if len(looks) == 1 else f"Rank {rank}: {why}")
        together = any(look.get("together") for look in looks.values())
        answers = self._of_each(
            lambda one: one.press(name, patience=self._patience),
            rank=min(looks) if together else self._rank,
        )
        for rank, answer in answers.items():
            if (why := answer["refusal"]) is not None:
                raise NotNow(why if len(answers) == 1 else f"Rank {rank}: {why}")
        return {rank: str(answer["told"]) for rank, answer in answers.items()}

    def set(self, values: Mapping[str, object]) -> dict[int, str]:
        """Ask for settings of the fit to be changed.

        Returns:
            What becomes of it, by rank.

        Raises:
            NotNow: The run refuses.
            NobodyListens: It is over, or takes no requests; the message says why.
            NoAnswer: It hangs.
        """
        answers = self._of_each(
            lambda one: one.set(values, patience=self._patience), rank=self._rank
        )
        for answer in answers.values():
            if (why := answer["refusal"]) is not None:
                raise NotNow(why)
        return {rank: str(answer["told"]) for rank, answer in answers.items()}

    def silence(self, known: Look | None = None) -> str:
        """Say what the folder tells of a run of which nobody listens."""
        return _silence(self._run.path, known or self._run.look())

    def _of_each(
        self, ask: Callable[[Endpoint], T], known: Look | None = None, *, rank: int | None
    ) -> dict[int, T]:
        everyone = endpoints_in(self._run.path)
        endpoints = [one for one in everyone if rank in (None, one.rank)]
        if everyone and not endpoints:
            ranks = _ranks(one.rank for one in everyone)
            raise NobodyListens(f"There is no rank {rank} that listens; {ranks} may.")
        answers: dict[int, T] = {}
        problems: list[PageError] = []
        for one in endpoints:
            try:
                answers[one.rank] = ask(one)
            except PageError as problem:
                problems.append(problem)
        if not answers:
            hangs = next((one for one in problems if not isinstance(one, NobodyListens)), None)
            raise hangs or NobodyListens(f"{self.silence(known)} Nobody listens.")
        size = endpoints[0].ranks or len(endpoints)
        if rank is None and len(answers) < size:
            why = f" {problems[0]}" if problems else ""
            raise NobodyListens(
                f"Of {size} processes only {_ranks(answers)} listens.{why} One of them alone is "
                f"asked with --rank {min(answers)}."
            )
        return answers


def _refusal(name: str, look: dict[str, Any]) -> str | None:
    """Why a process would refuse; an event can be posted wherever it runs."""
    buttons: dict[str, str | None] = look["buttons"]
    if name.partition(" ")[0] in AT_STATES and " " in name:
        return None  # it answers by itself
    if name in buttons and name not in POSTED:
        return buttons[name]
    return None if look["running"] else buttons["pause"]  # for one reason as all the others


def _ranks(ranks: Iterable[int]) -> str:
    return " and ".join(f"rank {rank}" for rank in ranks)


def _silence(folder: Path, look: Look) -> str:
    ring = next((one for one in look.rings if one.status == look.status), None)
    ago = "" if ring is None or ring.seconds is None else f" {format_seconds(ring.seconds)} ago"
    told = {
        "ended": f"The run has ended{ago}.",
        "stopped": f"The run was stopped{ago}.",
        "failed": f"The run has failed{ago}.",
        "killed": f"The run was killed{_in_state(ring)}: its process is gone.",
        "running": "The run goes on and takes no requests: it was told not to "
        "(RunFolder(requests=False)), has just begun, or its log says why it cannot.",
    }.get(look.status)
    if told is not None:
        return told
    if ring is not None and ring.alive is False:
        return f"The run was {look.status}{ago}, and its process is gone."
    if ring is not None and ring.alive is None:
        return f"The run is one of the machine {ring.host!r}, and can be asked there alone."
    return f"Nothing tells what the run {folder} is doing."


def _in_state(ring: Ring | None) -> str:
    return "" if ring is None or ring.state is None else f" in {ring.state}"
