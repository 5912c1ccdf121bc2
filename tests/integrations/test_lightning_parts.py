"""What a LightningModule finds around it in our trainer."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("lightning", reason="needs the extra `lightning`")

import lightning as L
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
    ModelCheckpoint,
    Timer,
)

from statemachine_trainer import FitLoop, Trainer
from statemachine_trainer.integrations import lightning
from statemachine_trainer.loops.loop_errors import ModelError, NothingToDo
from statemachine_trainer.loops.recipes.kfold import KFoldLoop
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.testing import assert_resumable
from tests.integrations.lightning_kit import (
    Classifier,
    assert_same_bits,
    both,
    data,
    fit_in_lightning,
    fit_in_ours,
    noting,
    quiet,
)


def trainer(**settings: Any) -> Trainer:
    settings.setdefault("max_epochs", 1)
    return Trainer(device="cpu", progress=False, **settings)


class Data(L.LightningDataModule):
    """Notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def prepare_data(self) -> None:
        self.asked.append("prepare")

    def setup(self, stage: str) -> None:
        self.asked.append(f"setup {stage}")

    def teardown(self, stage: str) -> None:
        self.asked.append(f"teardown {stage}")

    def train_dataloader(self) -> Any:
        self.asked.append("train")
        return data()

    def val_dataloader(self) -> Any:
        return data(40, 20, shuffle=False)

    def test_dataloader(self) -> Any:
        return data(40, 20, shuffle=False)

    def predict_dataloader(self) -> Any:
        return data(20, 10, shuffle=False)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        inputs, targets = batch
        return inputs * 0.5, targets


# -- data -----------------------------------------------------------------------------------------


def test_a_data_module_gives_the_same_bits_in_both() -> None:
    def make(notes: list[str]) -> Any:
        return noting(Classifier, notes)(), []

    theirs = fit_in_lightning(make, datamodule=Data(), max_epochs=2)
    ours = fit_in_ours(make, datamodule=Data(), max_epochs=2)
    assert_same_bits(theirs, ours)


def test_a_data_module_is_set_up_asked_and_torn_down() -> None:
    found = Data()
    model = lightning.module(Classifier(), datamodule=found)
    one = trainer()
    one.fit(model)
    assert found.asked == ["prepare", "setup fit", "train", "teardown fit"]
    assert set(one.validate(model)) == {"val_loss"}
    assert set(one.test(model)) == {"test_loss"}
    assert [
        answer.shape for answer in one.predict(lightning.module(Predicting(), datamodule=found))
    ]
    assert "setup test" in found.asked
    assert "teardown predict" in found.asked


class Predicting(Classifier):
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])


def test_a_data_module_makes_its_loader_anew_where_the_trainer_reloads() -> None:
    found = Data()
    trainer(max_epochs=3, reload_every=1).fit(lightning.module(Classifier(), datamodule=found))
    assert found.asked.count("train") == 3


class WithLoaders(Classifier):
    def train_dataloader(self) -> Any:
        return data()


def test_loaders_of_the_module_itself_are_used() -> None:
    model = lightning.module(WithLoaders())
    trainer(max_epochs=2).fit(model)
    assert model.module.global_step == 12


def test_without_data_the_error_says_so() -> None:
    with pytest.raises(NothingToDo, match="validate needs data"):
        trainer().validate(lightning.module(Classifier()))


def test_hooks_that_move_batches_are_called_in_the_order_of_lightning() -> None:
    def make(notes: list[str]) -> Any:
        class Moving(Classifier):
            def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
                notes.append("before")
                return batch

            def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
                notes.append(f"to {device}")
                return batch

            def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
                notes.append("after")
                return [batch[0] + 1, batch[1]]

        return Moving(), [noting(Callback, notes)()]

    theirs, ours = both(make, data, lambda: data(40, 20, shuffle=False), max_epochs=2)
    assert_same_bits(theirs, ours)
    assert ours.notes == theirs.notes


