"""What `smt inspect` and `smt resume` make of the folder of a run."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from statemachine_trainer import run_record
from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.cli import app
from statemachine_trainer.cli.inspection import inspect
from statemachine_trainer.snapshot import Damaged, NotACheckpoint, Retention, Store
from tests.callbacks.kit import Net, batches, trainer_with

ALL = Retention(last=None)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    mine = Checkpoints(folder, every=3, retention=ALL)
    trainer = trainer_with(mine, validate_every=4)
    trainer.fit(Net(values=[0.5, 0.25]), batches(), batches(1), until="epoch_end")
    return folder


def printed(path: Path, *, whole: bool = False, width: int = 160) -> str:
    file = io.StringIO()
    good = inspect(path, Console(file=file, width=width, highlight=False), whole=whole)
    return file.getvalue() + ("" if good else "(damaged)")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# -- inspect ---------------------------------------------------------------------------------------


def test_a_run_is_shown_with_its_history_its_checkpoints_and_what_would_be_resumed(
    run: Path,
) -> None:
    text = printed(run)
    assert "started" in text
    assert "000001-step-00000003" in text
    newest = "The run goes on from 000002-step-00000006: before fit.epoch.batch.batch_start"
    assert f"{newest}, epoch 1, 6 batches into it." in text


def test_between_two_epochs_those_done_are_told_and_no_batches(tmp_path: Path) -> None:
    trainer = trainer_with(Checkpoints(tmp_path, every=100))
    trainer.fit(Net(), batches(), batches(1), until="next_epoch")
    trainer.run(until="next_epoch")
    trainer.checkpoint()
    text = printed(tmp_path)
    assert "before fit.next_epoch, 1 epoch done." in text
    assert "batches into it" not in text


def test_a_checkpoint_is_shown_with_its_metrics_optimizers_and_weights(run: Path) -> None:
    trainer = trainer_with(Checkpoints(run, every=3, retention=ALL), validate_every=4)
    trainer.fit(Net(values=[0.5, 0.25]), batches(), batches(1), resume="auto")
    text = printed(next(run.glob("*-step-00000008")))
    assert "the fit has ended" in text
    assert "loss 3.5" in text
    assert "SGD, learning rate 0.1, 8 steps" in text
    assert "layer.weight" in text
    assert "2 x 4" in text
    assert "2 tensors, 10 numbers, 40 B" in text


def test_a_run_that_has_ended_is_said_to_have_ended(run: Path) -> None:
    trainer = trainer_with(Checkpoints(run, every=3, retention=ALL), validate_every=4)
    trainer.fit(Net(values=[0.5, 0.25]), batches(), batches(1), resume="auto")
    text = printed(run)
    assert "The run has ended, with 000003-step-" in text
    assert "goes on from 0" not in text


def test_damage_is_shown_and_so_is_the_one_that_would_be_taken_instead(run: Path) -> None:
    flip(run / "000002-step-00000006" / "state.json")
    text = printed(run)
    assert "Damaged: 000002-step-00000006" in text
    assert "its checksum is" in text
    assert "The run goes on from 000001-step-00000003" in text
    assert text.endswith("(damaged)")


def test_only_check_reads_every_byte_of_older_ones(run: Path) -> None:
    flip(run / "000001-step-00000003" / "tensors.safetensors")
    assert "Damaged" not in printed(run)
    assert "Damaged: 000001-step-00000003" in printed(run, whole=True)


def test_a_run_of_which_nothing_is_whole_is_an_error(run: Path) -> None:
    for path in run.glob("0*"):
        flip(path / "manifest.json")
    with pytest.raises(Damaged, match="no checkpoint in it is whole"):
        printed(run)


def test_a_run_without_a_checkpoint_would_begin(tmp_path: Path) -> None:
    trainer_with(Checkpoints(tmp_path)).start(Net(), batches())
    assert "No checkpoint yet: the run would begin." in printed(tmp_path)


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpoint, match="holds no checkpoint and no record"):
        printed(tmp_path)
    with pytest.raises(NotACheckpoint):
        printed(tmp_path / "nowhere")


def test_a_checkpoint_of_something_else_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    path = Store(tmp_path).save({"context": [1], "machine": 3}, name="other")
    text = printed(path)
    assert "it is not the checkpoint of a trainer" in text
    assert "It holds no weights of a model." in text
    assert "other" in printed(tmp_path)


def test_a_name_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    import torch

    weights = {"\x1b[2J[red]evil\nname": torch.zeros(2)}
    tree = {"context": {"model": {"weights": weights}}}
    path = Store(tmp_path).save(tree, name="evil", metadata={"state": "\x1b]0;title\x07"})
    text = printed(path)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]evil" in text


# -- resume ----------------------------------------------------------------------------------------


def test_the_command_is_that_of_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, folder = run_record.resume_command(run)
    assert command == [sys.executable, *sys.orig_argv[1:]]
    assert folder == Path.cwd()
    done = CliRunner().invoke(app, ["resume", str(run), "--dry-run"])
    assert done.exit_code == 0
    assert done.stdout.startswith(f"cd {Path.cwd()} && SMT_RESUME=auto {sys.executable}")


def gone(record: dict[str, object]) -> None:
    record["command"] = ["/no/such/python", "train.py"]


def elsewhere(record: dict[str, object]) -> None:
    record["folder"] = "/no/such/folder"


def at_a_prompt(record: dict[str, object]) -> None:
    record["command"] = None


@pytest.mark.parametrize(
    "change, says",
    [
        (gone, "was started with /no/such/python, which is gone"),
        (elsewhere, "was started in /no/such/folder, which is gone"),
        (at_a_prompt, "at a prompt or in a notebook"),
    ],
)
def test_a_run_that_cannot_be_started_again_says_why_with_exit_code_2(
    run: Path, change: Callable[[dict[str, object]], None], says: str
) -> None:
    record = json.loads((run / "run.json").read_text())
    change(record)
    (run / "run.json").write_text(json.dumps(record))
    done = CliRunner().invoke(app, ["resume", str(run)])
    assert done.exit_code == 2
    assert says in done.stderr


def test_mistakes_of_a_path_end_with_exit_code_2(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for command, path, says in (
        ("resume", tmp_path / "nowhere", "There is no folder"),
        ("resume", tmp_path / "empty", "has no run.json"),
        ("resume", run / "000001-step-00000003", f"The run is {run}."),
        ("inspect", tmp_path / "nowhere", "There is no checkpoint at"),
        ("inspect", tmp_path / "empty", "holds no checkpoint"),
        ("inspect", run / "run.json", "is a file"),
    ):
        done = CliRunner().invoke(app, [command, str(path)])
        assert done.exit_code == 2
        assert says in done.stderr
    (run / "run.json").write_text("[]")
    for command in ("resume", "inspect"):
        done = CliRunner().invoke(app, [command, str(run)])
        assert done.exit_code == 2
        assert "is not the record of a run" in done.stderr


def test_inspect_ends_with_exit_code_1_if_there_is_damage(run: Path) -> None:
    assert CliRunner().invoke(app, ["inspect", str(run)]).exit_code == 0
    flip(run / "000002-step-00000006" / "state.json")
    done = CliRunner().invoke(app, ["inspect", str(run)])
    assert done.exit_code == 1
    assert "Damaged: 000002-step-00000006" in done.stdout


def test_a_process_from_a_pipe_or_at_a_prompt_has_no_command_to_repeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for arguments in (["python"], ["python", "-"]):
        monkeypatch.setattr(sys, "orig_argv", arguments)
        assert run_record.command_line() is None
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "train", "--epochs", "3"])
    assert run_record.command_line() == [sys.executable, "-m", "train", "--epochs", "3"]
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert run_record.command_line() is None


def test_the_history_does_not_grow_for_ever(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(
        json.dumps(
            {
                "command": None,
                "folder": "/",
                "versions": {},
                "history": [{"event": "resumed", "at": "", "n": n} for n in range(1000)],
            }
        )
    )
    run_record.note(tmp_path, "ended", {})
    record = run_record.read_record(tmp_path)
    assert record is not None
    assert len(record.history) == 1000
    assert record.history[-1]["event"] == "ended"
