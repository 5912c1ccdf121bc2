"""Asking a run of another process, through its folder."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer import RunFolder, Trainer
from statemachine_trainer.control.control_errors import NoAnswer, NobodyListens, NotNow
from statemachine_trainer.control.requests import Endpoint, endpoint_of, endpoints_in
from statemachine_trainer.observe.remote import Remote
from statemachine_trainer.observe.run import Run as RunOfFolder
from tests.page.processes import steps_in, training
from tests.page.runs import Run, until
from tests.processes import stands_still

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")


PATIENCE = 60.0
"""Seconds within which a process answers, also on a busy machine; longer is a hang."""


def remote(folder: Path, rank: int | None = None, patience: float = PATIENCE) -> Remote:
    return Remote(RunOfFolder(folder), rank=rank, patience=patience)


def endpoint(folder: Path, rank: int = 0) -> Endpoint:
    found = endpoint_of(folder, rank)
    assert found is not None
    return found


def look(folder: Path, rank: int = 0) -> dict[str, Any]:
    return endpoint(folder, rank).look(patience=PATIENCE)


def say(folder: Path, line: bytes) -> dict[str, Any]:
    """Send a line of one's own making; return the answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(endpoint(folder).address)
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        answer: dict[str, Any] = json.loads(connection.makefile().read())
        return answer