def test_a_step_that_reads_its_data_itself_is_refused() -> None:
    class Reading(Classifier):
        def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
            return next(dataloader_iter)

    with pytest.raises(lightning.NotSupported, match=r"training_step\(batch, batch_idx\)"):
        lightning.module(Reading())


class TwoValidations(Classifier):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch))
        self.log(f"loss_of_{dataloader_idx}", self.loss(batch), add_dataloader_idx=False)


def test_names_of_metrics_of_several_loaders_are_those_of_lightning() -> None:
    def make(notes: list[str]) -> Any:
        return noting(TwoValidations, notes)(), []

    def loaders() -> Any:
        return [data(20, 10, shuffle=False), data(40, 20, shuffle=False)]

    theirs, ours = both(make, data, loaders, max_epochs=1)
    assert ours.notes == theirs.notes
    assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-6)
    assert {"val_loss/dataloader_idx_1", "loss_of_0"} <= ours.metrics.keys()


# -- evaluations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["validate", "test", "predict"])
def test_hooks_of_an_evaluation_come_in_the_same_order(kind: str) -> None:
    notes: list[str] = []
    theirs = noting(Predicting, notes)()
    callback = noting(Callback, notes, "callback.")()
    with quiet():
        runner = L.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[callback],
        )  # fmt: skip
        getattr(runner, kind)(theirs, data(40, 20, shuffle=False), **_silent(kind))
    expected, notes[:] = list(notes), []
    ours = lightning.module(noting(Predicting, notes)(), callbacks=callback)
    getattr(trainer(), kind)(ours, data(40, 20, shuffle=False))
    assert notes == expected


def _silent(kind: str) -> dict[str, Any]:
    return {} if kind == "predict" else {"verbose": False}


def test_evaluations_run_without_gradients_in_evaluation_mode_and_put_the_modes_back() -> None:
    seen: list[tuple[bool, bool]] = []

    class Looking(Classifier):
        def _look(self) -> None:
            seen.append((self.training, torch.is_grad_enabled()))

        def on_validation_start(self) -> None:
            self._look()

        def on_validation_end(self) -> None:
            self._look()

        def on_train_epoch_end(self) -> None:
            assert (self.training, torch.is_grad_enabled()) == (True, True)

    trainer().fit(lightning.module(Looking()), data(), data())
    assert set(seen) == {(False, False)}
    assert len(seen) == 4


# -- the trainer that a module sees ---------------------------------------------------------------


def test_a_module_reads_of_the_trainer_what_modules_commonly_read() -> None:
    seen: dict[str, Any] = {}

    class Reading(Classifier):
        def configure_optimizers(self) -> Any:
            seen["steps"] = self.trainer.estimated_stepping_batches
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, 0.1, total_steps=seen["steps"]
            )
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if batch_idx == 0 and self.current_epoch == 1:
                one: Any = self.trainer
                rates: Any = self.lr_schedulers()
                seen.update(
                    epoch=one.current_epoch, step=one.global_step, batches=one.num_training_batches,
                    last=one.is_last_batch, limits=(one.max_epochs, one.max_steps), fn=one.state.fn.value,
                    training=one.training, optimizers=len(one.optimizers), world=one.world_size,
                    accumulate=one.accumulate_grad_batches, clip=one.gradient_clip_val,
                    device=self.device.type, logger=self.logger, known="val_loss" in one.callback_metrics,
                    validations=one.num_val_batches, stop=one.should_stop,
                    rate=rates.get_last_lr()[0] > 0,
                )  # fmt: skip
            return super().training_step(batch, batch_idx)

    trainer(max_epochs=3, accumulate=2, clip_norm=0.5).fit(
        lightning.module(Reading()), data(), data()
    )
    assert seen == {
        "steps": 9, "epoch": 1, "step": 3, "batches": 6, "last": False, "limits": (3, -1), "fn": "fit",
        "training": True, "optimizers": 1, "world": 1, "accumulate": 2, "clip": 0.5, "device": "cpu",
        "logger": None, "known": True, "validations": [6], "stop": False, "rate": True,
    }  # fmt: skip


