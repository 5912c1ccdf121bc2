"""`smt runs --where ... --sort ...` and `smt inspect`: runs by what they were set to."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from statemachine_trainer.cli import app
from tests.observe.recorded import Net, batches, trainer


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of other settings; one of them has no `depth`."""
    folder = tmp_path_factory.mktemp("runs")
    for name, hparams in {
        "a": {"depth": 2, "kind": "wide"},
        "b": {"depth": 10, "kind": "deep"},
        "c": {"kind": "wide"},
    }.items():
        trainer(run=folder / name, max_epochs=1, hparams=hparams).fit(Net(), batches(2), batches(1))
    return folder


def listed(*arguments: object) -> list[str]:
    """Return the names of the runs that are listed, in their order."""
    done = CliRunner().invoke(app, ["runs", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return [line.split()[0] for line in done.stdout.splitlines()[1:]]


@pytest.mark.parametrize(
    "where, wanted",
    [
        (["kind=wide"], {"a", "c"}),
        (["kind!=wide"], {"b"}),
        (["depth>=2"], {"a", "b"}),
        (["depth<10"], {"a"}),
        (["depth=2.0"], {"a"}),
        (["depth!=2"], {"b", "c"}),
        (["kind=wide", "depth=2"], {"a"}),
        (["lr=1e-1"], {"a", "b", "c"}),
        (["score<1000"], {"a", "b", "c"}),
    ],
)
def test_runs_are_chosen_by_what_they_were_set_to(
    where: list[str], wanted: set[str], runs: Path
) -> None:
    options = [part for one in where for part in ("--where", one)]
    assert set(listed(runs, *options)) == wanted


def test_runs_are_sorted_by_number_and_those_without_come_last(runs: Path) -> None:
    assert listed(runs, "--sort", "depth") == ["a", "b", "c"]
    assert listed(runs, "--sort", "depth", "--mode", "max") == ["b", "a", "c"]
    assert listed(runs, "--sort", "kind")[0] == "b"
    assert len(listed(runs, "--sort", "score")) == 3


def test_what_is_asked_for_has_a_column(runs: Path) -> None:
    done = CliRunner().invoke(app, ["runs", str(runs), "--where", "depth=2", "--show", "lr"])
    head, line = done.stdout.splitlines()
    assert head.split()[5:] == ["lr", "depth", "newest"]
    assert "  0.1000  2 " in line


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--where", "deph=2"], "No run has a metric or hyperparameter 'deph'"),
        (["--where", "depth"], "--where 'depth': say NAME=VALUE"),
        (["--sort", "scor"], "No run has a metric or hyperparameter 'scor'"),
        (["--where", "depth=3"], "None of the runs"),
    ],
)
def test_what_cannot_be_meant_is_told(arguments: list[str], message: str, runs: Path) -> None:
    done = CliRunner().invoke(app, ["runs", str(runs), *arguments])
    assert done.exit_code == 2
    assert message in done.output.replace("\n", " ")


def test_inspect_shows_what_a_run_was_set_to(runs: Path) -> None:
    done = CliRunner().invoke(app, ["inspect", str(runs / "a")])
    (line,) = [one for one in done.stdout.splitlines() if one.startswith("  hparams")]
    assert "depth=2, kind=wide, model=Net, optimizer=SGD, lr=0.1" in line
