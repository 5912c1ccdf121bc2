"""A run that goes back after batches that do harm is the run that passes over them: to the bit."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import optimizer as optimizers

from statemachine_trainer.callbacks.averages import EMA
from statemachine_trainer.loops import BatchLoop, EpochLoop, FitLoop, OptimizerLoop, log
from statemachine_trainer.loops.loop_errors import NotRecovered, SettingError
from statemachine_trainer.loops.recipes.recover import RecoverLoop
from statemachine_trainer.observe.recorder import RunFolder
from statemachine_trainer.observe.run import Run
from statemachine_trainer.snapshot.written import Written
from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.trainer import Trainer


class Net(nn.Module):
    """Draws, keeps buffers and logs. Leaves out the batches that it is told to."""

    def __init__(self, without: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.head = nn.Linear(8, 1)
        self.without, self.seen = without, list[int]()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
        if batch_idx in self.without:
            return None
        self.seen.append(batch_idx)
        inputs, targets = batch
        loss = nn.functional.mse_loss(self.head(self.net(inputs)).squeeze(1), targets)
        log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.7)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def data(poison: dict[int, float], batches: int = 24) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    made = []
    for number in range(batches):
        inputs, targets = torch.randn(6, 4, generator=draw), torch.randn(6, generator=draw)
        made.append((inputs, targets * poison.get(number, 1.0)))
    return made


def trained(
    poison: dict[int, float],
    batch: BatchLoop,
    without: set[int] = frozenset(),  # type: ignore[assignment]
    epochs: int = 1,
    **settings: Any,
) -> tuple[Net, Trainer]:
    torch.manual_seed(0)
    model = Net(without)
    batch.replace(optimizer=OptimizerLoop(**settings))
    trainer = Trainer(FitLoop(max_epochs=epochs, epoch=EpochLoop(batch=batch)))
    trainer.fit(model, data(poison))
    return model, trainer


def equal(one: nn.Module, other: nn.Module) -> bool:
    names = one.state_dict()
    return all(torch.equal(names[n], other.state_dict()[n]) for n in names)


NAN, HUGE = float("nan"), 1e4

CASES: list[tuple[dict[int, float], Callable[[], RecoverLoop], set[int]]] = [
    ({5: NAN}, lambda: RecoverLoop(), {5}),
    ({0: NAN, 1: NAN, 23: float("inf")}, lambda: RecoverLoop(), {0, 1, 23}),
    ({20: HUGE}, lambda: RecoverLoop(spike=20.0), {20}),
    ({20: HUGE}, lambda: RecoverLoop(spike=20.0, back=2), {18, 19, 20}),
    ({7: HUGE}, lambda: RecoverLoop(gradient_norm=500.0), {7}),
    ({7: NAN}, lambda: RecoverLoop(keep_every=4), {4, 5, 6, 7}),
    ({7: NAN}, lambda: RecoverLoop(keep_every=4, back=4), {0, 1, 2, 3, 4, 5, 6, 7}),
    ({1: NAN}, lambda: RecoverLoop(back=5), {0, 1}),
    ({6: HUGE}, lambda: RecoverLoop(when=lambda trainer: trainer.context.loss > 1e3), {6}),
    ({}, lambda: RecoverLoop(spike=50.0), set()),
]


@pytest.mark.parametrize("poison, make, without", CASES)
@pytest.mark.parametrize("settings", [{}, {"accumulate": 3}])
def test_the_weights_are_those_of_a_run_that_leaves_the_batches_out(
    poison: dict[int, float],
    make: Callable[[], RecoverLoop],
    without: set[int],
    settings: dict[str, Any],
) -> None:
    clean, at_clean = trained({}, BatchLoop(), without, **settings)
    model, trainer = trained(poison, make(), **settings)
    assert equal(clean, model)
    assert trainer.context.counts.step == at_clean.context.counts.step
    assert trainer.context.counts.batch == 24
    assert trainer.metrics["loss"] == at_clean.metrics["loss"]
    rates = [one.context.optimizers[0].param_groups[0]["lr"] for one in (trainer, at_clean)]
    assert rates[0] == rates[1]


def test_so_it_is_with_the_scaler_of_fp16() -> None:
    def run(batch: BatchLoop, poison: dict[int, float], without: set[int]) -> Net:
        torch.manual_seed(0)
        model = Net(without)
        loop = FitLoop(max_epochs=1, epoch=EpochLoop(batch=batch))
        Trainer(loop, precision="fp16").fit(model, data(poison))
        return model

    assert equal(run(BatchLoop(), {}, {9}), run(RecoverLoop(), {9: NAN}, set()))


class SlowerAdam(torch.optim.Adam):
    """Steps with a tenth of its rate in some steps."""

    slow_in, done = range(0), 0

    def step(self, closure: Any = None) -> Any:
        (group,) = self.param_groups
        rate = group["lr"]
        group["lr"] = rate * (0.1 if self.done in self.slow_in else 1)
        self.done += 1
        super().step(closure)
        group["lr"] = rate


class Slower(Net):
    """The reference of what a recovery does with the rate."""

    def __init__(self, without: set[int], steps: range) -> None:
        super().__init__(without)
        self.steps = steps

    def configure_optimizers(self) -> Any:
        optimizer = SlowerAdam(self.parameters(), lr=0.02)
        optimizer.slow_in = self.steps
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.7)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@pytest.mark.parametrize("back", [0, 2])
def test_after_going_back_the_rate_is_smaller_for_some_steps_and_schedules_go_on(back: int) -> None:
    bad = set(range(9 - back, 10))  # batch_idx; schedules step at every fifth step
    torch.manual_seed(0)
    clean = Slower(bad, range(9 - back, 9 - back + 8))
    reference = Trainer(FitLoop(max_epochs=1, epoch=EpochLoop()))
    reference.fit(clean, data({}))
    recovering = RecoverLoop(back=back, lr_scale=0.1, lr_steps=8)
    model, trainer = trained({9: NAN}, recovering)
    assert equal(clean, model)
    rates = [one.context.optimizers[0].param_groups[0]["lr"] for one in (trainer, reference)]
    assert rates[0] == rates[1]
    assert not equal(model, trained({9: NAN}, RecoverLoop(back=back))[0])
    assert recovering.history[0]["lr_scale"] == 0.1


def test_going_back_again_begins_the_smaller_rate_anew() -> None:
    torch.manual_seed(0)
    clean = Slower({4, 7}, range(4, 4 + 2 + 5))  # steps 4 and 5, then five from step 6 on
    Trainer(FitLoop(max_epochs=1, epoch=EpochLoop())).fit(clean, data({}))
    model, _ = trained({4: NAN, 7: NAN}, RecoverLoop(lr_scale=0.1, lr_steps=5))
    assert equal(clean, model)


def test_a_step_that_raises_leaves_the_rate_as_it_was() -> None:
    loop = RecoverLoop(lr_scale=0.1, lr_steps=8)
    trainer = Trainer(FitLoop(max_epochs=1, epoch=EpochLoop(batch=loop)))
    trainer.start(Net(), data({2: NAN}))
    trainer.run(lambda t, m: t.context.counts.batch == 4)
    optimizer = trainer.context.optimizers[0]
    rate, group = optimizer.param_groups[0]["lr"], optimizer.param_groups[0]
    group["betas"] = None
    with pytest.raises(TypeError):
        trainer.run()
    group["betas"] = (0.9, 0.999)
    trainer.run("judge:exit")
    assert group["lr"] == rate


def test_a_fit_that_is_left_within_a_batch_leaves_nothing_behind() -> None:
    hooks = optimizers._global_optimizer_pre_hooks
    loop = RecoverLoop(lr_scale=0.1)
    trainer = Trainer(FitLoop(max_epochs=1, epoch=EpochLoop(batch=loop)))
    trainer.start(Net(), data({2: NAN}))
    trainer.run(lambda t, m: t.context.counts.batch == 4)
    trainer.run("optimizer_step")
    assert len(hooks) == 1
    del loop, trainer
    gc.collect()
    assert not hooks


def test_optimizers_of_others_keep_their_rates() -> None:
    weight = nn.Parameter(torch.zeros(1))
    other = torch.optim.SGD([weight], lr=1.0)

    class Meanwhile(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
            weight.grad = torch.ones(1)
            other.step()
            return super().training_step(batch, batch_idx)

    loop = FitLoop(max_epochs=1, epoch=EpochLoop(batch=RecoverLoop(lr_scale=0.1)))
    Trainer(loop).fit(Meanwhile(), data({3: NAN}))
    assert weight.item() == -24.0


def test_what_was_done_is_told_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "statemachine_trainer.recovery"):
        _, trainer = trained({5: NAN}, RecoverLoop(back=1))
    assert trainer.loop["batch"].history == [
        {"first": 4, "last": 5, "reason": "the loss is nan", "epoch": 0}
    ]
    assert "passed over batches 5 to 6 of the run (epoch 1): the loss is nan" in caplog.text


def test_an_edge_of_the_graph_can_be_heard() -> None:
    loop = FitLoop(max_epochs=1, epoch=EpochLoop(batch=RecoverLoop()))
    trainer = Trainer(loop)
    heard: list[int] = []
    trainer.on("judge:bad", lambda t: heard.append(t.context.batch_idx))
    trainer.fit(Net(), data({3: NAN}))
    assert heard == [3]
    assert "judge --> " in trainer.graph().to_mermaid().replace("fit_epoch_batch_", "")


def test_after_so_many_times_the_error_surfaces() -> None:
    poison = {3: NAN, 5: NAN, 8: NAN}
    with pytest.raises(NotRecovered, match=r"Batch 9 .*2 times already \(batches 4 to 4, the loss"):
        trained(poison, RecoverLoop(most=2))
    model, _ = trained(poison, RecoverLoop(most=3))
    assert equal(model, trained({}, BatchLoop(), {3, 5, 8})[0])


def test_averages_of_the_weights_are_taken_back_too() -> None:
    averages = []
    for poison, without, batch in (
        ({}, {6, 7, 8}, BatchLoop()),
        ({8: NAN}, set[int](), RecoverLoop(back=2)),
    ):
        torch.manual_seed(0)
        average = EMA(0.9)
        loop = FitLoop(max_epochs=1, epoch=EpochLoop(batch=batch))
        Trainer(loop, callbacks=[average]).fit(Net(without), data(poison))
        averages.append(average.state_dict())
    assert averages[0]["updates"] == averages[1]["updates"] == 21
    names = averages[0]["average"]
    assert all(torch.equal(names[name], averages[1]["average"][name]) for name in names)


def test_a_callback_that_came_since_the_boundary_is_told() -> None:
    trainer = Trainer(FitLoop(max_epochs=1, epoch=EpochLoop(batch=RecoverLoop(back=1))))
    trainer.on("judge:bad", lambda t: t.on(EMA(0.9)))
    with pytest.raises(NotRecovered, match="callbacks were subscribed"):
        trainer.fit(Net(), data({3: NAN}))


def test_what_was_changed_by_hand_since_the_boundary_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def freeze(trainer: Trainer) -> None:
        if trainer.context.counts.batch == 5:
            trainer.model.get_parameter("head.bias").requires_grad_(False)
            trainer.context.optimizers[0].add_param_group({"params": [nn.Parameter(torch.ones(1))]})

    trainer = Trainer(FitLoop(max_epochs=1, epoch=EpochLoop(batch=RecoverLoop())))
    trainer.on("forward", freeze)
    with caplog.at_level(logging.WARNING):
        trainer.fit(Net(), data({5: NAN}, 8))
    assert "undone what was changed since then: requires_grad of head.bias" in caplog.text
    assert "parameters of optimizer 0" in caplog.text


def test_a_model_that_got_parts_since_the_boundary_is_told() -> None:
    class Growing(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
            self.register_buffer("seen_so_far", torch.zeros(1))
            return super().training_step(batch, batch_idx)

    trainer = Trainer(FitLoop(max_epochs=1, epoch=EpochLoop(batch=RecoverLoop())))
    with pytest.raises(NotRecovered, match=r"other parts .* 'seen_so_far' is only in the model"):
        trainer.fit(Growing(), data({0: NAN}, 8))


def test_the_end_of_an_epoch_is_not_undone() -> None:
    first, _ = trained({0: NAN}, RecoverLoop(back=3, most=4), epochs=2)
    clean, _ = trained({}, BatchLoop(), {0}, epochs=2)
    assert equal(first, clean)


def test_losses_of_batches_passed_over_are_compared_with_no_more() -> None:
    _, trainer = trained({20: HUGE}, RecoverLoop(spike=20.0, back=2))
    losses = trainer.loop["batch"].losses
    assert len(losses) == 21
    assert max(losses) < 100


def test_splits_along_time_are_undone_with_their_batch() -> None:
    class Sequences(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
            if batch_idx in self.without:
                return None
            loss: torch.Tensor = self.head(self.net(batch.flatten(0, 1))).pow(2).mean()
            return loss

    def run(batch: BatchLoop, bad: bool, without: set[int]) -> Net:
        torch.manual_seed(0)
        model = Sequences(without)
        batches = [torch.ones(2, 6, 4) * (number + 1) for number in range(6)]
        if bad:
            batches[3][:, -1] = NAN
        Trainer(FitLoop(max_epochs=1, epoch=EpochLoop(batch=batch))).fit(model, batches)
        return model

    clean = run(BatchLoop(split_steps=2), False, {3})
    assert equal(clean, run(RecoverLoop(split_steps=2), True, set()))


@pytest.mark.parametrize(
    "settings",
    [
        {"nonfinite": "yes"},
        {"spike": 0},
        {"spike": "large"},
        {"gradient_norm": -1.0},
        {"when": 3},
        {"back": -1},
        {"keep_every": 0},
        {"most": 0},
        {"lr_scale": 0},
        {"lr_scale": 1.5},
        {"lr_steps": 0},
        {"lr_steps": 5},
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        RecoverLoop(**settings)


def make_poisoned() -> Trainer:
    torch.manual_seed(0)
    loop = RecoverLoop(back=1, keep_every=2, lr_scale=0.5, lr_steps=2)
    trainer = Trainer(FitLoop(max_epochs=1, epoch=EpochLoop(batch=loop)))
    trainer.start(Net(), data({4: NAN}, 6))
    return trainer


@pytest.mark.slow
def test_stopped_at_any_boundary_of_a_recovery_it_ends_with_the_same_bits() -> None:
    assert_resumable(make_poisoned)


@pytest.mark.parametrize("stop", ["forward", "optimizer_step"])
def test_killed_within_a_batch_with_a_smaller_rate_it_goes_on_the_same(stop: str) -> None:
    whole = make_poisoned()
    whole.run()
    killed = make_poisoned()
    killed.run(until=lambda t, m: t.context.counts.batch == 5)
    killed.run(until=stop)
    state = Written.of(killed.state_dict())
    killed.loop["batch"].abandon()  # its process is gone
    resumed = make_poisoned()
    resumed.load_state_dict(state.tree())
    resumed.run()
    assert equal(whole.context.model, resumed.context.model)


@pytest.mark.parametrize("stop", ["judge", "roll_back", "batch_end"])
def test_killed_in_the_middle_of_a_recovery_it_goes_on_the_same(stop: str) -> None:
    whole = make_poisoned()
    whole.run()
    killed = make_poisoned()
    killed.run(until="roll_back" if stop != "judge" else lambda t, m: t.context.counts.batch == 5)
    if stop == "batch_end":
        killed.step()
    state = Written.of(killed.state_dict())  # as in a checkpoint
    resumed = make_poisoned()
    resumed.load_state_dict(state.tree())
    resumed.run()
    assert equal(whole.context.model, resumed.context.model)
    assert resumed.loop["batch"].history == whole.loop["batch"].history


def test_what_was_passed_over_is_in_the_journal_of_the_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    loop = FitLoop(max_epochs=1, epoch=EpochLoop(batch=RecoverLoop()))
    Trainer(loop, run=tmp_path / "run").fit(Net(), data({3: NAN}, 6))
    (found,) = [one for one in Run(tmp_path / "run").history() if one.what == "recovery"]
    assert found.facts == {"first": 3, "last": 3, "reason": "the loss is nan", "epoch": 0}


def test_steps_that_went_back_do_not_begin_anew(tmp_path: Path) -> None:
    torch.manual_seed(0)
    loop = FitLoop(max_epochs=1, epoch=EpochLoop(batch=RecoverLoop(back=2)))
    run = RunFolder(tmp_path / "run", log_every=1)
    Trainer(loop, run=run).fit(Net(), data({5: NAN}, 12))
    points = Run(tmp_path / "run").metrics("loss", part="step")
    steps = [one.step for one in points]
    assert steps != sorted(steps)
    assert {one.round for one in points} == {0}


def test_a_batch_that_went_in_pieces_is_in_the_journal_of_the_run(tmp_path: Path) -> None:
    class Short(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
            if len(batch[0]) > 3:
                raise torch.OutOfMemoryError("6 do not fit")
            return super().training_step(batch, batch_idx)

    Trainer(max_epochs=1, on_oom="split", run=tmp_path / "run").fit(Short(), data({}, 3))
    (found,) = [one for one in Run(tmp_path / "run").history() if one.what == "error"]
    assert found.facts["path"] == "fit.epoch.batch.optimizer.forward"
    assert found.facts["text"] == "OutOfMemoryError: 6 do not fit"
