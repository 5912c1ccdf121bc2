"""`smt runs`, `smt inspect` and `smt blackbox`: what the folders of runs tell at a prompt."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.cli import app
from statemachine_trainer.observe.ring import RingWriter
from tests.cli.sandbox import smt_that_tells_imports
from tests.observe.recorded import Net, batches, trainer
from tests.observe.running import train, training, wait_until


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: one that ended, one that was paused further down, and one that failed."""
    folder = tmp_path_factory.mktemp("runs")
    trainer(checkpoints=folder / "ended", max_epochs=2).fit(Net(), batches(), batches(2))
    paused = trainer(run=folder / "sweep" / "paused")
    paused.fit(Net(), batches(), batches(1), until=lambda trainer: trainer.steps == 20)
    failing = trainer(run=folder / "failed")
    failing.on("epoch_end", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.fit(Net(), batches(2))
    (folder / "nothing").mkdir()
    (folder / "nothing" / "run.json").write_text('{"of": "something else"}')
    return folder


def smt(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def lines(result: Result) -> dict[str, list[str]]:
    """Return the words of each line, by the first one."""
    assert result.exit_code == 0, result.output
    return {
        line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.split()
    }


# -- runs ------------------------------------------------------------------------------------------


def test_runs_are_listed_with_state_progress_and_metrics(runs: Path) -> None:
    found = lines(smt("runs", runs))
    assert found.keys() == {"run", "ended", "sweep/paused", "failed"}
    assert found["ended"][:3] == ["ended", "2", "16"]
    assert found["sweep/paused"][:3] == ["paused", "2", "20"]
    assert found["failed"][:3] == ["failed", "0", "2"]
    assert re.search(r"score 0\.\d+ +loss 0\.\d+", " ".join(found["ended"]))


def test_with_a_metric_to_be_best_the_best_run_comes_first(runs: Path) -> None:
    for mode in ("min", "max"):
        done = smt("runs", runs, "--best", "score", "--mode", mode)
        values = [float(found) for found in re.findall(r"(0\.\d+) at \d+", done.stdout)]
        assert len(values) == 2
        assert values == sorted(values, reverse=mode == "max")
        assert [*lines(done)][-1] == "failed"  # it has no such metric


def test_a_damaged_run_is_told_of_and_hides_no_other(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "good").symlink_to(runs / "ended")  # a link leads out of the folder: it is left out
    trainer(run=folder / "fine", max_epochs=1).fit(Net(), batches(1))
    (folder / "bad").mkdir()
    (folder / "bad" / "journal.sqlite").write_text("nothing " * 100)
    done = smt("runs", folder)
    assert lines(done).keys() >= {"fine", "bad"}
    assert "good" not in lines(done)
    assert "cannot be read" in done.stdout


def test_where_there_is_no_run_that_is_said(tmp_path: Path, runs: Path) -> None:
    for arguments, says in (
        (("runs", tmp_path), "No run is recorded in"),
        (("runs", tmp_path / "gone"), "There is no folder"),
        (("runs", runs, "--best", "scor"), "No run has a metric 'scor'. Did you mean 'score'?"),
        (("blackbox", tmp_path), "has no black box"),
        (("blackbox", tmp_path / "gone"), "There is no folder"),
        (("blackbox", runs / "ended", "--earlier"), "has no earlier black box"),
    ):
        done = smt(*arguments)
        assert done.exit_code == 2
        assert says in done.stderr.replace("\n", " ")


# -- inspect ---------------------------------------------------------------------------------------


def test_inspect_tells_state_settings_and_epochs(runs: Path) -> None:
    done = smt("inspect", runs / "ended")
    assert done.exit_code == 0
    assert "state     ended, 2 epochs and 16 steps done" in done.stdout
    assert "max_epochs=2" in done.stdout
    assert "─ train ─" in done.stdout
    assert "checkpoint" in done.stdout


def test_inspect_tells_a_run_without_checkpoints(runs: Path) -> None:
    done = smt("inspect", runs / "sweep" / "paused")
    assert done.exit_code == 0
    assert "state     paused, 2 epochs and 20 steps done" in done.stdout
    assert "No checkpoint yet" in done.stdout


def test_inspect_ends_with_exit_code_1_if_the_journal_is_damaged(tmp_path: Path) -> None:
    trainer(checkpoints=Checkpoints(tmp_path), max_epochs=1).fit(Net(), batches(1))
    (tmp_path / "journal.sqlite").write_text("nothing " * 100)
    done = smt("inspect", tmp_path)
    assert done.exit_code == 1
    assert "cannot be read" in done.stdout
    assert "The run has ended, with" in done.stdout


# -- blackbox --------------------------------------------------------------------------------------


def test_blackbox_tells_the_last_transitions(runs: Path) -> None:
    done = smt("blackbox", runs / "ended", "-n", 3)
    rows = done.stdout.splitlines()
    assert [row.split()[-2:] for row in rows[1:4]] == [
        ["epoch_done", "fit.next_epoch"],
        ["epochs_done", "fit.fit_end"],
        ["fit_done", "(ended)"],
    ]
    assert re.match(r"Rank 0, process \d+ on .+: ended .+ ago, after fit\.fit_end\.", rows[4])


def test_blackbox_tells_of_a_run_that_was_killed_and_of_one_that_hangs(tmp_path: Path) -> None:
    assert train(tmp_path / "killed", "kill") == -9
    done = smt("blackbox", tmp_path / "killed")
    assert "happen (after fit.epoch.batch.batch_split); its last transition was" in done.stdout
    assert lines(smt("runs", tmp_path))["killed"][:3] == ["killed", "1", "12"]
    with training(tmp_path / "hangs", "hang") as process:
        wait_until((tmp_path / "hangs" / "reached-0").exists)
        done = smt("blackbox", tmp_path / "hangs")
        assert f"process {process.pid} on" in done.stdout
        assert "running, in fit.epoch.batch." in done.stdout


def test_blackbox_shows_ranks_side_by_side_and_where_they_part(tmp_path: Path) -> None:
    boxes = [
        RingWriter(tmp_path / f"blackbox-{rank}.ring", {"rank": rank, "pid": 1, "host": "away"})
        for rank in (0, 1)
    ]
    for rank, box in enumerate(boxes):
        for step, state in enumerate(["a", "b", "c", f"only {rank}", *"defghij"][: 11 - rank]):
            box.write(step, box.name(state), box.name("next"))
    done = smt("blackbox", tmp_path, "-n", 4)
    rows = [row.split() for row in done.stdout.splitlines()[:5]]
    assert rows[0] == ["rank", "0", "rank", "1"]
    assert [row[0] for row in rows[1:]] == ["3", "4", "5", "6"]
    parting = "They part at transition 4: rank 0: next to only 0; rank 1: next to only 1."
    assert parting in done.stdout
    assert done.stdout.count("that cannot be seen from this machine") == 2


def test_a_name_in_it_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    box = RingWriter(tmp_path / "blackbox-0.ring", {"rank": 0, "pid": 1, "host": "\x1b[2J"})
    box.write(1, box.name("[red]evil"), box.name("\x1b]0;title\x07"))
    done = smt("blackbox", tmp_path)
    assert "\x1b" not in done.stdout
    assert "\x07" not in done.stdout
    assert "[red]evil" in done.stdout


def test_reading_runs_and_black_boxes_does_not_wait_for_torch(runs: Path) -> None:
    for arguments in (["runs", runs], ["blackbox", runs / "ended"]):
        done = smt_that_tells_imports(*arguments)
        assert done.returncode == 0
        assert done.stderr.splitlines()[-1] == "False False"


def test_a_journal_that_is_being_made_is_no_damage(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "journal.sqlite").close()
    (tmp_path / "journal.sqlite").touch()
    assert lines(smt("runs", tmp_path))[str(tmp_path)][0] == "unknown"