def test_a_run_is_held_stepped_let_go_and_stopped_from_another_process(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with training(folder) as one:
        with pytest.raises(NotNow, match="Only a run that is held can be stepped"):
            remote(folder).press("step")
        assert remote(folder).press("pause") == {0: "The run is held after its next boundary."}
        until(lambda: look(folder)["held"], "that it is held")
        seen = [look(folder)["state"]]
        while "fit.epoch.batch.optimizer.backward" not in seen:  # a transient boundary, too
            remote(folder).press("step")
            until(
                lambda: look(folder)["state"] != seen[-1] and look(folder)["held"], "a transition"
            )
            seen.append(look(folder)["state"])
            assert len(seen) < 40
        steps = steps_in(folder)
        with pytest.raises(NotNow, match="The run is held already"):
            remote(folder).press("pause")
        told = remote(folder).press("stop")[0]
        assert told.startswith("'stop' is posted, for ")
        assert told.endswith("The run is held: it goes on with 'continue'.")
        assert steps_in(folder) == steps
        assert remote(folder).press("continue") == {0: "The run goes on."}
        assert one.wait(100) == 0
    with pytest.raises(NobodyListens, match=r"The run has ended .* ago\. Nobody listens\."):
        remote(folder).looks()
    assert endpoints_in(folder) == []


def test_events_of_the_chart_can_be_posted_and_a_checkpoint_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with training(folder):
        before = look(folder)["checkpoint"]
        remote(folder).press("checkpoint")
        until(lambda: look(folder)["checkpoint"] != before, "a checkpoint")
        assert (folder / look(folder)["checkpoint"]).is_dir()
        assert "is posted, for" in remote(folder).press("end_epoch")[0]
        until(lambda: not look(folder)["posted"], "that it is taken")
        with pytest.raises(NotNow, match=r"no button or event 'stpo'\. Did you mean 'stop'"):
            remote(folder).press("stpo")


def test_a_run_that_was_killed_is_known_to_be_so_while_its_workers_live(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with training(folder, workers=2) as one:
        children = Path(f"/proc/{one.pid}/task").glob("*/children")
        workers = [pid for path in children for pid in path.read_text().split()]
        assert len(workers) >= 2
        address = endpoint(folder).address
        one.kill()
        one.wait()
        assert all(Path("/proc", pid).exists() for pid in workers)
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection,
            pytest.raises(ConnectionRefusedError),
        ):
            connection.connect(address)
        assert all(Path("/proc", pid).exists() for pid in workers)
        with pytest.raises(NobodyListens, match=r"The run was killed in fit\.\S+: its process is"):
            remote(folder).press("stop")


def test_what_a_killed_run_left_is_cleared_away_by_the_next_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with training(folder) as one:
        left = Path(endpoint(folder).address)
        one.kill()
        one.wait()
        assert left.is_socket()
        small(run=folder).fit(*material())
        assert not left.exists()


def test_a_run_that_hangs_is_told_apart_from_one_that_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with training(folder) as one:
        one.send_signal(signal.SIGSTOP)
        until(lambda: stands_still(one.pid), "that it stands still")  # until then it may answer
        with pytest.raises(NoAnswer, match=rf"\({one.pid}\) did not answer within 0.3 s: it hangs"):
            remote(folder, patience=0.3).looks()
        one.send_signal(signal.SIGCONT)
        until(lambda: look(folder)["running"], "an answer")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"stop\n",
        b"\xff\x00\xfe\n",
        b"[]\n",
        b'{"press": 1}\n',
        b'{"press": "stop", "and": 1}\n',
        b'{"look": false}\n',
        b"[" * 4096,
        b'{"press": "' + b"x" * 10000,
    ],
)
def test_what_is_no_request_is_refused_and_the_run_goes_on(
    run: Run, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    run.begin()
    folder = folder_of(run)
    try:
        refusal = say(folder, line)["refusal"]
    except (ConnectionResetError, BrokenPipeError):  # more than is ever read
        assert len(line) > 4096
    else:
        assert refusal.startswith("That is no request.")
    assert "A request was refused" in caplog.text
    batch = run.batch
    until(lambda: run.batch > batch, "a batch")
    assert look(folder)["posted"] == []


def test_who_asks_and_says_nothing_does_not_keep_others_from_asking(run: Run) -> None:
    run.begin()
    folder = folder_of(run)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.connect(endpoint(folder).address)
        assert look(folder)["running"]


def test_ranks_are_asked_together_or_one_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with training(folder, rank=0, ranks=2) as first:
        with pytest.raises(NobodyListens, match="Of 2 processes only rank 0 listens"):
            remote(folder).press("stop")
        with training(folder, rank=1, ranks=2) as second:
            assert remote(folder).press("pause").keys() == {0, 1}
            both = (0, 1)
            until(lambda: all(look(folder, one)["held"] for one in both), "that both are held")
            remote(folder, rank=1).press("continue")
            until(lambda: not look(folder, 1)["held"], "that it goes on")
            assert look(folder, 0)["held"]
            with pytest.raises(NotNow, match="Rank 0: The run is held already"):
                remote(folder).press("pause")
            second.kill()
            second.wait()
            with pytest.raises(NobodyListens, match=r"only rank 0 listens.*--rank 0"):
                remote(folder).press("continue")
            remote(folder, rank=0).press("continue")
            remote(folder, rank=0).press("stop")
            assert first.wait(100) == 0


# -- in one process --------------------------------------------------------------------------------


def folder_of(run: Run) -> Path:
    folder = run.trainer.run_folder
    assert folder is not None
    return folder


def small(**settings: Any) -> Trainer:
    return Trainer(max_epochs=1, progress=False, **settings)


def material() -> tuple[Any, ...]:
    model = Model()
    return model, [torch.ones(2, 3)] * 3


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.layer(batch).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def listening() -> int:
    return sum(thread.name == "requests" for thread in threading.enumerate())


def test_it_is_for_this_user_alone(run: Run) -> None:
    run.begin()
    folder = folder_of(run)
    assert stat.S_IMODE(Endpoint.path(folder, 0).stat().st_mode) == 0o600
    place = Path(endpoint(folder).address)
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert place.stat().st_uid == os.geteuid()


def test_several_trainers_of_one_process_are_asked_each_by_itself(tmp_path: Path) -> None:
    both = Run(tmp_path / "a"), Run(tmp_path / "b")
    for one in both:
        one.begin()
    remote(tmp_path / "a").press("stop")
    both[0].thread.join(100)
    assert both[0].trainer.path is None
    assert look(tmp_path / "b")["running"]
    both[1].end()


def test_where_nothing_runs_nothing_can_be_asked_for_and_nothing_is_left(tmp_path: Path) -> None:
    before = listening()
    trainer = small(run=tmp_path)
    trainer.fit(*material(), until="epoch_end")
    stands = look(tmp_path)
    assert stands["state"] == "fit.epoch.epoch_end"
    assert set(stands["buttons"].values()) == {
        "The run stands still. It is in the hands of the program that began it."
    }
    place = Path(endpoint(tmp_path).address)
    trainer.run()
    assert not place.exists()
    assert not list(tmp_path.glob("requests*"))
    until(lambda: listening() == before, "the end of the thread")


def test_a_run_that_failed_and_goes_on_can_be_asked_again(tmp_path: Path) -> None:
    trainer = small(run=tmp_path)
    fails = trainer.on("epoch_end", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(*material())
    with pytest.raises(NobodyListens, match="The run has failed"):
        remote(tmp_path).looks()
    fails.cancel()
    seen: list[dict[str, Any]] = []
    trainer.on("fit_end", lambda: seen.append(look(tmp_path)))
    trainer.run()
    assert seen[0]["running"]


def test_a_trainer_that_nobody_has_any_more_listens_no_more(tmp_path: Path) -> None:
    trainer = small(run=tmp_path)
    trainer.fit(*material(), until="epoch_end")
    place = Path(endpoint(tmp_path).address)
    del trainer
    gc.collect()
    assert not place.exists()


def test_a_run_can_be_told_to_take_no_requests(tmp_path: Path) -> None:
    trainer = small(run=RunFolder(tmp_path, requests=False))
    trainer.fit(*material(), until="epoch_end")
    assert endpoints_in(tmp_path) == []
    with pytest.raises(NobodyListens):
        remote(tmp_path).looks()


def test_where_no_socket_can_be_made_the_run_goes_on_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    deep = tmp_path / ("x" * 100)  # the path of a socket has about a hundred characters
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    small(run=tmp_path / "run").fit(*material())
    assert RunOfFolder(tmp_path / "run").status == "ended"
    assert "Other processes cannot ask this run for anything: AF_UNIX path too long" in caplog.text
    assert not any(deep.iterdir())


def test_a_system_without_such_sockets_has_runs_that_cannot_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    caplog.set_level(logging.INFO)
    small(run=tmp_path).fit(*material())
    assert RunOfFolder(tmp_path).status == "ended"
    assert "on this system" in caplog.text
