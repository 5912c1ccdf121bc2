"""A restart by `torchrun` is in the journal: which attempt it is, which rank was lost, what it went on from."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from statemachine_trainer import Trainer
from statemachine_trainer.cli.inspection import inspect
from statemachine_trainer.cli.runs import Order, list_runs
from statemachine_trainer.observe.blackbox import Entry, Ring
from statemachine_trainer.observe.restarts import restart_in_words, what_was_lost
from statemachine_trainer.observe.run import Run

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
DATA = [(torch.ones(2, 3), torch.ones(2, 1))] * 2


def ring(
    rank: int,
    *states: str,
    event: str = "next",
    alive: bool | None = False,
    attempt: int = 0,
    pid: int = 1,
) -> Ring:
    """The black box of a rank that made these transitions, one a second."""
    entries = [Entry(i, NOON + timedelta(seconds=i), event, s, 0) for i, s in enumerate(states, 1)]
    return Ring(Path(), rank, 2, pid, "node", alive, attempt, NOON, None, tuple(entries))


LOST = ring(0, "a", "b", "c", "(failed)", event="RankLost")


def test_the_rank_that_was_killed_is_told_before_those_that_lost_it() -> None:
    assert what_was_lost([LOST, ring(1, "a", "b")], 1) == {
        "attempt": 1,
        "rank": 1,
        "how": "killed",
        "state": "b",
        "since": "2026-01-01T12:00:02+00:00",
    }


def test_of_several_that_were_killed_the_one_that_had_come_least_far_is_told() -> None:
    found = what_was_lost([ring(0, "a", "b", "c"), ring(1, "a", "b")], 1)
    assert found is not None
    assert found["rank"] == 1


def test_a_rank_that_was_lost_before_its_first_transition_is_told_first() -> None:
    found = what_was_lost([LOST, ring(1)], 1)
    assert found == {"attempt": 1, "rank": 1, "how": "killed"}


def test_a_rank_that_failed_by_itself_is_told_with_its_error() -> None:
    found = what_was_lost([LOST, ring(1, "a", "(failed)", event="ValueError")], 1)
    assert found is not None
    assert (found["rank"], found["how"], found["error"]) == (1, "failed", "ValueError")


def test_a_rank_of_another_machine_counts_as_killed_where_it_did_not_say_how_it_ended() -> None:
    found = what_was_lost([LOST, ring(1, "a", alive=None)], 1)
    assert found is not None
    assert (found["rank"], found["how"]) == (1, "killed")


def test_a_rank_whose_black_box_is_of_an_earlier_attempt_was_lost_before_it_began() -> None:
    lost = ring(0, "a", "(failed)", event="RankLost", attempt=1)
    found = what_was_lost([lost, ring(1, "a", attempt=0)], 2)
    assert found == {"attempt": 2, "rank": 1}


@pytest.mark.parametrize("rings", [[], [ring(0, "a"), ring(1, "a")]])
def test_nothing_is_made_up_where_no_black_box_is_of_the_attempt_before(rings: list[Ring]) -> None:
    assert what_was_lost(rings, 3) == {"attempt": 3}


def test_a_run_that_this_process_began_or_that_had_ended_was_not_restarted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = [ring(0, "a", "(ended)"), ring(1, "a", "(ended)")]
    assert what_was_lost(ended, 1) is None
    monkeypatch.setattr("os.getpid", lambda: 1)
    assert what_was_lost([LOST, ring(1, "a", "b")], 1) is None


@pytest.mark.parametrize(
    "facts, words",
    [
        (
            {"attempt": 1, "rank": 1, "how": "killed", "state": "a.b", "checkpoint": "3-step"},
            "attempt 1: rank 1 was killed in a.b; went on from 3-step",
        ),
        (
            {"attempt": 2, "rank": 0, "how": "failed", "error": "ValueError", "state": "a"},
            "attempt 2: rank 0 failed with ValueError in a; began anew",
        ),
        (
            {"attempt": 2, "rank": 1, "checkpoint": None},
            "attempt 2: rank 1 was lost before its fit began; began anew",
        ),
        (
            {"attempt": 1, "checkpoint": "x"},
            "attempt 1: what was lost is not known; went on from x",
        ),
    ],
)
def test_a_restart_is_told_in_a_sentence(facts: dict[str, object], words: str) -> None:
    assert restart_in_words(facts) == words


def fit(folder: Path, epochs: int) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(max_epochs=epochs, checkpoints=folder, device="cpu", progress=False)
    trainer.fit(model, DATA, loss=nn.MSELoss(), optimizer=optimizer, resume="auto")


@pytest.fixture
def restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that goes on in the second attempt."""
    fit(tmp_path / "run", 1)
    (tmp_path / "run" / "blackbox-0.ring").unlink()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    fit(tmp_path / "run", 2)
    return tmp_path / "run"


def test_the_journal_says_which_attempt_went_on_from_which_checkpoint(restarted: Path) -> None:
    (found,) = Run(restarted).restarts()
    assert found in Run(restarted).history()
    assert found.what == "restart"
    assert found.facts["attempt"] == 1
    assert (restarted / found.facts["checkpoint"]).is_dir()


def test_a_restart_is_noted_too_where_a_black_box_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(tmp_path, 1)
    (tmp_path / "blackbox-0.ring").write_text("no black box")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    fit(tmp_path, 2)
    (found,) = Run(tmp_path).restarts()
    assert (found.facts["attempt"], found.facts.get("rank")) == (2, None)


def test_inspect_and_the_list_of_runs_show_restarts(restarted: Path) -> None:
    output = io.StringIO()
    console = Console(file=output, width=200)
    assert inspect(restarted, console)
    assert "attempt 1: what was lost is not known; went on from 0000" in output.getvalue()
    output.truncate(0)
    list_runs([restarted.parent], console, Order())
    assert "restarts" in output.getvalue()
    output.truncate(0)
    list_runs([restarted.parent], console, Order(), compare=True)
    assert "restarts 1" in " ".join(output.getvalue().split())


def test_a_run_without_restarts_tells_none(tmp_path: Path) -> None:
    fit(tmp_path / "run", 1)
    output = io.StringIO()
    list_runs([tmp_path], Console(file=output, width=200), Order())
    assert not Run(tmp_path / "run").restarts()
    assert "restarts" not in output.getvalue()
