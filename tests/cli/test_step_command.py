"""`smt step`: the debugger in the terminal, by a pipe and at a real terminal."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
from rich.console import Console
from typer.testing import CliRunner

from statemachine_trainer.cli import app
from statemachine_trainer.cli.terminal import Session
from tests.cli.sandbox import clean_imports
from tests.debugging.kit import started

ROOT = Path(__file__).resolve().parents[2]

TRAIN = """
import torch
import torch.nn.functional as F
from torch import nn

from statemachine_trainer import Trainer

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

def make_trainer():
    trainer = Trainer(max_epochs=2, device="cpu", progress=False)
    trainer.start(Net(), [torch.ones(4, 2)] * 3)
    return trainer

def make_endless():
    trainer = Trainer(max_epochs=10**9, device="cpu", progress=False)
    trainer.on("epoch_start", lambda: print("It trains."), every=10)
    trainer.start(Net(), [torch.ones(4, 2)] * 3)
    return trainer

def make_unstarted():
    return Trainer(max_epochs=2)

number = 3
"""

Talk = Callable[..., str]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(TRAIN))
    return path


def smt_step(target: str, lines: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "statemachine_trainer", "step", target],
        cwd=ROOT,
        input=lines,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def talk() -> Talk:
    """A session in this process: lines in, what was printed out."""
    console = Console(file=io.StringIO(), width=120, color_system=None, highlight=False)
    session = Session(started(), console)

    def say(*lines: str) -> str:
        assert isinstance(console.file, io.StringIO)
        console.file.seek(0)
        console.file.truncate()
        for line in lines:
            assert session.do(line)
        return console.file.getvalue()

    return say


# -- by a pipe -------------------------------------------------------------------------------------


def test_commands_come_from_a_pipe_and_the_end_of_it_ends_the_session(script: Path) -> None:
    done = smt_step(
        f"{script}:make_trainer",
        "step\nuntil backward\nprint loss > 0\nbreak batch_end if trainer.steps == 4\n"
        "continue\nrewind 3\ncontinue\ncontinue\n",
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "before fit.fit_start"
    assert "before fit.epoch.batch.optimizer.backward (cannot be written down here)" in lines
    assert lines[lines.index("(smt) print loss > 0") + 1] == "True"
    stops = [line for line in lines if line.startswith("  stopped at breakpoint 1")]
    assert stops == ["  stopped at breakpoint 1: batch_end if trainer.steps == 4"] * 2
    assert "ended with fit_done" in lines


def test_what_is_no_started_trainer_is_refused(script: Path) -> None:
    for name, message in {
        "make_unstarted": "was not started. Call `trainer.start(model, data)`",
        "number": "is a int. Name a function that builds model, data and a Trainer",
        "make_traine": "make_trainer",
    }.items():
        with clean_imports():
            done = CliRunner().invoke(app, ["step", f"{script}:{name}"], prog_name="smt")
        assert done.exit_code == 2
        assert message in done.stderr


# -- at a terminal ---------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_at_a_terminal_lines_are_remembered_and_interrupts_pause(
    script: Path, tmp_path: Path
) -> None:
    child = pexpect.spawn(
        sys.executable,
        ["-m", "statemachine_trainer", "step", f"{script}:make_endless"],
        cwd=str(ROOT),
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "dumb"},
        timeout=110,
        encoding="utf-8",
    )
    try:
        child.expect_exact("before fit.fit_start")
        child.expect_exact("(smt) ")
        child.sendline("until batch_end")
        child.expect_exact("before fit.epoch.batch.batch_end")
        child.expect_exact("(smt) ")
        child.sendline("continue")
        child.expect_exact("continue")
        child.expect_exact("It trains.")
        child.sendintr()
        child.expect("before fit[.a-z_]+")
        child.expect_exact("(smt) ")
        child.send("\x1b[A\x1b[A")  # two lines up in the history
        child.expect_exact("until batch_end")
        child.sendline("")
        child.expect_exact("before fit.epoch.batch.batch_end")
        child.expect_exact("(smt) ")
        child.sendintr()  # at the prompt: nothing happens
        child.expect_exact("(smt) ")
        child.sendline("quit")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
    finally:
        child.close(force=True)
    assert "until batch_end" in (tmp_path / "statemachine_trainer" / "step_history").read_text()


# -- what is said ----------------------------------------------------------------------------------


def test_step_makes_one_transition(talk: Talk) -> None:
    assert talk("step").startswith("before fit.next_epoch")


def test_next_goes_over_the_loops_inside(talk: Talk) -> None:
    talk("until fetch")
    assert "before fit.epoch.fetch" in talk("next")
    assert "epoch 1, step 2" in talk("next")
    talk("until batch_start")
    assert "before fit.epoch.batch.batch_split" in talk("next")
    assert "before fit.epoch.batch.batch_split" in talk("next")  # over the optimizer's loop


def test_out_leaves_the_loop(talk: Talk) -> None:
    talk("until backward")
    assert "before fit.epoch.batch.batch_split" in talk("out")
    assert "before fit.epoch.fetch" in talk("out")
    assert "before fit.next_epoch" in talk("out")
    assert "ended with fit_done" in talk("out")


def test_next_and_out_stop_at_breakpoints(talk: Talk) -> None:
    talk("until fetch", "break backward")
    assert "stopped at breakpoint 1: backward" in talk("next")
    talk("clear 1", "break optimizer_step")
    assert "stopped at breakpoint 2: optimizer_step" in talk("out")


def test_breakpoints_are_listed_and_removed(talk: Talk) -> None:
    assert "breakpoint 1: backward if t.loss > 100" in talk("break backward if t.loss > 100")
    assert "breakpoint 2: every state if t.steps == 2" in talk("break if t.steps == 2")
    assert "stopped at breakpoint 2" in talk("continue")
    assert "2: every state if t.steps == 2, met 1 times" in talk("break")
    talk("clear 1 2")
    assert "No breakpoints." in talk("break")
    assert "There is no breakpoint 7" in talk("clear 7")
    assert "Say the number" in talk("clear it")


def test_a_condition_that_cannot_be_evaluated_is_told_and_can_be_removed(talk: Talk) -> None:
    assert "is no expression" in talk("break backward if )")
    talk("break backward if nothing > 3")
    assert "NameError" in talk("continue")
    talk("clear 1")
    assert "before fit.epoch.batch.optimizer.optimizer_step" in talk("until optimizer_step")


def test_expressions_see_what_is_in_flight(talk: Talk) -> None:
    talk("until backward")
    assert talk("print batch[0].shape").strip() == "torch.Size([4, 4])"
    assert talk("print loss == context.loss.item() == trainer.loss").strip() == "True"
    assert talk("print [*model.state_dict()][0]").strip() == "'layers.0.weight'"
    assert "ZeroDivisionError" in talk("print 1 / 0")
    assert talk("print list(range(10**4))").rstrip().endswith("...")


def test_where_tells_the_same_as_info_and_words_of_other_debuggers_are_known(talk: Talk) -> None:
    talk("until backward")
    assert talk("where") == talk("info") == talk("w") == talk("bt")
    assert "def backward" in talk("source")
    assert talk("pp loss > 0").strip() == "True"
    talk("break batch_end")
    assert "No breakpoints." in talk("delete 1", "break")
    assert "before fit.epoch.batch.batch_split" in talk("finish")
    assert "ended with fit_done" in talk("cont")


def test_a_goal_that_never_comes_is_told(talk: Talk) -> None:
    assert "Nothing is called 'validaton'. Did you mean 'validation'" in talk("until validaton")
    assert "until 'test' is never met: that is 'test', and only 'fit' can be stepped." in talk(
        "until test"
    )
    told = talk("until fetch:timeout")
    assert "ended with fit_done" in told
    assert told.rstrip().endswith("fetch:timeout did not come before the end.")


def test_a_goal_that_comes_with_the_last_transition_has_come(talk: Talk) -> None:
    told = talk("until fit_end:exit")
    assert "ended with fit_done" in told
    assert "did not come" not in told


def test_a_goal_is_not_missed_where_the_run_stops_before(talk: Talk) -> None:
    told = talk("break backward", "until fetch:timeout")
    assert "stopped at breakpoint 1" in told
    assert "did not come" not in told


def test_a_breakpoint_that_was_never_met_is_told_at_the_end(talk: Talk) -> None:
    told = talk("break fetch:timeout", "continue")
    assert "Breakpoint 1 was never met: fetch:timeout." in told
    assert "NotStarted" in talk("continue")


def test_several_steps_are_made_at_once_and_end_at_a_breakpoint(talk: Talk) -> None:
    talk("until batch_start")
    assert "before fit.epoch.batch.optimizer.backward" in talk("step 3")
    assert "stopped at breakpoint 1" in talk("break batch_end", "step 1000")
    assert "say how many transitions" in talk("step far")
    assert "ended with fit_done" in talk("clear 1", "step 100000")


def test_what_stands_after_a_command_that_takes_nothing_is_told(talk: Talk) -> None:
    for name in ("next", "out", "continue", "where", "list", "quit"):
        assert f"{name} takes nothing after it: 'far'. Try help {name}." in talk(f"{name} far")
    assert "Say what to print: print loss. Known: " in talk("print")


def test_help_is_given_for_one_command_and_a_wrong_word_gets_a_hint(talk: Talk) -> None:
    assert talk("help rewind").strip().startswith("rewind [N]")
    assert [line.split("  ")[0] for line in talk("help break").splitlines()] == [
        "break",
        "break NAME [if EXPR]",
    ]
    assert talk("?") == talk("help")
    assert "There is no command 'contniue'. Did you mean 'continue'?" in talk("contniue")
    assert "To see a value: print trainer.epoch." in talk("trainer.epoch")
    assert "help lists them" in talk("jump")


def test_info_tells_where_the_run_stands_and_what_may_come_next(talk: Talk) -> None:
    talk("until fetch", "post stop")
    told = talk("info")
    assert told.startswith("before fit.epoch.fetch")
    assert "on fetched -> fit.epoch.batch.batch_start" in told
    assert "posted: stop" in told
    assert "end_epoch" in told.partition("may be posted here:")[2]


def test_rewind_goes_back_and_says_how_far(talk: Talk) -> None:
    talk("until optimizer_step")
    told = talk("rewind")
    assert "went back 2 transitions: before fit.epoch.batch.optimizer.forward" in told
    assert "There is no boundary 100 transitions back" in talk("rewind 100")
    assert "say how many transitions" in talk("rewind far")


def test_the_graph_marks_the_state_about_to_run(talk: Talk) -> None:
    talk("until backward")
    assert "backward [running] [transient]" in talk("graph")
    assert talk("graph optimizer").startswith("optimizer (OptimizerLoop)")


def test_list_shows_the_source_of_the_state(talk: Talk) -> None:
    talk("until batch_start")
    assert "def batch_start(self)" in talk("list")


def test_list_crops_no_line_where_there_is_no_terminal() -> None:
    console = Console(file=io.StringIO(), width=20, color_system=None, highlight=False)
    Session(started(), console).do("list")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().count('"""') == 2


def test_commands_may_be_cut_short_and_an_empty_line_repeats(talk: Talk) -> None:
    talk("u fetch")
    assert "before fit.epoch.batch.batch_start" in talk("s")
    assert "before fit.epoch.batch.batch_split" in talk("")
    assert "rewind [N]" in talk("h")
    assert "There is no command 'jump'" in talk("jump")


def test_quit_ends_the_session() -> None:
    session = Session(started(), Console(file=io.StringIO()), remember=0)
    assert not session.do("q")
    assert not session.do("quit")


def test_an_error_of_the_training_is_shown_and_the_run_can_be_gone_back_in() -> None:
    trainer = started()
    console = Console(file=io.StringIO(), width=120, color_system=None)
    session = Session(trainer, console)

    def fail() -> None:
        raise RuntimeError("out of luck")

    failing = trainer.on("validation_step", fail)
    session.do("continue")
    assert isinstance(console.file, io.StringIO)
    assert "RuntimeError: out of luck" in console.file.getvalue()
    failing.cancel()
    session.do("rewind 2")
    session.do("continue")
    assert trainer.driver.outcome == "fit_done"
