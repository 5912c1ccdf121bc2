"""One run has a folder for as long as it lives; whoever lost it writes nothing more there."""

from __future__ import annotations

import gc
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from statemachine_trainer import RunFolder, Trainer
from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.callbacks.checkpoints import EarlierRun
from statemachine_trainer.control.ownership import FolderInUse, FolderLost, Ownership
from statemachine_trainer.snapshot import Store
from tests.crash import double_starts
from tests.forking import forked
from tests.observe.recorded import Net, batches, trainer
from tests.processes import ROOT, state_of, wait_until

LOCK = "run.lock"


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Let go of the trainers of a test before the next one begins."""
    yield
    gc.collect()


def every_step(folder: Path, **settings: Any) -> Trainer:
    return trainer(checkpoints=Checkpoints(folder, every=1), **settings)


def paused(folder: Path, **settings: Any) -> Trainer:
    one = every_step(folder, **settings)
    one.fit(Net(), batches(), until=lambda trainer: trainer.steps == 3)
    return one


def names(folder: Path) -> list[str]:
    return [info.path.name for info in Store(folder).list()]


# -- other processes -------------------------------------------------------------------------------

HOLDING = """
import sys, threading
from pathlib import Path
from statemachine_trainer import RunFolder
from statemachine_trainer.callbacks import Checkpoints
from tests.observe.recorded import *

folder, kind = Path(sys.argv[1]), sys.argv[2]
settings = {
    "running": {"checkpoints": folder},
    "paused": {"checkpoints": folder},
    "failed": {"checkpoints": folder},
    "without a record": {"checkpoints": folder, "run": False},
    "without a black box": {"run": RunFolder(folder, blackbox=False, journal=False)},
    "workers": {"checkpoints": folder},
}[kind]
one = trainer(**settings)
def hold(trainer):
    (folder / "reached").touch()
    threading.Event().wait()
def fail(trainer):
    raise ValueError("no")
if kind == "paused":
    one.fit(Net(), batches(), until="batch_end")
    hold(one)
elif kind == "failed":
    one.on("batch_end", fail)
    try: one.fit(Net(), batches())
    except ValueError: hold(one)
else:
    data = batches()
    if kind == "workers":
        from torch.utils.data import DataLoader
        data = DataLoader(data * 50, batch_size=None, num_workers=1)
    one.on("batch_end", hold)
    one.fit(Net(), data)