def test_steps_are_estimated_as_by_lightning() -> None:
    class Estimating(Classifier):
        def configure_optimizers(self) -> Any:
            self.estimated = self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

    for settings in ({"max_epochs": 2}, {"max_epochs": 2, "max_steps": 3}, {"max_steps": 5}):
        settings["limit_train_batches"] = 4
        theirs, ours = both(lambda notes: (Estimating(), []), data, **settings)
        assert ours.module.estimated == theirs.module.estimated
    unsized = lightning.module(Estimating())
    trainer().fit(unsized, lambda: iter(list(data())))
    assert unsized.module.estimated == math.inf


def test_what_does_not_exist_here_says_so_and_what_to_do() -> None:
    model = lightning.module(Classifier())
    trainer().fit(model, data())
    with pytest.raises(lightning.NotAvailable, match=r"trainer\.tuner.*learning rate"):
        _ = model.module.trainer.tuner
    with pytest.raises(lightning.NotAvailable, match=r"trainer\.strategy\.cluster_environment"):
        _ = model.module.trainer.strategy.cluster_environment
    assert not hasattr(model.module.trainer, "anything")
    with pytest.raises(
        lightning.NotAvailable, match=r"trainer\.fit_loop\.advance.*trainer\.owner\.loop"
    ):
        model.module.trainer.fit_loop.advance()


def test_something_that_is_no_lightning_module_is_refused() -> None:
    with pytest.raises(lightning.NotALightningModule, match="as it is"):
        lightning.module(nn.Linear(1, 1))
    assert issubclass(lightning.LightningError, StateMachineError)


def test_a_module_that_was_not_wrapped_is_refused_with_the_way_to_do_it() -> None:
    with pytest.raises(ModelError, match=r"Give `lightning\.module\(model\)`"):
        trainer().fit(Classifier(), data())


def test_a_module_in_a_wrapper_is_refused_with_the_way_to_do_it() -> None:
    with pytest.raises(lightning.NotALightningModule, match="Give it the module inside"):
        lightning.module(nn.DataParallel(Classifier()))


