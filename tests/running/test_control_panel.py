"""`post("set", ...)`: settings changed while a fit runs, at a boundary, told, and kept."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer import (
    Checkpoints,
    FitLoop,
    KFoldLoop,
    RecoverLoop,
    Run,
    Trainer,
    every,
)
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.machine.errors import NotStarted

Make = Callable[..., Trainer]
DATA = [
    (torch.randn(4, 3, generator=torch.Generator().manual_seed(n)), torch.tensor([0, 1, 0, 1]))
    for n in range(5)
]


class Net(nn.Module):
    def __init__(self, scheduler: Any = None, groups: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        self.scheduler = scheduler
        self.groups = groups

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.layers(batch[0])

    def configure_optimizers(self) -> Any:
        parts = [self.layers] if self.groups == 1 else [*self.layers]
        groups = [{"params": [*one.parameters()]} for one in parts]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        if self.scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"},
        }


def started(
    folder: Path | Checkpoints | None = None,
    model: nn.Module | None = None,
    *,
    resume: str | None = None,
    change: Callable[[Trainer], object] | None = None,
    **settings: Any,
) -> Trainer:
    torch.manual_seed(0)
    plain = {"max_epochs": 2, "seed": 1, "device": "cpu", "progress": False, "clip_norm": 1.0}
    trainer = Trainer(checkpoints=folder, **{**plain, **settings})
    if change is not None:
        change(trainer)
    trainer.start(Net() if model is None else model, DATA, resume=resume)
    return trainer


def after(batch: int, **values: object) -> Callable[[Trainer], object]:
    """Post settings as a batch ends."""

    def post(trainer: Trainer) -> None:
        if trainer.context.counts.batch == batch:
            trainer.post("set", **values)

    return lambda trainer: trainer.on("batch_end", post)


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [*trainer.model.state_dict().values()]


def rate(trainer: Trainer, group: int = 0) -> float:
    return float(trainer.context.slots[0].optimizer.param_groups[group]["lr"])


# -- what may be changed -----------------------------------------------------------------------------


def test_each_setting_says_what_it_may_be() -> None:
    found = started().changeable()
    assert {name: (str(one.kind), one.value) for name, one in found.items()} == {
        "max_epochs": ("a whole number from 1", 2),
        "max_steps": ("a whole number from 1", None),
        "clip_norm": ("a number above 0, or None", 1.0),
        "clip_value": ("a number above 0, or None", None),
        "lr": ("a number from 0", 0.1),
        "weight_decay": ("a number from 0", 0.0),
    }


def test_a_paused_fit_is_changed_at_once() -> None:
    trainer = started()
    trainer.post("set", lr=0.01, clip_norm=None, max_epochs=3)
    assert rate(trainer) == 0.01
    assert trainer.loop.epoch.batch.optimizer.clip_norm is None
    trainer.run()
    assert trainer.epoch == 3


@pytest.mark.parametrize(
    "values",
    [
        {"lr": -0.1},
        {"lr": "fast"},
        {"lr": True},
        {"lr": None},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"clip_norm": 0},
        {"max_epochs": 2.5},
        {"max_epochs": 0},
        pytest.param({"max_epochs": 10**400}, id="max_epochs: 10**400"),
        {"max_steps": None},
        {"rate": 0.1},
        {"lr": 0.1, "rate": 0.1},
        {"context": 1},
        {},
    ],
    ids=str,
)
def test_what_it_cannot_be_is_refused_and_nothing_is_changed(values: dict[str, Any]) -> None:
    trainer = started()
    before = {name: one.value for name, one in trainer.changeable().items()}
    with pytest.raises(SettingError):
        trainer.post("set", **values)
    assert {name: one.value for name, one in trainer.changeable().items()} == before


def test_a_limit_that_is_passed_is_refused_with_what_to_do() -> None:
    trainer = started()
    trainer.run(until=lambda trainer, moment: trainer.steps == 7)
    with pytest.raises(SettingError, match=r"7 are done already\. To end the fit, post 'stop'"):
        trainer.post("set", max_steps=7)
    trainer.post("set", max_steps=8)
    trainer.run()
    assert trainer.steps == 8


def test_other_events_carry_nothing() -> None:
    with pytest.raises(SettingError, match="'stop' carries nothing"):
        started().post("stop", lr=0.1)


def test_without_a_fit_there_is_nothing_to_change() -> None:
    trainer = Trainer(max_epochs=1, progress=False)
    assert trainer.changeable() == {}
    with pytest.raises(NotStarted):
        trainer.post("set", lr=0.1)
    trainer = started(max_epochs=1)
    trainer.run()
    with pytest.raises(NotStarted):
        trainer.post("set", lr=0.1)


def test_groups_are_set_one_by_one() -> None:
    trainer = started(model=Net(groups=2))
    with pytest.raises(SettingError, match=r"Did you mean 'lr/0/1' or 'lr/0/0'"):
        trainer.post("set", lr=0.5)
    trainer.post("set", **{"lr/0/1": 0.5})
    assert (rate(trainer, 0), rate(trainer, 1)) == (0.1, 0.5)


# -- schedulers --------------------------------------------------------------------------------------


def test_a_scheduler_goes_on_from_the_new_rate_by_its_own_factors() -> None:
    for make in (
        lambda optimizer: lr_scheduler.StepLR(optimizer, 4, gamma=0.5),
        lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 ** (step // 4)),
        lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [4, 8], gamma=0.5),
    ):
        trainer = started(model=Net(make), change=after(2, lr=0.01))
        trainer.run()
        assert rate(trainer) == pytest.approx(0.01 * 0.25)


def test_a_scheduler_that_would_overwrite_it_refuses_it() -> None:
    def one_cycle(optimizer: Any) -> Any:
        return lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)

    trainer = started(model=Net(one_cycle))
    assert trainer.changeable()["lr"].refusal
    with pytest.raises(SettingError, match="OneCycleLR sets it at each of its steps"):
        trainer.post("set", lr=0.1)


# -- kept --------------------------------------------------------------------------------------------


def test_a_receiver_of_the_next_batch_sees_it_and_the_history_tells(tmp_path: Path) -> None:
    trainer = started(tmp_path, change=after(3, lr=0.01, max_epochs=3))
    trainer.run()
    assert trainer.epoch == 3
    told = [one.facts for one in Run(tmp_path).history() if one.what == "set"]
    assert told == [{"lr": {"from": 0.1, "to": 0.01}, "max_epochs": {"from": 2, "to": 3}}]


@pytest.mark.parametrize("batch", [4, 6, 8])
def test_a_resumed_run_ends_with_the_same_bits(
    tmp_path: Path, batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    change = after(3, lr=0.01, clip_norm=0.05, max_epochs=3)
    whole = started(change=change)
    whole.run()
    folder = Checkpoints(tmp_path, every=every(1, "batch"))
    stopped = started(folder, change=change)
    stopped.run(until=lambda trainer, moment: trainer.context.counts.batch == batch)
    with caplog.at_level(logging.WARNING):
        resumed = started(Checkpoints(tmp_path, every=every(1, "batch")), resume="auto")
        resumed.run()
    assert resumed.epoch == 3
    assert all(map(torch.equal, weights(resumed), weights(whole)))
    assert "clip_norm is 0.05, to which it was set while the run went on" in caplog.text


def test_what_was_set_after_the_checkpoint_is_set_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped = started(tmp_path, change=after(7, lr=0.01, max_epochs=4))
    stopped.run(until=lambda trainer, moment: trainer.context.counts.batch == 8)
    with caplog.at_level(logging.WARNING):
        resumed = started(tmp_path, resume="auto")
    assert resumed.steps == 5
    assert rate(resumed) == 0.01
    assert "Set again, as it was set after the checkpoint: lr=0.01, max_epochs=4." in caplog.text
    resumed.run()
    assert resumed.epoch == 4


def test_a_script_that_gives_another_value_than_before_has_the_last_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started(tmp_path, change=after(3, max_epochs=3)).run()
    with caplog.at_level(logging.WARNING):
        longer = started(tmp_path, resume="auto", max_epochs=5)
    assert "max_epochs is 5, as the script gives it now" in caplog.text
    longer.run()
    assert longer.epoch == 5


def test_it_holds_for_the_folds_that_follow_and_after_a_resume_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = torch.cat([one[0] for one in DATA])
    data = DataLoader(TensorDataset(inputs, torch.arange(20) % 2), batch_size=5)

    def folds(resume: str | None = None) -> Trainer:
        torch.manual_seed(0)
        loop = KFoldLoop(2, fit=FitLoop(max_epochs=1, sanity_batches=0))
        checkpoints = Checkpoints(tmp_path, every=every(1, "batch"))
        trainer = Trainer(loop, seed=1, device="cpu", progress=False, checkpoints=checkpoints)
        trainer.start(Net(), data, resume=resume)
        return trainer

    first = folds()
    first.run("batch_end")
    first.post("set", clip_norm=0.5, lr=0.01)
    first.run("fold_end")
    first.run("batch_end")
    assert first.context.changes == {"clip_norm": (0.5, None)}
    assert rate(first) == 0.1  # of an optimizer that this fold has made
    first.run("batch_start")
    with caplog.at_level(logging.WARNING):
        resumed = folds(resume="auto")
    assert resumed.changeable()["clip_norm"].value == 0.5
    assert "clip_norm is 0.5" in caplog.text


def test_a_rewind_undoes_it(tmp_path: Path) -> None:
    trainer = started()
    trainer.remember(last=50)
    trainer.run(until=lambda trainer, moment: trainer.steps == 2)
    trainer.post("set", lr=0.01, clip_norm=0.5)
    trainer.rewind(3)
    assert (rate(trainer), trainer.changeable()["clip_norm"].value) == (0.1, 1.0)


def test_a_loop_that_goes_back_keeps_the_rate_that_was_set_since() -> None:
    torch.manual_seed(0)
    trainer = Trainer(max_epochs=1, seed=1, device="cpu", progress=False)
    loop = RecoverLoop(when=lambda trainer: trainer.context.counts.batch == 4, keep_every=3, most=1)
    trainer.loop.epoch.replace(batch=loop)
    trainer.on("batch_end", lambda trainer: after(2, lr=0.01)(trainer), once=True)
    trainer.start(Net(), DATA)
    trainer.run()
    assert len(loop.history) == 1
    assert rate(trainer) == 0.01


@pytest.mark.parametrize("place", ["batch_start", "forward", "optimizer_step", "judge"])
@pytest.mark.parametrize("keep_every", [1, 2])
def test_so_does_one_that_goes_back_within_the_batch_in_which_it_was_set(
    place: str, keep_every: int
) -> None:
    torch.manual_seed(0)
    trainer = Trainer(max_epochs=1, seed=1, device="cpu", progress=False)
    loop = RecoverLoop(
        when=lambda trainer: trainer.context.counts.batch == 4, keep_every=keep_every, most=1
    )
    trainer.loop.epoch.replace(batch=loop)

    def change(trainer: Trainer) -> None:
        if trainer.context.counts.batch == 3:
            trainer.post("set", lr=0.01)

    trainer.on(place, change)
    trainer.start(Net(), DATA)
    trainer.run()
    assert len(loop.history) == 1
    assert rate(trainer) == 0.01


def test_a_damaged_entry_of_the_journal_sets_nothing(tmp_path: Path) -> None:
    stopped = started(tmp_path, change=after(7, lr=0.01))
    stopped.run(until=lambda trainer, moment: trainer.context.counts.batch == 8)
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as connection, connection:
        for facts in ('{"lr": {"to": "fast"}}', '{"lr": 7}', "[1]", '{"foo": {"to": 1}}', "{"):
            connection.execute(
                "INSERT INTO entries (at, kind, epoch, step, facts) VALUES (1, 'set', 1, 1, ?)",
                (facts,),
            )
    resumed = started(tmp_path, resume="auto")
    assert resumed.steps == 5
    resumed.run()
    assert resumed.epoch == 2