"""


@contextmanager
def holding(folder: Path, kind: str) -> Iterator[int]:
    """Have another process hold a folder; the block begins when it does."""
    log = folder.with_name(f"{folder.name}.log")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with forked("-c", HOLDING, folder, kind, output=log, env=environment) as process:

        def reached() -> bool:
            assert process.poll() is None, log.read_text()
            return (folder / "reached").exists()

        wait_until(reached)
        yield process.pid


@pytest.mark.parametrize(
    "kind", ["running", "paused", "failed", "without a record", "without a black box"]
)
def test_a_folder_that_another_process_has_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    with holding(folder, kind) as pid:
        for settings in ({"checkpoints": folder}, {"run": folder}):
            for restart in (False, True):
                with pytest.raises(FolderInUse, match=rf"Process {pid} is running in .*smt post"):
                    trainer(**settings).fit(Net(), batches(), restart=restart)
        with pytest.raises(FolderInUse):
            trainer(checkpoints=folder).fit(Net(), batches(), resume="auto")
    again = trainer(checkpoints=folder)  # it is gone
    again.fit(Net(), batches(), resume="auto")
    assert again.epoch == 3
    assert not (folder / LOCK).exists()


def test_a_folder_is_free_when_its_process_was_killed_although_workers_live(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with holding(folder, "workers") as pid:
        children = Path(f"/proc/{pid}/task").glob("*/children")
        workers = [int(one) for path in children for one in path.read_text().split()]
        assert workers
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)  # else it would notice, and end
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: state_of(Path(f"/proc/{pid}")) == "Z")
        trainer(checkpoints=folder).fit(Net(), batches(), resume="auto")
        assert all(Path("/proc", str(worker)).exists() for worker in workers)


@pytest.mark.slow
def test_of_two_that_start_at_about_the_same_time_one_runs_and_one_is_refused() -> None:
    # The first 60; `python -m tests.crash.double_starts` tries 200.
    outcomes = double_starts.try_all(60, seed=0)
    assert len(outcomes) == 60
    for kind, told in outcomes:
        assert double_starts.one_was_refused(told), (kind, told)


# -- within a process ------------------------------------------------------------------------------


def test_the_folder_is_given_back_when_the_fit_has_ended(tmp_path: Path) -> None:
    one = every_step(tmp_path)
    one.start(Net(), batches())
    facts = json.loads((tmp_path / LOCK).read_text())
    assert facts["pid"] == os.getpid()
    one.run()
    assert not (tmp_path / LOCK).exists()
    one.checkpoint()  # it may still be asked for one
    assert not (tmp_path / LOCK).exists()


def test_a_trainer_takes_the_folder_of_one_that_is_at_rest_which_is_told(tmp_path: Path) -> None:
    first = paused(tmp_path)
    second = every_step(tmp_path)
    second.fit(Net(), batches(), resume="auto", until=lambda trainer: trainer.steps == 5)
    there = names(tmp_path)
    for go_on in (first.run, first.step, first.checkpoint):
        with pytest.raises(FolderLost, match="another trainer of this process has gone on in it"):
            go_on()
    assert names(tmp_path) == there
    assert second.run() is not None
    first.fit(Net(), batches(), resume="auto")  # this reads what the other has written
    assert first.epoch == 3


def test_a_trainer_that_is_running_keeps_its_folder(tmp_path: Path) -> None:
    told = []

    def start_another() -> None:
        with pytest.raises(
            FolderInUse, match="Another trainer of this process is running"
        ) as told_:
            every_step(tmp_path).fit(Net(), batches(), restart=True)
        told.append(told_)

    one = every_step(tmp_path)
    one.on("epoch_end", start_another, once=True)
    one.fit(Net(), batches())
    assert len(told) == 1


def test_a_start_that_is_refused_gives_the_folder_back(tmp_path: Path) -> None:
    first = paused(tmp_path)
    with pytest.raises(EarlierRun):
        every_step(tmp_path).fit(Net(), batches())
    assert first.run() is not None


def test_a_fit_that_had_ended_does_not_go_on_after_another_one(tmp_path: Path) -> None:
    first = every_step(tmp_path, max_epochs=1)
    model = Net()
    first.fit(model, batches())
    every_step(tmp_path, max_epochs=2).fit(Net(), batches(), resume="auto")
    first.loop.max_epochs = 2
    with pytest.raises(FolderLost, match="another run has written"):
        first.fit(model, batches())


def test_whoever_lost_the_folder_writes_nothing_more_there(tmp_path: Path) -> None:
    one = paused(tmp_path)
    (tmp_path / LOCK).unlink()
    # Another process, on another machine, say.
    (tmp_path / LOCK).write_text(json.dumps({"pid": 7, "host": "elsewhere", "token": "other"}))
    before = {path: path.read_bytes() for path in (tmp_path / "run.json", tmp_path / "latest")}
    there = names(tmp_path)
    with pytest.raises(FolderLost, match="Process 7 on elsewhere has it now"):
        one.run()
    assert names(tmp_path) == there
    assert {path: path.read_bytes() for path in before} == before
    assert not [*tmp_path.glob(".tmp*")]
    with pytest.raises(FolderLost):
        one.run()


def test_a_folder_taken_while_a_checkpoint_is_being_written_does_not_get_it(tmp_path: Path) -> None:
    one = Ownership(tmp_path, at_rest=lambda: False)
    one.take()
    store = Store(tmp_path)
    asked = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 2:  # its files are written
            (tmp_path / LOCK).unlink()
            (tmp_path / LOCK).write_text('{"pid": 7, "token": "other"}')
        one.check()

    store.owned, store.check_owned = one.writing, check
    with pytest.raises(FolderLost):
        store.save({}, name="a")
    assert len(asked) == 2
    assert names(tmp_path) == []


def test_a_lock_file_that_somebody_removed_is_made_again(tmp_path: Path) -> None:
    one = paused(tmp_path)
    (tmp_path / LOCK).unlink()
    one.run(until=lambda trainer: trainer.steps == 5)
    assert (tmp_path / LOCK).exists()
    with pytest.raises(EarlierRun):  # it is held: this one is at rest, and gets it back
        every_step(tmp_path).fit(Net(), batches())
    assert one.run() is not None


def test_numbers_of_checkpoints_are_compared_as_numbers(tmp_path: Path) -> None:
    one = Ownership(tmp_path, at_rest=lambda: True)
    one.take()
    (tmp_path / "999999-step-1").mkdir()
    one.release()
    (tmp_path / "1000000-step-2").mkdir()
    with pytest.raises(FolderLost, match="another run has written 1000000-step-2"):
        one.take()


def test_that_is_so_too_in_a_fit_that_had_ended_and_goes_on(tmp_path: Path) -> None:
    one, model = every_step(tmp_path, max_epochs=1), Net()
    one.fit(model, batches())
    one.loop.max_epochs, before = 2, one.steps
    one.fit(model, batches(), until=lambda trainer: trainer.steps == before + 2)
    (tmp_path / LOCK).unlink()
    assert one.run() is not None


def test_a_forked_process_does_not_have_the_folder_of_the_one_it_came_from(tmp_path: Path) -> None:
    one, asked, told = Ownership(tmp_path, at_rest=lambda: False), os.pipe(), os.pipe()
    one.take()
    child = os.fork()
    if child == 0:
        try:
            os.write(told[1], b"-" if one.held else b"+")
            os.read(asked[0], 1)
        finally:
            os._exit(0)
    assert os.read(told[0], 1) == b"+"
    one.release()
    other = Ownership(tmp_path, at_rest=lambda: False)
    other.take()  # the child lives
    other.release()
    os.write(asked[1], b".")
    os.waitpid(child, 0)
    for end in (*asked, *told):
        os.close(end)


def test_what_is_no_lock_file_leaves_the_run_alone_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(tmp_path / LOCK)
    trainer(run=RunFolder(tmp_path), max_epochs=1).fit(Net(), batches())
    assert caplog.text.count("a second run in this folder would not be noticed") == 1
