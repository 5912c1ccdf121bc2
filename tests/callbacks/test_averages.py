"""An average of the weights is what is evaluated, kept as the best, and exported; the raw ones stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from statemachine_trainer import (
    EMA,
    SWA,
    Best,
    Checkpoints,
    Retention,
    Run,
    Trainer,
    load_weights,
    log,
)
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.snapshot import SnapshotMismatch
from statemachine_trainer.testing import assert_resumable

DATA = [
    torch.randn(4, 2, generator=torch.Generator().manual_seed(number)) + number
    for number in range(4)
]


class Net(nn.Module):
    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 2)
        self.norm: nn.Module = nn.BatchNorm1d(2) if norm else nn.Identity()
        self.drop = nn.Dropout(0.2)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.drop(self.norm(self.layer(batch)))
        return found

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = (self(batch) - 1).square().mean()
        return loss

    def validation_step(self, batch: torch.Tensor) -> None:
        log("val_loss", (self(batch) - 1).square().mean())

    def test_step(self, batch: torch.Tensor) -> None:
        log("test_loss", (self(batch) - 1).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


Make = Callable[[], Any]
AVERAGES: dict[str, tuple[Make, bool]] = {
    "ema": (lambda: EMA(0.8), False),
    "ema with norm": (lambda: EMA(0.8, every=2, start=1), True),
    "swa": (lambda: SWA(1), False),
    "swa with norm": (lambda: SWA(1, loader=list(DATA)), True),
}


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: one.numpy().tobytes() for name, one in model.state_dict().items()}


def fitted(
    folder: Path | None, average: Any, *, norm: bool = False, epochs: int = 3, **settings: Any
) -> tuple[Trainer, Net]:
    model = Net(norm=norm)
    checkpoints = folder and Checkpoints(folder, retention=Retention(best=Best("val_loss")))
    trainer = Trainer(
        max_epochs=epochs,
        checkpoints=checkpoints,
        callbacks=[] if average is None else [average],
        progress=False,
        device="cpu",
        seed=3,
        **settings,
    )
    trainer.fit(model, DATA, DATA)
    return trainer, model


@pytest.mark.parametrize("name", AVERAGES)
def test_the_raw_weights_are_those_of_a_fit_without_it(name: str) -> None:
    make, norm = AVERAGES[name]
    _, without = fitted(None, None, norm=norm)
    _, model = fitted(None, make(), norm=norm)
    assert bits(model) == bits(without)


def test_an_ema_is_that_of_torch() -> None:
    model = Net()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    ema = EMA(0.8)
    trainer = Trainer(max_epochs=2, callbacks=[ema], progress=False, device="cpu")
    trainer.on("batch_end", lambda trainer: averaged.update_parameters(model))
    trainer.fit(model, DATA)
    for name, parameter in averaged.module.named_parameters():
        assert torch.equal(ema.average[name], parameter)


def test_an_swa_with_batch_normalization_is_that_of_torch() -> None:
    model = Net(norm=True)
    averaged = AveragedModel(model)
    swa = SWA(loader=list(DATA))
    trainer = Trainer(max_epochs=3, callbacks=[swa], progress=False, device="cpu", seed=0)
    trainer.on("drain", lambda trainer: averaged.update_parameters(model), once=False)
    drained: list[int] = []
    trainer.on("epoch_end", lambda trainer: drained.append(trainer.epoch))
    trainer.fit(model, DATA)
    tested = trainer.test(model, DATA)["test_loss"]
    update_bn(DATA, averaged.module)
    averaged.module.eval()
    with torch.no_grad():
        expected = torch.stack([(averaged.module(one) - 1).square().mean() for one in DATA]).mean()
    assert len(drained) == 3
    assert tested == pytest.approx(expected.item())


@pytest.mark.parametrize("name", AVERAGES)
def test_what_was_measured_is_what_is_exported(tmp_path: Path, name: str) -> None:
    make, norm = AVERAGES[name]
    trainer, model = fitted(tmp_path, make(), norm=norm)
    best = Run(tmp_path).best("val_loss")
    assert best is not None
    other = Net(norm=norm)
    load_weights(other, tmp_path, best="val_loss")
    assert Trainer(progress=False).validate(other, DATA)["val_loss"] == best.value
    assert trainer.validate(model, DATA, checkpoint="best")["val_loss"] == best.value
    load_weights(other, tmp_path, average=True)
    newest = trainer.metrics["val_loss"]
    assert (
        Trainer(progress=False).test(other, DATA)["test_loss"]
        == trainer.test(model, DATA)["test_loss"]
    )
    assert newest > 0


@pytest.mark.parametrize("name", ["ema", "swa"])
def test_the_average_of_a_tied_weight_is_loaded_under_all_its_names(
    tmp_path: Path, name: str
) -> None:
    def tied() -> Net:
        net = Net()
        net.norm = nn.Linear(2, 2)
        net.norm.weight = net.layer.weight
        return net

    average = AVERAGES[name][0]()
    trainer = Trainer(
        max_epochs=3, checkpoints=tmp_path, callbacks=[average], progress=False, device="cpu"
    )
    trainer.fit(tied(), DATA)
    model = tied()
    load_weights(model, tmp_path, average=True)
    assert torch.equal(model.layer.weight, average.average["layer.weight"])
    assert model.norm.weight is model.layer.weight


def test_the_weights_of_the_model_are_raw_in_a_checkpoint(tmp_path: Path) -> None:
    _, model = fitted(tmp_path, EMA(0.8))
    other = Net()
    load_weights(other, tmp_path)
    assert bits(other) == bits(model)


def test_also_in_one_that_is_written_within_a_validation(tmp_path: Path) -> None:
    model = Net()
    checkpoints = Checkpoints(tmp_path, at_end=False, every="99 epochs")
    trainer = Trainer(
        max_epochs=2, checkpoints=checkpoints, callbacks=[EMA(0.5)], progress=False, device="cpu"
    )
    trainer.start(model, DATA, DATA)
    trainer.run(until="*.validation_step")
    trainer.checkpoint()
    averaged = bits(model)
    other = Net()
    load_weights(other, tmp_path)
    assert bits(other) != averaged
    load_weights(other, tmp_path, average=True)
    assert bits(other) == averaged
    trainer.run()
    _, without = fitted(None, None, epochs=1)
    assert bits(without) != averaged


def test_without_an_average_none_is_exported(tmp_path: Path) -> None:
    fitted(tmp_path, None)
    with pytest.raises(SnapshotMismatch, match="holds no average"):
        load_weights(Net(), tmp_path, average=True)


def test_a_fit_may_end_with_the_best_average(tmp_path: Path) -> None:
    model = Net()
    retention = Retention(best=Best("val_loss"))
    trainer = Trainer(
        max_epochs=3,
        checkpoints=Checkpoints(tmp_path, retention=retention),
        callbacks=[EMA(0.5)],
        progress=False,
        device="cpu",
    )
    trainer.fit(model, DATA, DATA, restore_best=True)
    best = Run(tmp_path).best("val_loss")
    assert best is not None
    assert Trainer(progress=False).validate(model, DATA)["val_loss"] == best.value
    assert trainer.validate(model, DATA)["val_loss"] == best.value


def test_an_evaluation_that_fails_leaves_the_model_its_raw_weights() -> None:
    trainer, model = fitted(None, EMA(0.5))
    before = bits(model)
    with pytest.raises(RuntimeError):
        trainer.test(model, [torch.ones(4, 7)])
    assert bits(model) == before


class Fails(Net):
    """Its second validation batch raises, as often as it is told."""

    def __init__(self, times: int, *, norm: bool = False) -> None:
        super().__init__(norm=norm)
        self.left = times

    def validation_step(self, batch: torch.Tensor) -> None:
        if self.left and torch.equal(batch, DATA[1]):
            self.left -= 1
            raise RuntimeError("on purpose")
        super().validation_step(batch)


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("between", ["nothing", "evaluation", "checkpoint"])
def test_a_validation_of_the_fit_that_fails_leaves_the_raw_weights(
    name: str, between: str, tmp_path: Path
) -> None:
    make, norm = AVERAGES[name]

    def settings() -> dict[str, Any]:
        return {"max_epochs": 2, "callbacks": [make()], "sanity_batches": 0, "progress": False}

    whole = Trainer(**settings())
    whole.fit(without := Net(norm=norm), DATA, DATA)
    plain = Net(norm=norm)
    Trainer(**{**settings(), "callbacks": [], "max_epochs": 1}).fit(plain, DATA)
    trainer = Trainer(**settings(), checkpoints=Checkpoints(tmp_path, background=False))
    model = Fails(1, norm=norm)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(model, DATA, DATA)
    assert bits(model) == bits(plain)
    if between == "evaluation":
        trainer.validate(model, DATA)
        assert bits(model) == bits(plain)
    if between == "checkpoint":
        trainer.checkpoint()
        trainer, model = Trainer(**settings()), Fails(0, norm=norm)
        trainer.fit(model, DATA, DATA, resume=tmp_path)
    else:
        trainer.run()
    assert trainer.metrics["val_loss"] == whole.metrics["val_loss"]
    assert bits(model) == bits(without)


def test_a_fit_that_begins_anew_after_an_error_begins_with_the_weights_of_the_model() -> None:
    settings: dict[str, Any] = {"max_epochs": 1, "sanity_batches": 0, "progress": False, "seed": 3}
    trainer, model = Trainer(callbacks=[EMA(0.5)], **settings), Fails(1)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(model, DATA, DATA)
    other = Net()
    other.load_state_dict(model.state_dict())
    trainer.fit(model, DATA, DATA, restart=True)
    Trainer(**settings).fit(other, DATA, DATA)
    assert bits(model) == bits(other)


def test_batch_normalization_needs_a_loader_of_its_own() -> None:
    trainer = Trainer(max_epochs=1, callbacks=[SWA()], progress=False)
    with pytest.raises(SettingError, match="has batch normalization"):
        trainer.fit(Net(norm=True), DATA)


@pytest.mark.parametrize(
    "make",
    [lambda: EMA(1.0), lambda: EMA(every=0), lambda: SWA(-1), lambda: SWA(loader=3)],  # type: ignore[arg-type]
)
def test_settings_that_mean_nothing_are_refused(make: Make) -> None:
    with pytest.raises(SettingError, match=r"EMA|SWA"):
        make()


@pytest.mark.parametrize("name", AVERAGES)
def test_it_resumes_anywhere(name: str) -> None:
    make, norm = AVERAGES[name]

    def make_trainer() -> Trainer:
        trainer = Trainer(
            max_epochs=2,
            accumulate=3,
            callbacks=[make()],
            progress=False,
            device="cpu",
            sanity_batches=0,
        )
        trainer.start(Net(norm=norm), DATA, DATA[:2])
        return trainer

    assert_resumable(make_trainer, examples=12, seed=1)
