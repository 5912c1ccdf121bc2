from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode

from statemachine_trainer.loops import TrainingLoop, log
from statemachine_trainer.machine.loop import Loop, place
from statemachine_trainer.observe import Progress
from statemachine_trainer.trainer import Trainer
from tests.observe.runs import BATCHES, Net, interrupted_in_terminal, screen_after, terminal

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def console_of_a_terminal() -> Console:
    """A console that takes a string for a terminal."""
    return Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=100)


def eager(console: Console, *, table: bool = True) -> Progress:
    """Progress that is redrawn whenever there is anything new."""
    return Progress(console, table=table, per_second=1e9, share=1.0)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def train(**settings: Any) -> None:
    Trainer(max_epochs=2, **settings).fit(Net(), BATCHES, BATCHES[:2])


def test_a_terminal_shows_bars_and_keeps_the_table() -> None:
    with terminal() as output:
        train()
    assert "epoch 1/2" in output.text
    assert "6/6" in output.text
    assert "validation" in output.text
    assert "score 0.2500" in output.text
    assert output.screen[1].split() == ["epoch", "val_loss", "loss", "score", "time"]
    assert [line.split()[0] for line in output.screen[2:]] == ["1", "2"]
    assert output.text.rindex(SHOW) > output.text.rindex(HIDE)


def test_what_is_not_a_terminal_sees_no_bar(capfd: pytest.CaptureFixture[str]) -> None:
    train()
    assert capfd.readouterr() == ("", "")


def test_colours_asked_for_by_a_build_server_do_not_make_a_file_a_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.setenv(variable, "1")
    train()
    assert capfd.readouterr() == ("", "")


def test_a_terminal_that_cannot_move_its_cursor_sees_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with terminal() as output:
        train()
    assert output.text == ""


def test_progress_can_be_switched_off() -> None:
    with terminal() as output:
        train(progress=False)
    assert output.text == ""


def test_what_hooks_print_stays_above_the_bar() -> None:
    trainer = Trainer(max_epochs=1)
    trainer.on("batch_end", lambda trainer: print("batch", trainer.context.batch_idx))
    with terminal() as output:
        trainer.fit(Net(), BATCHES)
    assert output.screen[:6] == [f"batch {i}" for i in range(6)]


