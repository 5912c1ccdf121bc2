"""Signals of the system, sent to this very process while it trains."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.callbacks.checkpoints import Interrupted
from tests.crash import training

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="signals of Unix"),
    # A signal is sent once, which a list that `Fit.send` closes over counts.
    pytest.mark.filterwarnings("ignore::statemachine_trainer.audit.report.NotHeld"),
]

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STATES = ("batch_start", "backward", "optimizer_step", "validation_step", "epoch_end", "fetch")
MODES: dict[str, list[str]] = {"foreground": [], "background": ["--background"]}
PAIRS = [
    pytest.param(signum, state, MODES[mode], id=f"{signum.name}-{state}-{mode}")
    for (which, signum), (where, state) in itertools.product(enumerate(SIGNALS), enumerate(STATES))
    for mode in [[*MODES][(which + where) % 2]]
]
"""Each signal at each state, and each of them in each mode."""


class Fit:
    """A training of one epoch (12 batches) in this process."""

    def __init__(self, folder: Path, *options: str, **settings: Any) -> None:
        told = training.options([str(folder), str(folder / "unused"), "--epochs", "1", *options])
        self.trainer, self.model, self.train, self.validation, self.trace = training.make(told)
        self.checkpoints = self.trainer.checkpoints
        for name, value in settings.items():
            setattr(self.checkpoints, name, value)

    def send(self, signum: int, state: str, batch: int = 3, times: int = 1) -> None:
        left = [times]

        def send(trainer: Any) -> None:
            if trainer.context.counts.batch == batch and left[0]:
                left[0] -= 1
                os.kill(os.getpid(), signum)

        self.trainer.on(state, send)

    def run(self, **options: Any) -> dict[str, Any]:
        self.trainer.fit(self.model, self.train, self.validation, **options)
        return self.end()

    def go_on(self) -> dict[str, Any]:
        self.trainer.run()
        return self.end()

    def end(self) -> dict[str, Any]:
        return training.digest(self.trainer, self.model, self.trace)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return Fit(tmp_path_factory.mktemp("bare"), "--bare").run()


@pytest.mark.parametrize("signum, state, mode", PAIRS)
def test_a_signal_stops_the_run_at_its_next_boundary_and_a_new_one_goes_on(
    tmp_path: Path, undisturbed: dict[str, Any], signum: int, state: str, mode: list[str]
) -> None:
    first = Fit(tmp_path, *mode)
    first.send(signum, state, batch={"validation_step": 5, "epoch_end": 12}.get(state, 3))
    with pytest.raises(Interrupted) as stopped:
        first.run()
    assert stopped.value.code == 128 + signum
    assert stopped.value.checkpoint is not None
    assert (stopped.value.checkpoint / "manifest.json").exists()  # also in the background
    assert not first.trainer.driver.transient

    again = Fit(tmp_path, *mode)
    assert again.run(resume="auto") == undisturbed


def test_the_interrupted_trainer_itself_goes_on_too(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    fit = Fit(tmp_path)
    fit.send(signal.SIGTERM, "backward")
    with pytest.raises(Interrupted):
        fit.run()
    assert fit.go_on() == undisturbed


def test_handlers_are_afterwards_what_they_were_before(tmp_path: Path) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    fit = Fit(tmp_path)
    within: list[Any] = []
    fit.trainer.on("epoch_start", lambda: within.extend(signal.getsignal(one) for one in SIGNALS))
    fit.send(signal.SIGTERM, "forward")
    with pytest.raises(Interrupted):
        fit.run()
    assert all(one != was for one, was in zip(within, before, strict=True))
    assert [signal.getsignal(one) for one in SIGNALS] == before
    fit.go_on()
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_a_handler_of_the_users_own_is_left_alone(tmp_path: Path) -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda signum, _frame: came.append(signum))
    try:
        fit = Fit(tmp_path)
        fit.send(signal.SIGUSR1, "forward")
        fit.run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert came == [signal.SIGUSR1]


def test_a_signal_that_is_ignored_stays_ignored_as_under_nohup(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        fit = Fit(tmp_path)
        fit.send(signal.SIGINT, "forward")
        fit.run()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_stops_at_once_and_the_run_goes_on_from_its_boundary(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    fit = Fit(tmp_path)
    fit.send(signal.SIGINT, "validation_start", batch=5, times=1)
    fit.trainer.on("validation_start", lambda: os.kill(os.getpid(), signal.SIGINT), once=True)
    with pytest.raises(KeyboardInterrupt):
        fit.run()
    assert fit.trainer.path == "fit.epoch.validation.validation_start"
    listed = fit.checkpoints.store.list()  # type: ignore[union-attr]
    assert listed
    assert all(one.damage is None for one in listed)

    again = Fit(tmp_path)
    assert again.run(resume="auto") == undisturbed


def test_after_a_second_ctrl_c_the_same_trainer_is_not_stopped_by_the_first(
    tmp_path: Path,
) -> None:
    fit = Fit(tmp_path)
    fit.trainer.on("validation_start", lambda: os.kill(os.getpid(), signal.SIGINT), once=True)

    def fail() -> None:
        raise RuntimeError

    failing = fit.trainer.on("validation_start", fail)
    with pytest.raises(RuntimeError):
        fit.run()
    failing.cancel()
    fit.go_on()
    assert fit.trainer.path is None


def test_ctrl_c_after_a_schedulers_warning_is_no_second_ctrl_c(tmp_path: Path) -> None:
    fit = Fit(tmp_path)
    fit.send(signal.SIGTERM, "forward")
    fit.trainer.on("forward", lambda: os.kill(os.getpid(), signal.SIGINT), when=at_batch_3)
    fit.trainer.on("forward", lambda: os.kill(os.getpid(), signal.SIGTERM), when=at_batch_3)
    with pytest.raises(Interrupted) as stopped:
        fit.run()
    assert stopped.value.signum == signal.SIGTERM


def at_batch_3(trainer: Any) -> bool:
    return bool(trainer.context.counts.batch == 3)


def test_at_a_prompt_ctrl_c_raises_what_does_not_close_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    fit = Fit(tmp_path)
    fit.send(signal.SIGINT, "forward")
    with pytest.raises(KeyboardInterrupt, match="goes on right here"):
        fit.run()
    fit.go_on()
    assert fit.trainer.path is None


def test_outside_of_the_main_thread_no_handler_is_installed(tmp_path: Path) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    fit = Fit(tmp_path)
    within: list[Any] = []
    fit.trainer.on("epoch_start", lambda: within.extend(signal.getsignal(one) for one in SIGNALS))
    thread = threading.Thread(target=fit.run)
    thread.start()
    thread.join()
    assert within == before
    assert fit.trainer.path is None


def test_with_on_signals_false_nothing_is_installed(tmp_path: Path) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    fit = Fit(tmp_path, on_signals=False)
    within: list[Any] = []
    fit.trainer.on("epoch_start", lambda: within.extend(signal.getsignal(one) for one in SIGNALS))
    fit.run()
    assert within == before


def test_a_signal_while_a_checkpoint_is_being_written_waits_for_it(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    fit = Fit(tmp_path)
    store = fit.checkpoints.store  # type: ignore[union-attr]
    sent: list[int] = []
    save = store.save

    def save_and_be_told(*arguments: Any, **options: Any) -> Path:
        if len(store.list()) == 2 and not sent:
            sent.append(1)
            os.kill(os.getpid(), signal.SIGTERM)
        return save(*arguments, **options)

    store.save = save_and_be_told  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        fit.run()
    assert Fit(tmp_path).run(resume="auto") == undisturbed


def test_a_signal_between_two_runs_is_nobodys_business_but_pythons(tmp_path: Path) -> None:
    fit = Fit(tmp_path)
    fit.trainer.fit(fit.model, fit.train, fit.validation, until="validation")
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert fit.trainer.path == "fit.epoch.validation.validation_start"
    fit.go_on()
    assert fit.trainer.path is None


def test_a_signal_in_an_evaluation_by_a_receiver_stops_the_fit_after_it(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    fit = Fit(tmp_path)
    evaluated: list[dict[str, float]] = []

    def evaluate(trainer: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        evaluated.append(trainer.validate(data=DataLoader(training.Noisy(24), batch_size=8)))

    fit.trainer.on("batch_end", evaluate, when=at_batch_3, once=True)
    with pytest.raises(Interrupted):
        fit.run()
    assert evaluated
    assert fit.trainer.path is not None
    assert fit.trainer.path.startswith("fit.")
    assert fit.go_on()["weights"] == undisturbed["weights"]


def test_an_evaluation_by_itself_simply_ends_at_ctrl_c(tmp_path: Path) -> None:
    fit = Fit(tmp_path)
    fit.trainer.on("validate.validation_step", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        fit.trainer.validate(fit.model, fit.validation)


def test_a_signal_at_the_very_end_leaves_the_whole_run_behind(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    fit = Fit(tmp_path)
    fit.trainer.on("fit:exit", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        fit.run()
    again = Fit(tmp_path)
    assert again.run(resume="auto") == undisturbed


class Opaque:
    """A batch of a class that no checkpoint can hold."""

    def __init__(self, pair: training.Pair) -> None:
        self.pair = pair


def test_a_batch_that_cannot_be_written_postpones_the_stop_until_it_is_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Net(training.Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch.pair, batch_idx)

    fit = Fit(tmp_path)
    fit.send(signal.SIGTERM, "backward")
    data = [Opaque((torch.randn(8, 8), torch.zeros(8, dtype=torch.int64))) for _ in range(12)]
    with pytest.raises(Interrupted):
        fit.trainer.fit(Net(), data)
    assert fit.trainer.path == "fit.epoch.fetch"
    assert fit.trainer.context.counts.batch == 4
    assert "Stopped by SIGTERM" in caplog.text


def test_a_write_that_failed_before_does_not_keep_a_signal_from_being_written(
    tmp_path: Path,
) -> None:
    fit = Fit(tmp_path, "--background")
    checkpoints = fit.checkpoints
    assert isinstance(checkpoints, Checkpoints)

    def spoil() -> None:
        from statemachine_trainer.snapshot import WriteFailed

        def fail() -> None:
            raise WriteFailed("no room for the one before")

        checkpoints.store.wait()
        checkpoints.store._background.start(fail)
        os.kill(os.getpid(), signal.SIGTERM)

    fit.trainer.on("batch_end", spoil, when=at_batch_3)
    with (
        pytest.warns(RuntimeWarning, match="no room for the one before"),
        pytest.raises(Interrupted) as stopped,
    ):
        fit.run()
    assert stopped.value.checkpoint is not None
    assert stopped.value.checkpoint.exists()
