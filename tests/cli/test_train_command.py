"""`smt train FILE:FUNCTION` makes a command of a function; a run keeps its options and goes on with them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from statemachine_trainer import Run
from statemachine_trainer.cli import app
from statemachine_trainer.run_record import configuration

pytest.importorskip("jsonargparse")

SCRIPT = '''
import os
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from statemachine_trainer import Trainer


@dataclass
class Sizes:
    hidden: int = 4
    layers: list[int] = field(default_factory=lambda: [1])


def main(
    lr: float = 0.1,
    sizes: Sizes = Sizes(),
    kind: Literal["SGD", "Adam"] = "SGD",
    model: nn.Module | None = None,
    epochs: int = 2,
    folder: str = "run",
):
    """Train a small net.

    Args:
        lr: The learning rate.
    """
    torch.manual_seed(0)
    assert isinstance(sizes, Sizes)
    net = model or nn.Sequential(nn.Linear(2, sizes.hidden), nn.Linear(sizes.hidden, 1))
    data = [(torch.randn(4, 2), torch.randn(4, 1)) for _ in range(3)]
    trainer = Trainer(max_epochs=epochs, checkpoints=folder, progress=False, device="cpu")
    if os.environ.get("STOPS") and not os.environ.get("SMT_RESUME"):
        trainer.on("batch_end", lambda: os._exit(7), when=lambda trainer: trainer.steps == 4)
    trainer.fit(
        net, data, loss=nn.functional.mse_loss,
        optimizer=lambda parameters: getattr(torch.optim, kind)(parameters, lr=lr),
    )
    print("LOSS", trainer.metrics["loss"])


def taken(config: str = ""): ...
class Made: ...
def fails(): raise ValueError("on purpose")
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    name = f"net{abs(hash(tmp_path))}"  # a module of its own for each test
    (tmp_path / f"{name}.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def smt(here: Path, function: str, *options: str) -> Result:
    (script,) = here.glob("net*.py")
    result = CliRunner().invoke(app, ["train", f"{script.name}:{function}", *options])
    sys.modules.pop(script.stem, None)
    assert configuration() is None
    return result


def trained(here: Path, *options: str) -> dict[str, Any]:
    result = smt(here, "main", *options)
    assert result.exit_code == 0, result.output
    return Run(here / "run").hyperparameters()


def test_parameters_are_options_with_their_types(here: Path) -> None:
    found = trained(
        here, "--lr", "0.3", "--sizes.hidden=8", "--kind", "Adam", "--sizes.layers=[2,3]"
    )
    assert (found["lr"], found["sizes.hidden"], found["kind"]) == (0.3, 8, "Adam")
    text = (here / "run" / "config.yaml").read_text()
    for line in ("lr: 0.3", "  hidden: 8", "epochs: 2", "model: null"):
        assert line in text.splitlines()


def test_a_file_gives_values_and_later_options_replace_them(here: Path) -> None:
    (here / "mine.yaml").write_text("lr: 0.5\nsizes:\n  hidden: 3\n")
    found = trained(here, "--config", "mine.yaml", "--lr=0.25")
    assert (found["lr"], found["sizes.hidden"], found["epochs"]) == (0.25, 3, 2)


def test_a_class_is_named_and_made(here: Path) -> None:
    found = trained(
        here, "--model=torch.nn.Linear", "--model.in_features=2", "--model.out_features=1"
    )
    assert found["model.class_path"] == "torch.nn.Linear"
    assert found["model.init_args.in_features"] == 2


def test_the_configuration_is_printed_and_read_again(here: Path) -> None:
    printed = smt(here, "main", "--print-config", "--lr=0.5")
    assert printed.exit_code == 0
    assert not (here / "run").exists()
    (here / "again.yaml").write_text(printed.stdout)
    assert trained(here, "--config=again.yaml")["lr"] == 0.5


def test_help_lists_the_options(here: Path) -> None:
    result = smt(here, "main", "--help")
    assert result.exit_code == 0
    assert "Train a small net." in result.stdout
    assert "The learning rate." in result.stdout
    assert "FILE:FUNCTION" in CliRunner().invoke(app, ["train", "--help"]).stdout


@pytest.mark.parametrize(
    "function, options, said",
    [
        ("main", ["--lr", "much"], "lr"),
        ("main", ["--rl", "0.1"], "--rl"),
        ("main", ["--kind", "SDG"], "kind"),
        ("main", ["--sizes.hiden=3"], "hiden"),
        ("main", ["--config", "nowhere.yaml"], "nowhere.yaml"),
        ("main", ["0.1"], "0.1"),
        ("mian", [], "main"),
        ("taken", [], "another name"),
        ("Made", [], "Name a function"),
    ],
)
def test_mistakes_are_told(here: Path, function: str, options: list[str], said: str) -> None:
    result = smt(here, function, *options)
    assert result.exit_code == 2
    assert said in result.output
    assert not (here / "run").exists()


def test_a_mistake_of_the_function_is_its_own(here: Path) -> None:
    result = smt(here, "fails")
    assert isinstance(result.exception, ValueError)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_with_its_options(tmp_path: Path) -> None:
    def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "statemachine_trainer", *command],
            cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True,
        )  # fmt: skip

    (tmp_path / "net.py").write_text(SCRIPT)
    (tmp_path / "mine.yaml").write_text("lr: 0.01\n")
    whole = run("train", "net.py:main", "--config=mine.yaml", "--folder=whole", "--sizes.hidden=3")
    options = ("--config=mine.yaml", "--sizes.hidden=3")
    assert run("train", "net.py:main", *options, STOPS="1").returncode == 7
    (tmp_path / "mine.yaml").write_text("lr: 100.0\n")
    went_on = run("resume", "run", STOPS="1")
    assert went_on.returncode == 0, went_on.stderr
    assert "SettingsChanged" not in went_on.stderr
    assert went_on.stdout == whole.stdout
    assert "LOSS" in whole.stdout
