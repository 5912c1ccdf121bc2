"""Without a terminal progress is plain lines, written through `logging`."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from statemachine_trainer.loops import log
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.observe import Progress
from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.trainer import Trainer
from tests.observe.runs import BATCHES, Net
from tests.processes import ROOT

LOGGER = "statemachine_trainer.progress"


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name == LOGGER]


def train(progress: Progress | bool = True, **settings: Any) -> None:
    Trainer(max_epochs=2, progress=progress, **settings).fit(Net(), BATCHES, BATCHES[:2])


def test_each_epoch_is_a_line_with_its_metrics(caplog: pytest.LogCaptureFixture) -> None:
    train()
    first, second = (line.split() for line in lines_of(caplog))
    assert first[:5] == ["epoch", "1:", "step", "6", "val_loss"]
    assert [*first[4:10:2]] == ["val_loss", "loss", "score"]
    assert second[:4] == ["epoch", "2:", "step", "12"]


def test_a_long_epoch_and_a_long_evaluation_have_lines_within(
    caplog: pytest.LogCaptureFixture,
) -> None:
    train(Progress(minutes=1e-9), sanity_batches=0)
    lines = lines_of(caplog)
    assert any(line.startswith("epoch 1/2: batch 3/6  ") for line in lines)
    assert any(line.startswith("validation: batch 1/2") for line in lines)
    assert sum(line.startswith("epoch 1: step 6") for line in lines) == 1


def test_where_nobody_has_set_up_logging_they_go_to_standard_output() -> None:
    script = (
        "from tests.observe.runs import BATCHES, Net\n"
        "from statemachine_trainer.trainer import Trainer\n"
        "Trainer(max_epochs=2).fit(Net(), BATCHES)\n"
        "import logging\n"
        "logging.getLogger('statemachine_trainer.progress').info('not to be seen')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[:4] for line in done.stdout.splitlines()] == [
        ["epoch", "1:", "step", "6"],
        ["epoch", "2:", "step", "12"],
    ]
    assert done.stderr == ""


def test_an_output_that_goes_away_does_not_end_the_training() -> None:
    script = (
        "import sys\n"
        "from tests.observe.runs import BATCHES, Net\n"
        "from statemachine_trainer.trainer import Trainer\n"
        "sys.stdout.close()\n"
        "Trainer(max_epochs=2).fit(Net(), BATCHES)\n"
        "print('done', file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, "done\n")


def test_a_level_that_was_chosen_stays(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.WARNING)
    try:
        train()
    finally:
        level, chosen = logger.level, logging.WARNING
        logger.setLevel(logging.NOTSET)
    assert lines_of(caplog) == []
    assert level == chosen


def test_afterwards_logging_is_as_it_was() -> None:
    train()
    logger = logging.getLogger(LOGGER)
    assert (logger.level, logger.handlers) == (logging.NOTSET, [])


@pytest.mark.parametrize("progress", [False, Progress(minutes=None)])
def test_they_can_be_switched_off(
    progress: Progress | bool, caplog: pytest.LogCaptureFixture
) -> None:
    train(progress)
    assert lines_of(caplog) == []


def test_of_several_ranks_the_first_one_writes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    Trainer(progress=True).validate(Net(), BATCHES)
    assert lines_of(caplog) == []


def test_a_resumed_run_goes_on_with_its_next_epoch(caplog: pytest.LogCaptureFixture) -> None:
    first = Trainer(max_epochs=2)
    first.fit(Net(), BATCHES, until="next_epoch")
    first.run(until="next_epoch")
    state = first.state_dict()
    caplog.clear()
    later = Trainer(max_epochs=2)
    later.start(Net(), BATCHES)
    later.load_state_dict(state)
    later.run()
    assert [line[:8] for line in lines_of(caplog)] == ["epoch 2:"]


def start_with_lines() -> Trainer:
    trainer = Trainer(max_epochs=2, progress=Progress(minutes=1e-9))
    trainer.on("epoch_end", lambda: log("late", 1.0))
    trainer.start(Net(), BATCHES[:2], BATCHES[:1])
    return trainer


def test_they_leave_no_trace_in_the_run() -> None:
    assert_resumable(start_with_lines, exhaustive=True, fresh_process=False)


@pytest.mark.parametrize("wrong", [0, -1.0, "5min", True])
def test_minutes_are_a_positive_number(wrong: Any) -> None:
    with pytest.raises(SettingError, match=r"minutes=.*use a positive number"):
        Progress(minutes=wrong)


def test_a_resumed_fit_says_where_it_goes_on_and_one_that_has_ended_that_nothing_is_left(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def run(epochs: int) -> list[str]:
        caplog.clear()
        trainer = Trainer(max_epochs=epochs, checkpoints=tmp_path)
        trainer.fit(Net(), BATCHES, resume="auto")
        return lines_of(caplog)

    assert [line.split()[0] for line in run(1)] == ["epoch"]
    (ended,) = run(1)
    assert ended.startswith(f"nothing is left to do: the fit of {tmp_path}/00")
    assert ended.endswith(" has ended (1 epoch, step 6)")
    first, second = run(2)
    assert first.startswith(f"goes on from {tmp_path}/00")
    assert first.endswith(" (1 epoch, step 6)")
    assert second.startswith("epoch 2: step 12")


def test_it_says_so_in_a_terminal_and_not_where_progress_is_off(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, force_interactive=True, width=100)
    for progress in (Progress(console), Progress(console), False):
        Trainer(max_epochs=1, checkpoints=tmp_path, progress=progress).fit(
            Net(), BATCHES, resume="auto"
        )
    assert file.getvalue().count("nothing is left to do") == 1
    assert capsys.readouterr().out == ""
