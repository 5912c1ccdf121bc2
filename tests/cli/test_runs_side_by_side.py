"""`smt runs --compare A B`: runs side by side, with what they were set to otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from statemachine_trainer.cli import app
from statemachine_trainer.cli.comparison import side_by_side
from statemachine_trainer.observe.comparison import Compared
from tests.observe.recorded import Net, batches, trainer


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, hparams in {
        "a": {"depth": 2, "kind": "wide"},
        "b": {"depth": 10, "kind": "wide", "rate": 0.10000001},
    }.items():
        trainer(run=folder / name, max_epochs=1, hparams=hparams).fit(Net(), batches(2), batches(1))
    return folder


def compared(*arguments: object) -> dict[str, list[str]]:
    """Return the cells of each row by its head."""
    done = CliRunner().invoke(app, ["runs", "--compare", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line}


def test_a_column_for_each_run_and_a_row_for_what_differs(runs: Path) -> None:
    rows = compared(runs)
    assert sorted(rows["run"]) == ["a", "b"]
    place = {name: number for number, name in enumerate(rows["run"])}
    assert [rows["depth"][place[name]] for name in "ab"] == ["2", "10"]
    assert [rows["rate"][place[name]] for name in "ab"] == ["-", "0.10000001"]
    assert "kind" not in rows, "it is the same in both"
    assert rows["state"] == ["ended", "ended"]
    assert rows["steps"] == ["2", "2"]
    assert len(rows["loss"]) == len(rows["score"]) == 2


def test_runs_are_named_one_by_one_and_none_comes_twice(runs: Path) -> None:
    assert compared(runs / "b", runs / "a", runs / "b", "--sort", "depth")["depth"] == ["2", "10"]


def test_what_is_no_run_is_told_by_name(runs: Path) -> None:
    done = CliRunner().invoke(app, ["runs", "--compare", str(runs / "a"), str(runs / "c")])
    assert done.exit_code == 2
    assert "There is no folder" in done.output


def test_runs_that_do_not_fit_follow_below_so_that_none_is_left_out() -> None:
    many = [
        Compared(f"run-{n}", {"state": "ended"}, {"lr": n / 7}, {"loss": 1 / (n + 1)})
        for n in range(9)
    ]
    lines = list(side_by_side(many, 50))
    assert max(map(len, lines)) <= 50
    assert all(any(one.name in line for line in lines) for one in many)


def test_a_single_digit_that_differs_is_shown() -> None:
    lines = list(
        side_by_side([Compared("a", {}, {"lr": 0.1}), Compared("b", {}, {"lr": 0.10000000001})], 80)
    )
    assert lines[1].split() == ["lr", "0.1", "0.10000000001"]


@pytest.mark.parametrize(
    "runs",
    [
        [Compared("only")],
        [Compared("only", {}, {"a": 1})],
        [Compared("a" * 200), Compared("b")],
        [
            Compared("a", {}, {"x": float("nan")}, {"m": float("nan")}),
            Compared("b", {}, {"x": None}),
        ],
        [Compared("\x1b[31mred", {}, {"\x1b]0;x": "\x07"}, {"\x1b": 1.0}), Compared("b")],
    ],
)
def test_anything_that_a_folder_may_hold_is_laid_out(runs: list[Compared]) -> None:
    text = "\n".join(side_by_side(runs, 40))
    assert text.startswith("run")
    assert "\x1b" not in text
