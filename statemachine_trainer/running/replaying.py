"""Goes through a part of a run again, in a trainer that the run's own code makes, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from statemachine_trainer.observe.recorder import RunFolder
from statemachine_trainer.running.arguments import Given, callbacks_given, checkpoints_given


class ReplayOver(BaseException):
    """Ends the run's own code once the replay is over: what it would do after the fit is not done."""


@dataclass
class Replaying:
    """A run that is replayed in this block of code.

    Attributes:
        folder: The folder of the run.
        checkpoint: Where to go on from; None for its beginning.
        take_over: Called with the trainer when its fit is started, in place of running it.
        trainer: The trainer whose run it is, once that is known.
        started: Whether its fit was started.
    """

    folder: Path
    checkpoint: Path | None
    take_over: Callable[[Any], object]
    trainer: Any = None
    started: bool = False

    def starts(self, host: object, given: Given) -> Given:
        """Return the arguments of `fit`, with the checkpoint of the replay."""
        if host is not self.trainer or self.started:
            return given
        fresh = () if self.checkpoint is None else given.fresh
        resume = None if self.checkpoint is None else str(self.checkpoint)
        return replace(given, resume=resume, restart=False, restore_best=False, fresh=fresh)

    def has_started(self, host: object) -> None:
        """Note that a fit was started: that of the run, if it is its trainer."""
        self.started = self.started or host is self.trainer


_REPLAYING: Final[ContextVar[Replaying | None]] = ContextVar("replaying", default=None)


@contextmanager
def replaying(one: Replaying) -> Iterator[None]:
    """Context manager in which trainers write nothing, and that of a run goes on from a given checkpoint."""
    token = _REPLAYING.set(one)
    try:
        yield
    finally:
        _REPLAYING.reset(token)


def replay() -> Replaying | None:
    """Return the run that is replayed here; None if none is."""
    return _REPLAYING.get()


def as_replayed(
    host: object, callbacks: Any, checkpoints: Any, run: Any, progress: Any
) -> tuple[Any, Any, Any, Any]:
    """Return these arguments of a trainer; in a replay without folders, progress, and callbacks that write records."""
    one = replay()
    if one is None:
        return callbacks, checkpoints, run, progress
    given = checkpoints_given(checkpoints)
    root = None if given is None else given.store.root
    folder = RunFolder.of(None if run is False else run, root)
    if one.trainer is None and folder is not None and folder.path.resolve() == one.folder.resolve():
        one.trainer = host
    return [*_without_records(callbacks_given(callbacks))], None, False, False


def _without_records(callbacks: Iterable[object]) -> Iterator[object]:
    for one in callbacks:
        if not getattr(one, "writes_records", False) or hasattr(one, "state_dict"):
            yield one
