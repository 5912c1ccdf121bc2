from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest
from typer.testing import CliRunner

from statemachine_trainer import __version__
from statemachine_trainer.cli import app
from tests.cli.sandbox import smt_that_tells_imports
from tests.processes import ROOT


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `smt` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "statemachine_trainer", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_the_command_runs_as_a_process() -> None:
    done = run("version")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"statemachine-trainer {__version__}" in done.stdout
    assert f"torch {metadata.version('torch')}" in done.stdout


def test_a_mistake_leaves_the_process_with_exit_code_2() -> None:
    done = run("graph", "no_such_file.py:loop")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("smt: There is no file no_such_file.py.")


def test_the_console_script_is_this_command() -> None:
    setup = (ROOT / "setup.cfg").read_text()
    assert "smt = statemachine_trainer.cli:main" in setup


@pytest.mark.parametrize(
    "arguments", [["--help"], ["demo", "--help"], ["version"], ["graph", "x.py:y"]]
)
def test_what_needs_no_torch_does_not_wait_for_it(arguments: list[str]) -> None:
    done = smt_that_tells_imports(*arguments)
    assert done.stderr.splitlines()[-1] == "False False"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_command(arguments: list[str]) -> None:
    output = CliRunner().invoke(app, arguments).output
    assert all(command in output for command in ("demo", "graph", "version"))


@pytest.mark.parametrize("command", ["demo", "graph", "version"])
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_a_misspelt_command_is_offered_the_right_one() -> None:
    result = CliRunner().invoke(app, ["graf"])
    assert result.exit_code == 2
    assert "graph" in result.output


def test_the_version_is_an_option_too() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"smt {__version__}\n")
