"""What the commands print in a terminal of 80 columns: the facts that matter, whole, and no line too long."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.cli import app
from statemachine_trainer.cli.columns import Column, lay_out
from statemachine_trainer.cli.inspection import inspect
from statemachine_trainer.cli.runs import Order, list_runs
from statemachine_trainer.snapshot import Best, Retention
from tests.observe.recorded import Net, batches, trainer

COMMANDS = [*get_command(app).commands]  # type: ignore[attr-defined]
LONG = "resnet50-imagenet-augmented-with-a-long-schedule-seed-3-learning-rate-0.1"


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)


def written(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    checkpoints = Checkpoints(folder / LONG, retention=Retention(best=Best("score")))
    trainer(checkpoints=checkpoints, max_epochs=2).fit(Net(), batches(), batches(2))
    trainer(run=folder / "short", max_epochs=1).fit(Net(), batches(1), batches(1))
    return folder


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("best", [None, "score"])
def test_runs_keep_whole_names_state_epochs_and_the_best_metric(
    runs: Path, width: int, best: str | None
) -> None:
    console = terminal(width)
    list_runs([runs], console, Order(best=best))
    lines = written(console)
    assert all(len(line) <= max(width, len(LONG)) for line in lines)
    facts = lines[lines.index(LONG) + 1] if LONG in lines else lines[-1]
    assert LONG in "\n".join(lines)
    assert facts.split()[:2] == ["ended", "2"] or facts.split()[1:3] == ["ended", "2"]
    assert " at " in facts  # the value, and the step at which it was measured


def test_inspect_keeps_state_best_metric_and_validation(runs: Path) -> None:
    console = terminal(80)
    assert inspect(runs / LONG, console)
    lines = written(console)
    assert any(line.startswith("  state     ended, 2 epochs") for line in lines)
    assert any(line.startswith("  best      score 0.") for line in lines)
    head = next(line for line in lines if line.startswith("epoch"))
    assert head.split()[:2] == ["epoch", "score"]
    checkpoints = [line for line in lines if line.startswith("00000")]
    assert all("score 0." in line and len(line) <= 80 for line in checkpoints)
    assert sum("(best)" in line for line in checkpoints) == 1


def test_a_path_is_never_cut(runs: Path) -> None:
    console = terminal(40)
    inspect(runs / LONG, console)
    assert str(runs / LONG) in "\n".join(written(console))


def test_columns_are_left_out_by_their_number_and_what_is_left_out_of_the_last_is_counted() -> None:
    columns = [
        Column("name", ["a", "b"]),
        Column("count", ["1", "20"], right=True),
        Column("seldom", ["x", "y"], spare=2),
        Column("often", ["v", "w"], spare=1),
    ]
    rest = [["first 1", "second 2", "third 3"], []]

    def drawn(width: int) -> list[str]:
        return [str(line) for line in lay_out(columns, "rest", rest, width=width)]

    assert drawn(38)[0].split() == ["name", "count", "often", "rest"]
    assert drawn(60)[0].split() == ["name", "count", "seldom", "often", "rest"]
    assert drawn(38)[1].endswith("first 1  (+2 more)")
    assert drawn(80)[1].endswith("first 1  second 2  third 3")
    assert drawn(10)[2:4] == ["a", "      1  first 1  (+2 more)"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_into_80_columns_and_names_no_type_of_a_library(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    assert "range>" not in result.output


def test_the_list_of_commands_has_a_whole_sentence_for_each() -> None:
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"})
    listed = result.output.partition("Commands:")[2].splitlines()[1:]
    assert [line.split()[0] for line in listed] == COMMANDS
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)
