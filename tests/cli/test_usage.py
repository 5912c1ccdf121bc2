"""Mistakes on the command line are told in one style, without the words of the libraries that find them."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from statemachine_trainer.cli import app

TRAIN = '''
from dataclasses import dataclass
from typing import Literal


@dataclass
class Options:
    rate: float = 0.1


def main(lr: float, kind: Literal["a", "b"] = "a", options: Options = Options(), n: int = 1) -> None:
    """Train."""
'''
WORDS = ("Parser key", "class '", "Input should", "Value error", "typing.", "usage:", "Usage:", "╭")


def told(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert not any(word in result.stderr for word in WORDS)
    assert result.stderr.count("\n") == 1
    return result.stderr.rstrip("\n")


@pytest.mark.parametrize(
    "line, text",
    [
        (
            "inspect",
            "smt: inspect needs RUN: A run, or one checkpoint of it. See: smt inspect --help",
        ),
        ("runs --bets loss", "smt: runs has no option --bets. Did you mean '--best'"),
        ("graf", "smt: There is no command 'graf'. Did you mean 'graph'? See: smt --help"),
        ("--nothing", "smt: There is no option --nothing."),
        ("graph --format bmp", "smt: --format: 'bmp' will not do. Use one of mermaid, svg, png"),
        ("runs --mode most", "smt: --mode: 'most' will not do. Use one of min, max."),
        ("graph --depth deep", "smt: --depth: Use a whole number. See: smt graph --help"),
        ("graph --pixels-per-inch x", "smt: --pixels-per-inch: Use a number."),
        ("demo --epochs 0", "smt: --epochs: Use a number of at least 1."),
        ("watch run --port 70000", "smt: --port: Use a number of at most 65535."),
        ("inspect a b", "smt: inspect takes no further argument 'b'. See: smt inspect --help"),
        ("runs --best", "smt: --best needs a value."),
        ("graph --no-legend=yes", "smt: --no-legend takes no value."),
        ("inspect gone", "smt: There is no checkpoint at "),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(line: str, text: str) -> None:
    assert told(*line.split()).startswith(text)


@pytest.mark.parametrize(
    "options, text",
    [
        ("", "train.py:main needs --lr."),
        ("--lr much", "--lr: 'much' will not do. Use a number."),
        ("--lr 1 --n 1.5", "--n: '1.5' will not do. Use a whole number."),
        ("--lr 1 --kind c", "--kind: 'c' will not do. Use one of a, b."),
        ("--lr 1 --options.rate fast", "--options.rate: 'fast' will not do. Use a number."),
        ("--lr 1 --foo", "train.py:main has no parameter for --foo."),
        ("--config gone.yaml", "--config: There is no file "),
        ("--config odd.yaml", "train.py:main has no parameter 'rate'."),
    ],
)
def test_a_mistake_in_the_options_of_a_function_is_told_likewise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, text: str
) -> None:
    pytest.importorskip("jsonargparse")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "odd.yaml").write_text("rate: 1\n")
    said = told("train", "train.py:main", *options.split())
    assert said.startswith(f"smt: {text}")
    assert said.endswith("See: smt train train.py:main --help")
