"""`assert_resumable`: a run that is stopped and resumed ends with the bits of one that is not."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from statemachine_trainer.snapshot.rng import isolated_rng
from statemachine_trainer.testing.comparing import (
    compare_end,
    first_difference,
    only_in_processes,
)
from statemachine_trainer.testing.defaults import default_examples
from statemachine_trainer.testing.hidden import compare_hidden, hidden_in_callbacks
from statemachine_trainer.testing.process import Address, run_in_processes
from statemachine_trainer.testing.recording import Recording, seed_all
from statemachine_trainer.testing.testing_errors import (
    HiddenState,
    HypothesisMissing,
    NoStopPoint,
    NotImportable,
    NotResumable,
)
from statemachine_trainer.testing.watched_runs import MakeTrainer, Run

_EXAMPLES = 20
_EXAMPLES_IN_PROCESSES = 3

Choose = Callable[[Sequence[int]], None]


@dataclass
class Report:
    """What `assert_resumable` tried; all of it was exact, or it would have raised.

    Attributes:
        boundaries: Boundaries of the run, its beginning and its end among them.
        transient: Those of them at which no snapshot can be taken.
        unwritable: Those at which the batch in flight is of a class that no checkpoint holds.
        tried: Numbers of the boundaries at which a run was stopped and resumed.
        runs: Resumed runs.
        processes: Those of them that went on in a process of their own.
    """

    boundaries: int
    transient: int
    unwritable: int
    tried: set[int] = field(default_factory=set)
    runs: int = 0
    processes: int = 0

    @property
    def possible(self) -> int:
        """Boundaries at which a run can be stopped and resumed."""
        return self.boundaries - self.transient - self.unwritable

    def __str__(self) -> str:
        return (
            f"{len(self.tried)} of {self.possible} stop points tried in {self.runs} resumed runs, "
            f"all exact ({self.boundaries} boundaries, {self.transient} transient, "
            f"{self.unwritable} not writable)"
        ) + (f", {self.processes} of them in fresh processes" if self.processes else "")


def assert_resumable(
    make_trainer: MakeTrainer,
    *,
    exhaustive: bool = False,
    examples: int | None = None,
    stops_per_run: int = 1,
    stops: Iterable[int] | None = None,
    seed: int | None = None,
    fresh_process: bool | None = None,
) -> Report:
    """Prove that a training set-up can be stopped anywhere and resumed to the same bits.

    Runs it once undisturbed. Then, for each example: runs to a boundary, writes the state down as a
    checkpoint does, scrambles every random number generator, builds everything anew, goes on from
    the state to the end (or to the next stop), and compares signals, weights, buffers, the state of
    optimizers and schedulers, metrics, counters, generators and the outcome, by their bits.

    Example:
        >>> def make_trainer():
        ...     trainer = Trainer(max_epochs=2)
        ...     trainer.start(Net(), DataLoader(Pictures(), batch_size=8, shuffle=True))
        ...     return trainer
        >>> assert_resumable(make_trainer)  # doctest: +SKIP

    Args:
        make_trainer: Builds model, data, callbacks and trainer anew, calls `trainer.start(...)` with
            what `fit` takes, and returns the trainer. Keep it small: it runs once for each example.
        exhaustive: Try every boundary that is not transient, each in a run of its own.
        examples: How many runs are tried otherwise; 20 unless told (3 in fresh processes).
        stops_per_run: At most so many stops in one run.
        stops: Try one run with just these stops, by number, as `NotResumable` names them.
        seed: Choose the boundaries with a generator of this seed; None lets hypothesis choose, which
            looks for the simplest stop that fails.
        fresh_process: Go on in another interpreter, from a checkpoint on disk. Then `make_trainer`
            must be a function at the top of a module. None does so for one run more, with another
            seed for hashes, where it can matter and can be done: where globals or class attributes
            change in the course of a run, or code goes through sets of strings.

    Returns:
        What was tried.

    Raises:
        NotResumable: A resumed run came out differently; the message names the first difference.
        NotRepeatable: Two undisturbed runs differ.
        NotReady: `make_trainer` does not return a started trainer.
        NotImportable: `fresh_process` with a function that no other process can find.
        Unwritable: The state holds something that no checkpoint can hold.

    Warns:
        HiddenState: The run came out the same, but a callback without `state_dict` did not; or globals
            change, and no other process can find `make_trainer`.
    """
    if fresh_process:
        Address.of(make_trainer)  # an error now, and not after the undisturbed run
    with isolated_rng():
        recording = Recording(make_trainer)
        trials = Trials(recording, bool(fresh_process))
        points = recording.stop_points
        try:
            if stops is not None:
                trials(sorted(stops))
            elif exhaustive:
                for number in points:
                    trials([number])
            else:
                wanted = examples or default_examples.get() or _default(bool(fresh_process))
                choose = _by_hypothesis if seed is None else _by_seed
                choose(trials, points, wanted, stops_per_run, seed or 0)
            if fresh_process is None and stops is None:
                trials.try_a_fresh_process(points[len(points) // 2])
        except _Different as different:
            error = trials.explain(different)
        else:
            return trials.report
    raise error


class _Different(AssertionError):
    """A run came out differently. Where it did so first is found out once the simplest is known."""

    def __init__(self, stops: Sequence[int], at_end: list[str], *, only_in_processes: bool) -> None:
        super().__init__(f"{[*stops]}: {at_end[0]}")
        self.stops = stops
        self.at_end = at_end
        self.only_in_processes = only_in_processes


class Trials:
    """Tries one run with stops after the other, and keeps count."""

    def __init__(self, recording: Recording, fresh_process: bool) -> None:
        self.recording = recording
        self.fresh_process = fresh_process
        self.report = Report(
            boundaries=len(recording.boundaries),
            transient=sum(one.transient for one in recording.boundaries),
            unwritable=len(recording.unwritable),
        )
        self._warned: set[str] = set()

    def __call__(self, stops: Sequence[int]) -> None:
        """Try one run.

        Raises:
            _Different: It came out differently.
        """
        self._check(stops)
        if self.fresh_process:
            self._try_in_processes(stops)
        else:
            self._try(stops)
        self.report.tried.update(stops)
        self.report.runs += 1

    def try_a_fresh_process(self, stop: int) -> None:
        """Go on in another process too, where that can matter.

        Raises:
            _Different: The run came out differently.
        """
        recording = self.recording
        if not (recording.kept_in_process or recording.hash_ordered):
            return
        try:
            Address.of(recording.make_trainer)
        except NotImportable as error:
            if recording.kept_in_process:
                warnings.warn(
                    f"The {'; the '.join(recording.kept_in_process)}. Whether that matters was not "
                    f"tried: {error}",
                    HiddenState,
                    stacklevel=_level_of_caller(),
                )
            return
        self._try_in_processes([stop])
        self.report.tried.add(stop)
        self.report.runs += 1

    def explain(self, different: _Different) -> NotResumable:
        """Return the error that names the first difference."""
        if different.only_in_processes:
            return only_in_processes(self.recording, different.stops, different.at_end)
        return first_difference(self.recording, self._resume, different.stops, different.at_end)

    def _check(self, stops: Sequence[int]) -> None:
        for number in stops:
            if number not in self.recording.stop_points:
                raise NoStopPoint(
                    f"A run cannot be stopped at boundary {number}: there are "
                    f"{len(self.recording.boundaries)}, counted from 0, and some of them cannot be "
                    "written down. Choose another one."
                )

    def _try(self, stops: Sequence[int]) -> None:
        run = self._resume(stops)
        run.finish()
        end, trainer = run.state(), run.trainer
        run.close()
        told = compare_end(
            self.recording, run.begun, run.signals, trainer.driver.outcome, end, trainer.metrics
        )
        if told:
            raise _Different(stops, told, only_in_processes=False)
        self._warn_of_hidden_state(run, stops)

    def _try_in_processes(self, stops: Sequence[int]) -> None:
        done = run_in_processes(self.recording, stops)
        self.report.processes += 1
        told = compare_end(
            self.recording, stops[0], done.signals, done.outcome, done.end, done.metrics
        )
        if told:
            self._try(stops)  # names the first difference, if it is one in this process too
            raise _Different(stops, told, only_in_processes=True)

    def _resume(self, stops: Sequence[int]) -> Run:
        """Stop and resume at each of the stops; the run stands at the last one.

        A run that has gone astray is left where it cannot be stopped as the undisturbed one.
        """
        state = self.recording.document(stops[0])
        for number, following in zip(stops, [*stops[1:], None], strict=True):
            scramble(number)
            run = Run(self.recording.make_trainer, state.tree(), number)
            if following is None:
                break
            run.go_to(following)
            here, expected = run.boundary, self.recording.boundaries[following]
            if (here.path, here.transient) != (expected.path, expected.transient):
                break
            state = run.document()
            run.close()
        return run

    def _warn_of_hidden_state(self, run: Run, stops: Sequence[int]) -> None:
        undisturbed = hidden_in_callbacks(self.recording.trainer)
        for told in compare_hidden(undisturbed, hidden_in_callbacks(run.trainer)):
            name = told.partition(" is ")[0]
            if name in self._warned:
                continue
            self._warned.add(name)
            many = "boundary" if len(stops) == 1 else "boundaries"
            warnings.warn(
                f"After stopping at {many} {', '.join(map(str, stops))} the run came out the same, "
                f"but {told}.",
                HiddenState,
                stacklevel=_level_of_caller(),
            )


def scramble(*salt: int) -> None:
    """Put every global generator somewhere else, as a new process would."""
    seed_all(hash((*salt, 9)) % 2**32)


def _default(fresh_process: bool) -> int:
    return _EXAMPLES_IN_PROCESSES if fresh_process else _EXAMPLES


def _by_seed(try_stops: Choose, points: list[int], examples: int, most: int, seed: int) -> None:
    chooser = random.Random(seed)
    for _ in range(examples):
        count = chooser.randint(1, min(most, len(points)))
        try_stops(sorted(chooser.sample(points, count)))


def _by_hypothesis(
    try_stops: Choose, points: list[int], examples: int, most: int, _seed: int
) -> None:
    try:
        from hypothesis import HealthCheck, given, settings
        from hypothesis import strategies as st
    except ImportError:
        raise HypothesisMissing(
            "assert_resumable lets hypothesis choose where to stop, and it is not installed: "
            "`pip install hypothesis`, or give a seed, as in assert_resumable(..., seed=0)."
        ) from None
    chosen = st.lists(st.sampled_from(points), min_size=1, max_size=most, unique=True)

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(chosen)
    def run(stops: list[int]) -> None:
        try_stops(sorted(stops))

    run()


def _level_of_caller() -> int:
    """Return the `stacklevel` of whoever called `assert_resumable`, seen from `warnings.warn`."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None:
        level, frame = level + 1, frame.f_back
        if frame.f_code is assert_resumable.__code__:
            return level
    return 2