@pytest.mark.parametrize("mistake", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_a_clean_terminal(mistake: type[BaseException]) -> None:
    def fail() -> None:
        raise mistake

    trainer = Trainer(max_epochs=1)
    trainer.on("batch_end", fail, every=3)
    with terminal() as output:
        with pytest.raises(mistake):
            trainer.fit(Net(), BATCHES)
        print("after")
    assert output.screen == ["after"]
    assert output.text.rindex(SHOW) > output.text.rindex(HIDE)
    assert [one.name for one in trainer.board.subscriptions] == ["batch_end"]


def test_ctrl_c_ends_a_program_with_a_clean_terminal() -> None:
    # The script says itself how it ended: Python exits by the signal only if nothing that runs at
    # its end has called `exec` with text.
    output, code = interrupted_in_terminal(
        """
        from tests.observe.runs import BATCHES, Net
        from statemachine_trainer.trainer import Trainer
        try:
            Trainer(max_epochs=1).fit(Net(), BATCHES * 100_000)
        except KeyboardInterrupt:
            print("interrupted")
            sys.exit(130)
        """,
        at="left",
    )
    assert code == 130, output
    assert "^C" in output
    screen = screen_after(output)
    assert "interrupted" in screen
    assert not any("━" in line for line in screen)
    assert output.rindex(SHOW) > output.rindex(HIDE)


def test_a_pause_closes_the_bar_and_going_on_opens_it_again() -> None:
    console = console_of_a_terminal()
    trainer = Trainer(max_epochs=2, progress=Progress(console))
    trainer.fit(Net(), BATCHES, until="epoch_end")
    assert written(console).endswith(SHOW) or written(console).rindex(SHOW) > written(
        console
    ).rindex(HIDE)
    assert not trainer.board.signal("batch_end").receivers
    before = len(written(console))
    trainer.run()
    assert "epoch 2/2" in written(console)[before:]
    assert [line.split()[0] for line in screen_after(written(console))[2:]] == ["1", "2"]


def test_single_steps_show_no_bar() -> None:
    console = console_of_a_terminal()
    trainer = Trainer(max_epochs=1, progress=Progress(console))
    trainer.start(Net(), BATCHES)
    for _ in range(5):
        trainer.step()
    assert written(console) == ""


def test_iterating_over_moments_shows_no_bar() -> None:
    console = console_of_a_terminal()
    trainer = Trainer(max_epochs=1, progress=Progress(console))
    assert len(list(trainer.moments(Net(), BATCHES))) > 6
    assert written(console) == ""


@pytest.mark.parametrize("shown", [True, False])
def test_it_listens_only_where_something_is_shown(shown: bool) -> None:
    heard = []
    trainer = Trainer(max_epochs=1, progress=Progress(console_of_a_terminal()) if shown else False)
    signal_of_batches = trainer.board.signal("batch_end")
    trainer.on("fit_end", lambda: heard.append(bool(signal_of_batches.receivers)))
    trainer.fit(Net(), BATCHES)
    assert heard == [shown]
    assert not signal_of_batches.receivers


def test_what_is_logged_in_a_hook_at_the_end_of_an_epoch_is_in_the_table() -> None:
    console = console_of_a_terminal()
    trainer = Trainer(max_epochs=1, progress=Progress(console))
    trainer.on("epoch_end", lambda: log("late", 7.0), priority=-100)
    trainer.fit(Net(), BATCHES)
    assert "late" in screen_after(written(console))[1].split()


def test_an_evaluation_called_by_a_hook_is_shown_by_the_same_bar() -> None:
    console = console_of_a_terminal()
    trainer = Trainer(max_epochs=1, progress=Progress(console))
    trainer.on("epoch_end", lambda trainer: trainer.test(trainer.model, BATCHES))
    trainer.fit(Net(), BATCHES)
    assert written(console).count(HIDE) == 1
    assert "test" in written(console)


@pytest.mark.parametrize("name", ["validate", "test"])
def test_an_evaluation_has_a_bar_over_all_its_loaders(name: str) -> None:
    console = console_of_a_terminal()
    run = getattr(Trainer(progress=eager(console)), name)
    run(Net(), {"a": BATCHES, "b": BATCHES})
    assert name[:4] in written(console)
    assert "12/12" in written(console)
    assert screen_after(written(console)) == [""]


def test_data_of_unknown_length_has_a_bar_without_an_end() -> None:
    console = console_of_a_terminal()
    trainer = Trainer(max_epochs=1, progress=eager(console, table=False))
    trainer.fit(Net(), lambda: (batch for batch in BATCHES))
    assert "  6  " in written(console).replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert screen_after(written(console)) == [""]


def test_steps_are_shown_where_they_are_the_limit() -> None:
    console = console_of_a_terminal()
    Trainer(max_steps=4, progress=eager(console)).fit(Net(), BATCHES)
    assert "epoch 1, step 4/4" in written(console)


class CountsReads(TorchDispatchMode):
    """Counts how often the value of a tensor is brought to Python."""

    reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class Quiet(Net):
    """Logs nothing."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.layer(batch[0]).square().mean()
        return loss


def reads_of_six_batches(progress: Progress) -> int:
    with CountsReads() as counting:  # type: ignore[no-untyped-call]
        Trainer(max_epochs=1, progress=progress).fit(Quiet(), BATCHES)
    return int(counting.reads)


def test_a_loss_is_read_only_where_the_bar_is_redrawn() -> None:
    assert reads_of_six_batches(eager(console_of_a_terminal())) == 6
    assert reads_of_six_batches(Progress(console_of_a_terminal(), per_second=1e-6)) == 0


def test_redrawing_takes_no_more_than_its_share_of_the_time() -> None:
    class Slow(io.StringIO):
        spent = 0.0

        def write(self, text: str) -> int:
            began = time.monotonic()
            while time.monotonic() < began + 0.01:
                pass
            self.spent += time.monotonic() - began
            return super().write(text)

    file = Slow()
    console = Console(file=file, force_terminal=True, force_interactive=True, width=100)
    progress = Progress(console, table=False, per_second=1e9, share=0.1)
    began = time.monotonic()
    Trainer(max_epochs=1, progress=progress).fit(Net(), BATCHES * 50)
    # What is drawn at the beginning and the end is not a matter of choice.
    assert file.spent < 0.15 * (time.monotonic() - began) + 0.2


class Bare(TrainingLoop):
    """A fit without epochs: two batches, by hand."""

    initial = "work"
    transitions = (["worked", "work", "work"],)
    outcomes = ("done",)
    left: int = 2

    def work(self) -> Literal["worked", "done"]:
        self.left -= 1
        return "worked" if self.left else "done"


def test_a_loop_of_ones_own_without_the_usual_states_runs_and_warns_of_nothing() -> None:
    console = console_of_a_terminal()
    trainer = Trainer(Bare(), progress=Progress(console))
    trainer.fit(Net(), BATCHES)
    assert screen_after(written(console)) == [""]


class Part(TrainingLoop):
    """A loop with a state whose name it shares with another loop."""

    initial = "batch_end"
    outcomes = ("part_done",)

    def batch_end(self) -> Literal["part_done"]:
        return "part_done"


class TwoParts(TrainingLoop):
    """Two loops of one kind."""

    initial = "one"
    transitions = (["part_done", "one", "two"],)
    outcomes = ("part_done",)
    one: Loop = place(Part)
    two: Loop = place(Part)


def test_a_name_that_two_states_share_is_no_obstacle() -> None:
    console = console_of_a_terminal()
    Trainer(TwoParts(), progress=Progress(console)).fit(Net(), BATCHES)
    assert written(console).count(HIDE) == 1


def test_a_terminal_that_goes_away_does_not_end_the_training() -> None:
    class Gone(io.StringIO):
        gone = False

        def write(self, text: str) -> int:
            if self.gone:
                raise OSError(5, "Input/output error")
            return super().write(text)

    file = Gone()
    console = Console(file=file, force_terminal=True, force_interactive=True, width=100)
    trainer = Trainer(max_epochs=2, progress=eager(console))
    trainer.on("batch_end", lambda: setattr(file, "gone", True))
    trainer.fit(Net(), BATCHES)
    assert trainer.epoch == 2


def taken_by(states: list[dict[str, Any]]) -> Callable[[Trainer], None]:
    return lambda trainer: states.append(trainer.state_dict())


def test_a_snapshot_is_the_same_with_and_without_progress() -> None:
    states = []
    for progress in (Progress(console_of_a_terminal()), False):
        trainer = Trainer(max_epochs=2, progress=progress)
        trainer.on("batch_end", lambda: None, every=4)
        trainer.on("fetch", lambda: None, every=2)
        taken: list[dict[str, Any]] = []
        trainer.on("epoch_end", taken_by(taken))
        trainer.fit(Net(), BATCHES)
        states.append(taken[0])
    assert states[0]["callbacks"] == states[1]["callbacks"] == []
    assert states[0]["machine"] == states[1]["machine"]
