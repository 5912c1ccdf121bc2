from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from statemachine_trainer.cli import app
from statemachine_trainer.graph.graph import graph_of
from statemachine_trainer.loops import BatchLoop
from statemachine_trainer.trainer import Trainer
from tests.cli.sandbox import clean_imports

USERS_FILE = """
    from typing import Literal
    from statemachine_trainer.loops import EpochLoop, FitLoop
    from statemachine_trainer.machine import Loop
    from statemachine_trainer.trainer import Trainer

    print("imported")

    class TwoStepLoop(Loop):
        initial = "first"
        transitions = [["done", "first", "second"]]
        outcomes = ["finished"]
        def first(self) -> Literal["done"]: ...
        def second(self) -> Literal["finished"]: ...

    class Holder:
        loop = TwoStepLoop()

    class Broken(Loop):
        initial = "first"
        outcomes = ["finished"]
        def first(self) -> Literal["done", "finished"]: ...

    loop = TwoStepLoop()
    trainer = Trainer(max_epochs=1)

    def make_trainer(epochs=3): return Trainer(FitLoop(max_epochs=epochs))
    def needs(argument): ...
    def fails(): raise ValueError("what went wrong")
    number = 3
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(textwrap.dedent(USERS_FILE))
    with clean_imports():
        yield


def smt(*arguments: str, code: int = 0) -> str:
    """Run `smt graph`; return what it wrote: the graph, or the mistake."""
    result = CliRunner().invoke(app, ["graph", *arguments])
    assert result.exit_code == code, result.output
    return result.stderr.removeprefix("imported\n") if code else result.stdout


def test_without_a_name_it_prints_the_default_loop() -> None:
    assert smt() == Trainer().graph().to_mermaid()


@pytest.mark.parametrize("name", ["TwoStepLoop", "loop", "Holder.loop"])
def test_a_loop_class_and_a_loop_are_drawn_alone(name: str) -> None:
    written = smt(f"train.py:{name}", "--format", "text")
    assert written.splitlines()[0] == "two_step (TwoStepLoop): finished -> end"


@pytest.mark.parametrize("name", ["trainer", "make_trainer", "Trainer"])
def test_a_trainer_or_what_makes_one_is_drawn_with_its_loop(name: str) -> None:
    assert smt(f"train.py:{name}") == Trainer(max_epochs=1).graph().to_mermaid()


@pytest.mark.parametrize("place", ["train", "./train.py", "train.py"])
def test_a_file_is_named_by_path_or_as_a_module(place: str) -> None:
    assert "TwoStepLoop" in smt(f"{place}:loop")


def test_an_absolute_path_from_elsewhere_finds_what_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    Path("uses.py").write_text("from train import loop\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "TwoStepLoop" in smt(f"{tmp_path / 'uses.py'}:loop")


def test_a_loop_of_the_package_that_is_no_root_is_drawn() -> None:
    assert (
        smt("statemachine_trainer.loops:BatchLoop") == graph_of(BatchLoop(), "batch").to_mermaid()
    )


def test_json_is_data_and_nothing_else() -> None:
    data = json.loads(smt("train.py:loop", "--format", "json"))
    assert [child["name"] for child in data["root"]["children"]] == ["first", "second"]


def test_depth_closes_the_loops_inside() -> None:
    written = smt("--depth", "1", "--format", "text")
    assert "epoch (EpochLoop)" in written
    assert "batch" not in written


def test_a_graph_can_be_written_to_a_file(tmp_path: Path) -> None:
    assert smt("train.py:loop", "--output", "graph.mmd") == ""
    assert Path("graph.mmd").read_text() == smt("train.py:loop")


def test_what_the_file_prints_is_kept_out_of_the_graph() -> None:
    assert "imported" not in smt("train.py:loop")


@pytest.mark.parametrize(
    "target, says",
    [
        ("trian.py:loop", "There is no file trian.py. Did you mean 'train.py'?"),
        (
            "trian:loop",
            "There is no module 'trian' here or among the installed packages. Did you mean",
        ),
        ("not.a.module:loop", "There is no module 'not.a.module'"),
        ("train.py:lop", "train.py has no 'lop'. Did you mean 'loop'"),
        ("train.py:Holder.lop", "train.py:Holder has no 'lop'. Did you mean 'loop'"),
        (
            "train.py",
            "Say which object of train.py is meant: train.py:OBJECT. Known: Broken, TwoStep",
        ),
        ("train.py:", "Say which object of train.py is meant"),
        ("train.py:needs", "train.py:needs(argument) needs arguments"),
        ("train.py:fails", "train.py:fails raised ValueError: what went wrong"),
        ("train.py:number", "train.py:number is a int, and has no graph"),
        ("train.py:Broken", "'done'"),
        ("notes.txt:loop", "There is no module 'notes.txt'"),
    ],
)
def test_a_mistake_is_one_line_that_says_the_way_out(target: str, says: str) -> None:
    written = smt(target, code=2)
    assert written.startswith("smt: ")
    assert says in written
    assert "Traceback" not in written


@pytest.mark.parametrize(
    "mistake, says",
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_file_that_fails_is_named_with_the_line(mistake: str, says: str) -> None:
    Path("fails.py").write_text(f"import os\n{mistake}\n")
    written = smt("fails.py:loop", code=2)
    assert written.startswith(f"smt: fails.py raised {says}")
    assert "line 2" in written


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in smt("train.py:fails", "--debug", code=2)


def test_a_file_that_cannot_be_written_is_a_mistake_too() -> None:
    assert "no/such/folder/graph.mmd" in smt("--output", "no/such/folder/graph.mmd", code=2)
