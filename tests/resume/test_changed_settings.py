"""What a script has changed since a checkpoint was written is told, with which of the two values holds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR
from torch.utils.data import DataLoader

from statemachine_trainer import (
    Checkpoints,
    EarlyStopping,
    FitLoop,
    Phase,
    PhasesLoop,
    Retention,
    Run,
    Trainer,
    every,
    log,
)
from statemachine_trainer.audit.settings_record import SettingsChanged
from statemachine_trainer.data import DataChanged
from statemachine_trainer.loops.loop_errors import ModelError, SettingError
from statemachine_trainer.snapshot.snapshot_errors import SnapshotMismatch

DATA: Any = torch.ones(8, 2)
BATCHES = [torch.ones(4, 2)] * 4
MakeScheduler = Callable[[Optimizer], Any]


class Net(nn.Module):
    def __init__(
        self,
        optimizer: Callable[..., Optimizer] = SGD,
        scheduler: MakeScheduler | None = None,
        *,
        dropout: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(2, 1), nn.Dropout(dropout))
        self.make: Any = lambda: optimizer(self.parameters(), **{"lr": 0.1, **settings})
        self.scheduler = scheduler

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = (self.layers(batch) - 1).pow(2).mean()
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        log("val", 1.0)

    def configure_optimizers(self) -> Any:
        optimizer = self.make()
        if self.scheduler is None:
            return optimizer
        config = {"scheduler": self.scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": config}


def make_trainer(folder: Path, epochs: int = 1, **settings: Any) -> Trainer:
    return Trainer(max_epochs=epochs, progress=False, checkpoints=folder, **settings)


def rates(trainer: Trainer) -> list[float]:
    """Note the learning rate at the start of each batch from now on."""
    found: list[float] = []
    trainer.on("batch_start", lambda trainer: found.append(rate(trainer)))
    return found


def rate(trainer: Trainer) -> float:
    return round(float(trainer.context.optimizers[0].param_groups[0]["lr"]), 6)


@contextmanager
def changes(*lines: str) -> Iterator[None]:
    """Expect one warning, of just these changes."""
    with pytest.warns(SettingsChanged) as caught:
        yield
    (one,) = [w for w in caught if w.category is SettingsChanged]
    found = [line.strip("- \n") for line in str(one.message).splitlines()[1:]]
    assert [line for line in found if line.startswith(lines)] == found
    assert len(found) == len(lines)


def test_a_learning_rate_of_the_script_is_told_and_that_of_the_checkpoint_holds(
    tmp_path: Path,
) -> None:
    make_trainer(tmp_path).fit(Net(), BATCHES)
    trainer = make_trainer(tmp_path, 2)
    noted = rates(trainer)
    with changes(
        "fit (FitLoop): max_epochs was 1, is 2 now. The script's holds",
        "optimizer 0 (SGD), group 0: lr was 0.1, is 0.001 now. The checkpoint's holds; for the "
        "script's say fit(..., fresh=('optimizer',)).",
    ):
        trainer.fit(Net(lr=0.001), BATCHES, resume="auto")
    assert noted == [0.1] * 4


def test_what_holds_is_told_once_and_not_after_it_was_taken_over(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit(Net(), BATCHES)
    with pytest.warns(SettingsChanged):
        make_trainer(tmp_path, 2).fit(Net(weight_decay=0.5), BATCHES, resume="auto")
    make_trainer(tmp_path, 3).fit(Net(), BATCHES, resume="auto")  # that of the first holds still


def test_fresh_takes_the_optimizer_of_the_script(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit(Net(Adam), BATCHES)
    trainer = make_trainer(tmp_path, 2)
    noted = rates(trainer)
    model = Net(lr=0.001)  # of another class
    trainer.fit(model, BATCHES, resume="auto", fresh=("optimizer",))
    assert noted == [0.001] * 4
    assert trainer.steps == 8


def test_the_horizon_of_a_scheduler_is_told_and_fresh_takes_the_new_one(tmp_path: Path) -> None:
    def cosine(steps: int) -> MakeScheduler:
        return lambda optimizer: CosineAnnealingLR(optimizer, T_max=steps)

    make_trainer(tmp_path / "a").fit(Net(scheduler=cosine(4)), BATCHES)
    trainer = make_trainer(tmp_path / "a", 2)
    with changes("fit (FitLoop)", "CosineAnnealingLR of optimizer 0: T_max was 4, is 12 now"):
        trainer.fit(Net(scheduler=cosine(12)), BATCHES, resume="auto")

    make_trainer(tmp_path / "b").fit(Net(scheduler=cosine(4)), BATCHES)
    trainer = make_trainer(tmp_path / "b", 2)
    noted = rates(trainer)
    with pytest.warns(
        SettingsChanged, match="T_max was 4, is 12 now. The script's holds, by fresh="
    ):
        trainer.fit(Net(scheduler=cosine(12)), BATCHES, resume="auto", fresh="schedulers")
    assert noted[:2] == [0.1, 0.098296]


def test_schedulers_go_on_with_a_fresh_optimizer(tmp_path: Path) -> None:
    def halving(optimizer: Optimizer) -> StepLR:
        return StepLR(optimizer, 1, 0.5)

    make_trainer(tmp_path).fit(Net(scheduler=halving), BATCHES)
    trainer = make_trainer(tmp_path, 2)
    noted = rates(trainer)
    trainer.fit(Net(Adam, halving), BATCHES, resume="auto", fresh=("optimizer",))
    assert noted == [0.00625, 0.003125, 0.001563, 0.000781]


def test_a_script_that_is_started_again_takes_its_own_once(tmp_path: Path) -> None:
    """Else each restart after a preemption would throw away what the optimizer has learned."""
    make_trainer(tmp_path).fit(Net(Adam), BATCHES)
    whole = make_trainer(tmp_path, 2)
    model = Net(Adam, lr=0.01)
    with pytest.warns(SettingsChanged):
        whole.fit(model, BATCHES, resume="auto", fresh=("optimizer",), until="batch:batch_done")
    whole.checkpoint()
    whole.run()

    restarted = make_trainer(tmp_path, 2)
    again = Net(Adam, lr=0.01)
    newest = sorted(tmp_path.glob("0*"))[1]
    restarted = Trainer(max_epochs=2, progress=False)
    restarted.fit(again, BATCHES, resume=newest, fresh=("optimizer",))
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("fresh", ["weights", ("optimizer", "data"), 1, None, [("optimizer",)]])
def test_fresh_names_what_there_is(fresh: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="fresh="):
        make_trainer(tmp_path).fit(Net(), BATCHES, resume="auto", fresh=fresh)


def test_fresh_needs_a_checkpoint_to_take_the_rest_from(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="none was named"):
        make_trainer(tmp_path).fit(Net(), BATCHES, fresh=("optimizer",))


@pytest.mark.parametrize(
    "settings, line",
    [
        (
            {"accumulate": 2},
            "fit.epoch.batch.optimizer (OptimizerLoop): accumulate was 1, is 2 now",
        ),
        (
            {"clip_norm": 1.0},
            "fit.epoch.batch.optimizer (OptimizerLoop): clip_norm was None, is 1.0",
        ),
        ({"seed": 7}, "the trainer: seed was None, is 7 now. The random numbers of the checkpoint"),
        ({"validate_epochs": 2}, "fit.epoch (EpochLoop): validate_epochs was 1, is 2 now"),
        ({"limit_train_batches": 3}, "fit.epoch (EpochLoop): limit_batches was None, is 3 now"),
    ],
)
def test_settings_of_loops_and_of_the_trainer_are_the_scripts(
    settings: dict[str, Any], line: str, tmp_path: Path
) -> None:
    make_trainer(tmp_path).fit(Net(), BATCHES)
    with changes("fit (FitLoop)", line):
        make_trainer(tmp_path, 2, **settings).fit(Net(), BATCHES, resume="auto")


def test_what_a_phase_changes_is_told(tmp_path: Path) -> None:
    def start(**changes: Any) -> None:
        loop = PhasesLoop(Phase("only", FitLoop(max_epochs=2), **changes))
        trainer = Trainer(loop, progress=False, checkpoints=tmp_path)
        trainer.start(Net(), BATCHES, resume="auto")
        trainer.run(until="epoch_end")
        trainer.checkpoint()

    start(freeze=["layers.0.bias"], settings={"lr": 0.05})
    start(freeze=["layers.0.bias"], settings={"lr": 0.05})
    with changes(
        "phase 'only' of fit (Phase): freeze was ['layers.0.bias'], is [] now. What the phase",
        "phase 'only' of fit (Phase): settings was {'lr': 0.05}, is {'lr': 0.01} now.",
    ):
        start(freeze=[], settings={"lr": 0.01})


def test_what_layers_are_set_to_is_told(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit(Net(), BATCHES)
    with changes("fit (FitLoop)", "model.layers.1 (Dropout): p was 0.0, is 0.5 now. The script's"):
        make_trainer(tmp_path, 2).fit(Net(dropout=0.5), BATCHES, resume="auto")


def test_layers_without_weights_that_are_new_or_others_are_told(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit(Net(), BATCHES)
    model = Net()
    model.layers[1] = nn.Tanh()
    model.layers.append(nn.ReLU())
    with changes(
        "fit (FitLoop)",
        "the model: layers.1 was Dropout, is Tanh now. The script's holds",
        "the model: layers.2 was not there, is ReLU now.",
    ):
        make_trainer(tmp_path, 2).fit(model, BATCHES, resume="auto")


def test_another_class_of_the_model_is_told(tmp_path: Path) -> None:
    class Doubled(Net):
        def forward(self, inputs: torch.Tensor) -> Any:
            return 2 * super().forward(inputs)

    make_trainer(tmp_path).fit(Net(), BATCHES)
    with changes("fit (FitLoop)", "the fit: model was Net, is Doubled now. The script's"):
        make_trainer(tmp_path, 2).fit(Doubled(), BATCHES, resume="auto")


def test_what_a_script_freezes_is_told_and_not_taken(tmp_path: Path) -> None:
    first = make_trainer(tmp_path)
    first.fit(Net(), BATCHES, until="epoch_end")
    first.checkpoint()
    net = Net()
    net.layers[0].bias.requires_grad_(False)
    net.layers[1].eval()
    holds = (
        "The checkpoint's holds; for the script's set it after `start`, or load only the weights."
    )
    with changes(
        f"the model: frozen was nothing, is layers.0.bias now. {holds}",
        f"the model: in evaluation mode was nothing, is layers.1 now. {holds}",
    ):
        make_trainer(tmp_path).start(net, BATCHES, resume="auto")
    assert net.layers[0].bias.requires_grad


def test_a_weight_that_was_tied_at_the_checkpoint_is_told(tmp_path: Path) -> None:
    def net() -> Net:
        made = Net()
        made.layers.append(nn.Linear(1, 1))
        made.make = lambda: SGD(made.layers[0].parameters(), lr=0.1)
        return made

    first, tied = make_trainer(tmp_path), net()
    first.start(tied, BATCHES)
    tied.layers[2].bias = tied.layers[0].bias
    first.run()
    with changes(
        "fit (FitLoop)",
        "the model: tied was layers.0.bias = layers.2.bias, is nothing now. The script's holds",
    ):
        make_trainer(tmp_path, 2).fit(net(), BATCHES, resume="auto")


def test_a_buffer_that_was_another_one_too_at_the_checkpoint_is_told(tmp_path: Path) -> None:
    def net() -> Net:
        made = Net()
        made.register_buffer("one", torch.zeros(1))
        made.register_buffer("other", torch.zeros(1))
        return made

    first, model = make_trainer(tmp_path), net()
    first.start(model, BATCHES)
    model.other = model.one
    first.run()
    with changes(
        "fit (FitLoop)",
        "the model: tied buffers was one = other, is nothing now. The script's holds",
    ):
        make_trainer(tmp_path, 2).fit(net(), BATCHES, resume="auto")


def test_what_the_run_itself_has_frozen_is_not_told(tmp_path: Path) -> None:
    def freeze(trainer: Any) -> None:
        trainer.model.layers[0].bias.requires_grad_(False)

    first = make_trainer(tmp_path)
    first.on("batch_start", freeze)
    first.fit(Net(), BATCHES, until="epoch_end")
    first.checkpoint()
    net, second = Net(), make_trainer(tmp_path)
    second.on("batch_start", freeze)
    second.start(net, BATCHES, resume="auto")
    assert not net.layers[0].bias.requires_grad


def test_another_loss_is_told(tmp_path: Path) -> None:
    batches = [(torch.ones(4, 2), torch.ones(4, 1))]
    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), 0.1)
    make_trainer(tmp_path).fit(model, batches, loss=nn.MSELoss(), optimizer=optimizer)
    optimizer = SGD(model.parameters(), 0.1)
    with changes("fit (FitLoop)", "the trainer: loss was MSELoss, is L1Loss now. The script's"):
        make_trainer(tmp_path, 2).fit(
            model, batches, loss=nn.L1Loss(), optimizer=optimizer, resume="auto"
        )


def test_what_a_loader_is_set_to_is_told_between_epochs(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit(Net(), DataLoader(DATA, batch_size=2))
    with changes(
        "fit (FitLoop)",
        "data train: batch_size was 2, is 4 now. The script's holds",
        "data train: sampler was SequentialSampler, is RandomSampler now.",
    ):
        loader = DataLoader(DATA, batch_size=4, shuffle=True)
        make_trainer(tmp_path, 2).fit(Net(), loader, resume="auto")


def test_within_an_epoch_another_sampler_is_refused_by_its_name(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.start(Net(), DataLoader(DATA, batch_size=4))
    trainer.run(until="batch_end")
    trainer.checkpoint()
    loader = DataLoader(DATA, batch_size=4, shuffle=True)
    with pytest.raises(DataChanged, match="sampler was SequentialSampler, is RandomSampler"):
        make_trainer(tmp_path).fit(Net(), loader, resume="auto")


def test_more_epochs_alone_are_no_surprise(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit(Net(), BATCHES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_trainer(tmp_path, 2).fit(Net(), BATCHES, resume="auto")


# -- Runs that early stopping has ended -----------------------------------------------------------


def stopped_run(folder: Path) -> None:
    trainer = make_trainer(folder, 20, callbacks=[EarlyStopping("val", patience=2)])
    trainer.fit(Net(), BATCHES, BATCHES[:1])
    assert trainer.epoch == 3


def test_with_more_patience_a_run_goes_on_as_if_it_always_had_it(tmp_path: Path) -> None:
    stopped_run(tmp_path)
    stopping = EarlyStopping("val", patience=5)
    trainer = make_trainer(tmp_path, 20, callbacks=[stopping])
    with changes("callback 0 (EarlyStopping): patience was 2, is 5 now. The script's holds"):
        trainer.fit(Net(), BATCHES, BATCHES[:1], resume="auto")
    assert (trainer.epoch, stopping.waited) == (6, 5)


def test_without_early_stopping_it_goes_on_if_that_is_said(tmp_path: Path) -> None:
    stopped_run(tmp_path)
    with pytest.raises(SnapshotMismatch, match=r'fresh=\("callbacks",\)'):
        make_trainer(tmp_path, 5).fit(Net(), BATCHES, BATCHES[:1], resume="auto")
    trainer = make_trainer(tmp_path, 5)
    trainer.fit(Net(), BATCHES, BATCHES[:1], resume="auto", fresh=("callbacks",))
    assert trainer.epoch == 5


def test_with_the_same_patience_it_stays_ended_and_more_epochs_are_told_to_change_nothing(
    tmp_path: Path,
) -> None:
    stopped_run(tmp_path)
    trainer = make_trainer(tmp_path, 30, callbacks=[EarlyStopping("val", patience=2)])
    with pytest.warns(SettingsChanged, match="had ended and stays so"):
        trainer.fit(Net(), BATCHES, BATCHES[:1], resume="auto")
    assert trainer.epoch == 3


def test_patience_goes_on_where_a_limit_had_ended_the_run(tmp_path: Path) -> None:
    for epochs in (2, 5):
        stopping = EarlyStopping("val", patience=2)
        trainer = make_trainer(tmp_path, epochs, callbacks=[stopping])
        trainer.fit(Net(), BATCHES, BATCHES[:1], resume="auto")
    assert trainer.epoch == 3  # the best in the first epoch, and two that are no better


def test_a_run_that_has_ended_stays_ended_when_it_is_started_again(tmp_path: Path) -> None:
    for _ in range(2):
        trainer = make_trainer(tmp_path)
        trainer.fit(Net(), BATCHES, resume="auto")
        del trainer
        assert Run(tmp_path).status == "ended"
    trainer = make_trainer(tmp_path, 2)
    trainer.fit(Net(), BATCHES, resume="auto", until="batch_end")
    assert Run(tmp_path).status == "paused"


class AccumulatesMore:
    """Steps every second batch from the second epoch on."""

    def __init__(self, *, remembers: bool) -> None:
        self.remembers = remembers

    def on_next_epoch(self, trainer: Trainer) -> None:
        self.set(trainer, 2 if trainer.epoch else 1)

    def set(self, trainer: Trainer, accumulate: int) -> None:
        trainer.loop["epoch.batch.optimizer"].accumulate = accumulate
        self.trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        return {"accumulate": self.trainer.loop["epoch.batch.optimizer"].accumulate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.remembers:
            self.set(self.trainer, state["accumulate"])


@pytest.mark.parametrize("remembers", [True, False])
def test_what_the_run_itself_has_set_is_told_unless_it_is_so_again(
    tmp_path: Path, remembers: bool
) -> None:
    def trainer() -> Trainer:
        callback = AccumulatesMore(remembers=remembers)
        checkpoints = Checkpoints(tmp_path, every=every(1, "step"))
        one = Trainer(max_epochs=3, progress=False, checkpoints=checkpoints, callbacks=[callback])
        callback.trainer = one
        return one

    first = trainer()
    first.fit(Net(), BATCHES, until=lambda trainer: trainer.steps == 5)
    del first
    if remembers:
        trainer().fit(Net(), BATCHES, resume="auto")
    else:
        with changes("fit.epoch.batch.optimizer (OptimizerLoop): accumulate was 2, is 1 now."):
            trainer().fit(Net(), BATCHES, resume="auto")


# -- code and classes of the same name ---------------------------------------------------------------


def collate_by(factor: float) -> Any:
    def collate(samples: Any) -> Any:
        return torch.stack(samples) * factor

    def other(samples: Any) -> Any:
        return torch.stack(samples) + factor

    other.__qualname__ = collate.__qualname__
    return collate if factor == 1.0 else other


def test_another_collate_function_of_the_same_name_is_told(tmp_path: Path) -> None:
    def fit(epochs: int, factor: float) -> None:
        samples: Any = [*torch.ones(4, 2)]
        data = DataLoader(samples, batch_size=2, collate_fn=collate_by(factor))
        make_trainer(tmp_path, epochs).fit(Net(), data, resume="auto")

    fit(1, 1.0)
    fit(2, 1.0)
    with changes(
        "fit (FitLoop): max_epochs was 2, is 3 now",
        "data train: collate_fn (code in Python ",
    ):
        fit(3, 2.0)


def own_optimizer(setting: str) -> type[torch.optim.Optimizer]:
    class Own(torch.optim.Optimizer):
        def __init__(self, parameters: Any, **_: Any) -> None:
            super().__init__(parameters, {setting: 0.1})

        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.add_(parameter.grad, alpha=-group[setting])

    return Own


def test_a_retention_that_keeps_less_is_told_before_anything_is_deleted(tmp_path: Path) -> None:
    def keeping(last: int) -> Checkpoints:
        return Checkpoints(tmp_path, every=1, retention=Retention(last=last))

    first = Trainer(max_epochs=1, progress=False, checkpoints=keeping(3))
    first.fit(Net(), BATCHES)
    second = Trainer(max_epochs=1, progress=False, checkpoints=keeping(1))
    with changes(
        "the checkpoints: retention was Retention(last=3, best=(), every=()), "
        "is Retention(last=1, best=(), every=()) now. The script's holds; for the checkpoint's set it there.",
        "The run had ended",
    ):
        second.start(Net(), BATCHES, resume="auto")
    assert len([*tmp_path.glob("0*")]) == 3


def test_an_optimizer_of_the_same_name_with_other_settings_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit(Net(own_optimizer("rate")), BATCHES)
    told = r"another Own: group 0 .* has 'rate', and not .*'lr'.*fresh="
    with pytest.raises(SnapshotMismatch, match=told):
        make_trainer(tmp_path, 2).fit(Net(own_optimizer("lr")), BATCHES, resume="auto")


def test_a_model_or_a_device_without_numbers_is_refused_before_torch_says_anything(
    tmp_path: Path,
) -> None:
    with torch.device("meta"):
        empty = Net()
    with pytest.raises(
        ModelError, match=r"'.*weight' of the Net is on the device 'meta'.*to_empty"
    ):
        make_trainer(tmp_path / "one").fit(empty, BATCHES)
    with pytest.raises(SettingError, match=r"device='meta', checkpoints="):
        make_trainer(tmp_path / "two", device="meta").fit(Net(), BATCHES)
