"""`smt replay --bisect`: a run with two versions of its code, and where they part."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from statemachine_trainer.cli.code_of_run import Code
from statemachine_trainer.cli.places import CannotReplay
from statemachine_trainer.cli.replay_child import Outcome, Request, checked, replay_apart
from statemachine_trainer.observe.difference import Compared, compare_looks
from statemachine_trainer.observe.fingerprint_file import FingerprintFile, read_fingerprints
from statemachine_trainer.run_record import CannotResume, resume_command


@dataclass(frozen=True)
class Bisected:
    """What came of it. As text it says so.

    Attributes:
        names: The two versions.
        verdicts: For each, whether the run reproduces itself with it.
        compared: How far the two agree.
        first: The first version that parts from the first one: of commits the first in their order.
        replayed: How many versions were replayed.
        unknown: Commits before it that cannot be judged, as their code fails.
    """

    names: tuple[str, str]
    verdicts: tuple[str, str]
    compared: Compared
    first: str
    replayed: int
    unknown: tuple[str, ...] = ()

    @property
    def parts(self) -> bool:
        """Whether the two versions part."""
        return self.compared.parting is not None

    def __str__(self) -> str:
        lines = [f"{n}: {v}" for n, v in zip(self.names, self.verdicts, strict=True)]
        parting = self.compared.parting
        if parting is None:
            many, last = self.compared.places, self.compared.last
            lines.append(f"The two are equal at {many} places, up to {last}.")
            return "\n".join(lines)
        lines.append(f"They part first with {self.first}, at {parting}")
        if parting.before is not None:
            lines.append(f"  All was equal at {parting.before}.")
        if self.unknown:
            lines.append(f"  The code of these commits fails: {', '.join(self.unknown)}.")
        return "\n".join(lines)


def bisect(run: Path, to: str, target: str | None, first: str, second: str) -> Bisected:
    """Replay a run with two versions of its code, and find where they part, and with which version.

    Args:
        run: The folder of the run.
        to: The place up to which it is replayed, as `Place.of` reads it.
        target: `FILE:FUNCTION`; None for the run's own command.
        first: A file that stands for the run's script, or a commit.
        second: Another one.

    Raises:
        CannotReplay: They are neither two files nor two commits, or their code does not come to the place.
    """
    run = run.resolve()
    files = [Path(one) for one in (first, second)]
    if all(one.is_file() for one in files):
        codes = [Code(script=one.resolve()) for one in files]
        with _Replays(run, to, target) as replays:
            outcomes = [replays.of(n, c) for n, c in zip((first, second), codes, strict=True)]
            for name, outcome in zip((first, second), outcomes, strict=True):
                checked(outcome, name)
            compared = _compare(*outcomes)
        return _told((first, second), outcomes, compared, second, 2)
    if any(one.is_file() for one in files):
        raise CannotReplay(
            f"{first} and {second} are not both files. Name two files, or two commits."
        )
    return _bisect_commits(run, to, target, first, second)


def _told(
    names: tuple[str, str],
    outcomes: Sequence[Outcome],
    compared: Compared,
    first: str,
    replayed: int,
    unknown: tuple[str, ...] = (),
) -> Bisected:
    verdicts = outcomes[0].verdict, outcomes[1].verdict
    return Bisected(names, verdicts, compared, first, replayed, unknown)


def _bisect_commits(run: Path, to: str, target: str | None, first: str, second: str) -> Bisected:
    root = _root_of(run, target)
    ends = [
        _git(root, "rev-parse", "--verify", "--end-of-options", f"{one}^{{commit}}")
        for one in (first, second)
    ]
    if ends[0] == ends[1]:
        raise CannotReplay(f"{first} and {second} are the same commit.")
    between = _git(root, "rev-list", "--reverse", "--ancestry-path", f"{ends[0]}..{ends[1]}")
    commits = [ends[0], *(between.split() or [ends[1]])]
    names = {one: _git(root, "log", "-1", "--format=%h %s", one) for one in commits}

    with _Replays(run, to, target) as replays:
        outcomes: dict[int, Outcome] = {}

        def outcome_of(index: int) -> Outcome:
            if index not in outcomes:
                with _checked_out(root, commits[index]) as code:
                    outcomes[index] = replays.of(names[commits[index]], code)
            return outcomes[index]

        last = len(commits) - 1
        for index in (0, last):
            checked(outcome_of(index), names[commits[index]])
        low, high, failing = 0, last, set[int]()
        compared = _compare(outcome_of(0), outcome_of(last))
        while compared.parting is not None:
            middle = _middle(low, high, failing)
            if middle is None:
                break
            outcome = outcome_of(middle)
            if outcome.error:
                failing.add(middle)
                continue
            there = _compare(outcome_of(0), outcome)
            if there.parting is None:
                low = middle
            else:
                high, compared = middle, there
        unknown = tuple(names[commits[one]] for one in sorted(failing) if low < one < high)
        both = names[commits[0]], names[commits[last]]
        of_both = outcomes[0], outcomes[last]
        return _told(both, of_both, compared, names[commits[high]], len(outcomes), unknown)


def _middle(low: int, high: int, failing: set[int]) -> int | None:
    """Return the version to look at next, the nearest to the middle whose code does not fail; None if there is none."""
    middle = (low + high) / 2
    return min(
        (one for one in range(low + 1, high) if one not in failing),
        key=lambda one: abs(one - middle),
        default=None,
    )


class _Replays:
    """Replays a run with versions of its code, each in a folder of its own, which are removed at the end."""

    def __init__(self, run: Path, to: str, target: str | None) -> None:
        self._run, self._to, self._target = run, to, target
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> _Replays:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def of(self, name: str, code: Code) -> Outcome:
        """Replay with a version."""
        folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        request = Request(self._run, self._to, self._target, "fingerprints", code)
        return replay_apart(request, folder)


def _compare(one: Outcome, other: Outcome) -> Compared:
    """Compare the fingerprints of two replays.

    Raises:
        NoFingerprints: No batch comes up to the place.
    """
    return compare_looks(_prints(one), _prints(other))


def _prints(outcome: Outcome) -> FingerprintFile:
    found = read_fingerprints(outcome.folder)
    assert found is not None
    return found


# -- git -------------------------------------------------------------------------------------------


def _root_of(run: Path, target: str | None) -> Path:
    """Return the git repository of the code of a run.

    Raises:
        CannotReplay: It is in none.
    """
    folder = Path.cwd()
    if target is None:
        try:
            folder = resume_command(run)[1]
        except CannotResume as error:
            raise CannotReplay(
                f"{error} Or name a function that starts its trainer: --from FILE:FUNCTION."
            ) from error
    return Path(_git(folder, "rev-parse", "--show-toplevel")).resolve()


def _git(folder: Path, *arguments: str, **environment: str) -> str:
    """Run git in a folder, and return what it says.

    Raises:
        CannotReplay: It fails.
    """
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise CannotReplay(
            "Two commits are compared with git, and there is no git here."
        ) from error
    if done.returncode:
        raise CannotReplay(
            f"git {arguments[0]} fails in {folder}: {done.stderr.strip()}. Name two files, or two commits of the "
            "project's repository."
        )
    return done.stdout.strip()


@contextmanager
def _checked_out(root: Path, commit: str) -> Iterator[Code]:
    """Context manager with a copy of a commit. The repository itself is only read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        index, copy = folder / "index", folder / "copy"
        copy.mkdir()
        git = _git(root, "rev-parse", "--absolute-git-dir")
        # An index of its own: that of the repository stays as it is.
        _git(
            copy,
            *(f"--git-dir={git}", f"--work-tree={copy}", "checkout", "--force", commit, "--", "."),
            GIT_INDEX_FILE=str(index),
        )
        yield Code(root=root, checkout=copy)