def test_a_module_logs_with_a_reduction_that_is_not_known_and_is_told() -> None:
    class Odd(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.log("odd", 1.0, on_epoch=True, reduce_fx=torch.median)
            return self.loss(batch)

    with pytest.raises(lightning.NotSupported, match="torchmetrics"):
        trainer().fit(lightning.module(Odd()), data())


def test_should_stop_ends_the_fit_with_its_epoch_and_may_be_taken_back() -> None:
    class Stopping(Classifier):
        def on_train_batch_end(self, *_: Any) -> None:
            self.trainer.should_stop = True
            assert self.trainer.should_stop
            if self.global_step < 8:
                self.trainer.should_stop = False

    model = lightning.module(Stopping())
    one = trainer(max_epochs=5)
    one.fit(model, data())
    assert (one.steps, one.epoch) == (8, 2)


def test_after_a_lightning_module_the_trainer_trains_a_plain_model() -> None:
    one = trainer()
    hooks: list[str] = []
    model = lightning.module(noting(Classifier, hooks)())
    one.fit(model, data())
    assert type(one.loop["epoch.batch.optimizer"]).__name__ == "LightningOptimizerLoop"
    count = len(hooks)
    plain = nn.Linear(8, 3)
    one.fit(
        plain,
        data(),
        loss=nn.functional.cross_entropy,
        optimizer=torch.optim.SGD(plain.parameters(), 0.1),
    )
    assert type(one.loop["epoch.batch.optimizer"]).__name__ == "OptimizerLoop"
    assert len(hooks) == count


def test_fit_called_again_with_the_same_model_goes_on() -> None:
    model = lightning.module(Classifier())
    one = trainer()
    one.fit(model, data())
    one.loop.max_epochs = 3
    one.fit(model)
    assert (one.epoch, model.module.global_step) == (3, 18)


def test_weights_have_the_names_that_they_have_in_the_module() -> None:
    module = Classifier()
    model = lightning.module(module)
    assert list(model.state_dict()) == list(module.state_dict())
    assert [name for name, _ in model.named_parameters()] == [
        n for n, _ in module.named_parameters()
    ]
    model.eval()
    assert not module.net.training
    assert model(torch.zeros(2, 8)).shape == (2, 3)


# -- callbacks ------------------------------------------------------------------------------------


def test_model_checkpoint_of_lightning_writes_what_lightning_loads(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, monitor="val_loss", filename="{epoch}-{step}", save_top_k=1)
    module = Classifier(lr=0.05)
    trainer(max_epochs=3).fit(lightning.module(module, callbacks=saving), data(), data(40, 20))
    files = list(tmp_path.glob("*.ckpt"))
    assert [Path(saving.best_model_path)] == files
    loaded = Classifier.load_from_checkpoint(files[0])
    assert loaded.hparams["lr"] == 0.05
    assert loaded.state_dict().keys() == module.state_dict().keys()


def test_callbacks_of_the_module_take_the_place_of_those_given() -> None:
    class Configuring(Classifier):
        def configure_callbacks(self) -> Any:
            return EarlyStopping("val_loss", patience=7)

    model = lightning.module(Configuring(), callbacks=[EarlyStopping("loss"), Timer("00:01:00:00")])
    trainer().fit(model, data(), data())
    kinds = [type(one).__name__ for one in model.hooks.callbacks]
    assert kinds == ["Timer", "EarlyStopping"]
    assert model.hooks.callbacks[1].patience == 7


def test_an_evaluation_leaves_the_callbacks_of_a_paused_fit_alone() -> None:
    class Configuring(Classifier):
        def configure_callbacks(self) -> Any:
            return Counting()

    model = lightning.module(Configuring())
    one = trainer(max_epochs=2)
    one.fit(model, data(), until="epoch_end")
    counting = model.hooks.callbacks[0]
    one.validate(model, data())
    one.run()
    assert model.hooks.callbacks == [counting]
    assert (counting.batches, model.module.global_step, model.module.current_epoch) == (12, 12, 2)


def test_a_lightning_module_goes_through_k_fold_cross_validation() -> None:
    ends: list[tuple[int, int, int]] = []

    class Ends(Counting):
        def on_train_end(self, runner: Any, module: Any) -> None:
            ends.append((self.batches, runner.global_step, runner.current_epoch))

    found = Data()
    model = lightning.module(Classifier(), callbacks=Ends(), datamodule=found)
    one = Trainer(
        KFoldLoop(folds=3, fit=FitLoop(max_epochs=2, sanity_batches=0)),
        device="cpu",
        progress=False,
    )
    one.fit(model, data())
    assert found.asked == ["prepare", "setup fit", "teardown fit"]
    assert ends == [(8, 8, 2)] * 3  # each fold begins anew


def test_a_schedule_of_accumulation_gives_the_same_bits() -> None:
    def make(notes: list[str]) -> Any:
        return noting(Classifier, notes)(), [GradientAccumulationScheduler({0: 1, 1: 3})]

    theirs, ours = both(make, data, max_epochs=3)
    assert_same_bits(theirs, ours)
    assert ours.notes == theirs.notes
    assert ours.steps == 6 + 2 + 2


def test_callbacks_and_data_module_hear_of_an_exception() -> None:
    heard: list[str] = []

    class Hearing(Callback):
        def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
            heard.append(str(exception))

    class Failing(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise ValueError("no such luck")

    with pytest.raises(ValueError, match="no such luck"):
        trainer().fit(lightning.module(Failing(), callbacks=Hearing()), data())
    assert heard == ["no such luck"]


class WithLambda(Classifier):
    def configure_callbacks(self) -> Any:
        return LambdaCallback(on_train_epoch_end=lambda *_: self.ends.append(self.current_epoch))

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[int] = []


def test_a_callback_of_functions_and_a_timer_do_their_work() -> None:
    model = lightning.module(WithLambda(), callbacks=Timer(timedelta(microseconds=1), "epoch"))
    trainer(max_epochs=5).fit(model, data())
    assert model.module.ends == [0]


def test_half_precision_gives_the_same_bits() -> None:
    def make(notes: list[str]) -> Any:
        return noting(Classifier, notes)(), []

    theirs = fit_in_lightning(make, data(), max_epochs=2, precision="bf16-mixed")
    ours = fit_in_ours(make, data(), max_epochs=2, precision="bf16")
    assert_same_bits(theirs, ours)


def largest_gradient(module: nn.Module) -> float:
    return max(float(p.grad.abs().max()) for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("by_hand", [False, True])
def test_gradients_are_scaled_where_precision_asks_for_it(by_hand: bool) -> None:
    seen: list[float] = []

    class Scaled(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = not by_hand

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = self.loss(batch)
            if by_hand:
                optimizer: Any = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def on_after_backward(self) -> None:
            seen.append(largest_gradient(self))

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            seen.append(largest_gradient(self))

    model = lightning.module(Scaled())
    trainer(precision="fp16").fit(model, data())
    assert model.module.global_step == 6
    assert seen[0] / seen[1] == 2.0**16


# -- resuming -------------------------------------------------------------------------------------


class Counting(Callback):
    """Has a state of its own."""

    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches += 1

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches = state_dict["batches"]


class Resumable(Classifier):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["note"] = self.global_step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert checkpoint["note"] >= 0

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        return [optimizer], [scheduler]


def make_resumable() -> Trainer:
    torch.manual_seed(3)
    callbacks = [EarlyStopping("val_loss", patience=1), Counting()]
    model = lightning.module(Resumable(), callbacks=callbacks)
    one = trainer(max_epochs=2, accumulate=2, clip_norm=0.5)
    one.start(model, data(40), data(40, 20, shuffle=False))
    return one


def make_resumable_by_hand() -> Trainer:
    from tests.integrations.test_lightning_comparison import Gan

    torch.manual_seed(3)
    one = trainer(max_epochs=2)
    one.start(lightning.module(Gan()), data(30))
    return one


@pytest.mark.parametrize("make", [make_resumable, make_resumable_by_hand])
def test_a_fit_of_a_lightning_module_can_be_resumed(make: Any) -> None:
    assert_resumable(make, examples=6, stops_per_run=2)


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_resumable, make_resumable_by_hand])
def test_a_fit_of_a_lightning_module_can_be_resumed_at_every_boundary(make: Any) -> None:
    assert_resumable(make, exhaustive=True)


@pytest.mark.slow
def test_a_fit_of_a_lightning_module_can_be_resumed_in_another_process() -> None:
    assert_resumable(make_resumable, fresh_process=True, examples=1)


def test_a_fit_goes_on_from_a_checkpoint_of_ours_to_the_same_bits(tmp_path: Path) -> None:
    def fit(folder: Path, *, max_epochs: int, resume: str | None = None) -> Any:
        torch.manual_seed(3)
        model = lightning.module(Resumable(), callbacks=[Counting()])
        one = trainer(max_epochs=max_epochs, checkpoints=folder)
        torch.manual_seed(4)
        one.fit(model, data(), data(), resume=resume)
        return model

    whole = fit(tmp_path / "whole", max_epochs=4)
    fit(tmp_path / "parts", max_epochs=2)
    parts = fit(tmp_path / "parts", max_epochs=4, resume="auto")
    assert parts.hooks.callbacks[0].batches == 24
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, parts.state_dict()[name]), name
