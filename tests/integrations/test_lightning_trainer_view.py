"""The trainer that a module sees answers as Lightning's would, or says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("lightning", reason="needs the extra `lightning`")

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer

from statemachine_trainer import Trainer
from statemachine_trainer.integrations import lightning
from statemachine_trainer.integrations.lightning.view import TrainerView
from tests.integrations.lightning_kit import (
    Classifier,
    both,
    data,
    quiet,
    quiet_lightning,
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet_lightning():
        yield


TOLD = {"fit", "validate", "test", "predict"}
"""What runs Lightning's own trainer, and is refused with a way out."""

SAME = (
    "accumulate_grad_batches", "barebones", "check_val_every_n_epoch", "ckpt_path", "current_epoch", "device_ids",
    "distributed_sampler_kwargs", "enable_validation", "estimated_stepping_batches", "evaluating",
    "fast_dev_run", "global_rank", "global_step", "gradient_clip_val", "interrupted",
    "is_global_zero", "is_last_batch", "limit_predict_batches", "limit_test_batches", "limit_train_batches",
    "limit_val_batches", "local_rank", "log_every_n_steps", "logger", "loggers", "max_epochs", "max_steps",
    "node_rank", "num_devices", "num_nodes", "num_predict_batches", "num_sanity_val_batches",
    "num_sanity_val_steps", "num_test_batches", "num_training_batches", "num_val_batches",
    "overfit_batches", "precision", "predicting", "received_sigterm", "reload_dataloaders_every_n_epochs",
    "sanity_checking", "scaler", "should_stop", "testing", "training", "val_check_batch",
    "val_check_interval", "validating", "world_size", "enable_autolog_hparams", "log_dir", "default_root_dir",
    "callback_metrics.keys()", "early_stopping_callback.patience", "len(checkpoint_callbacks)",
    "len(early_stopping_callbacks)", "len(lr_scheduler_configs)", "len(optimizers)", "state.fn", "state.stage",
    "state.status", "type(precision_plugin)", "type(accelerator)", "type(profiler)",
    "type(lr_scheduler_configs[0])", "lr_scheduler_configs[0].interval", "progress_bar_callback",
    "fit_loop.max_epochs", "fit_loop.max_batches", "fit_loop.batch_idx", "fit_loop.total_batch_idx",
    "fit_loop._should_accumulate()", "fit_loop.epoch_loop.batch_idx", "fit_loop.epoch_loop.global_step",
    "fit_loop.epoch_loop._batches_that_stepped", "fit_loop.epoch_loop.batch_progress.current.ready",
    "fit_loop.epoch_loop.batch_progress.is_last_batch", "fit_loop.epoch_loop.val_loop._data_source.is_defined()",
    "fit_loop.setup_data()", "fit_loop._data_source.is_module()", "len(fit_loop._combined_loader)",
    "fit_loop.epoch_progress.current.processed", "strategy.root_device", "strategy.reduce(3)",
    "_accelerator_connector.is_distributed", "type(train_dataloader)", "type(val_dataloaders)",
)  # fmt: skip


def read(trainer: Any, expression: str) -> Any:
    inside: dict[str, Callable[[Any], Any]] = {"len": len, "type": type, "list": list}
    head, _, tail = expression.partition("(")
    if head in inside:
        return inside[head](eval(f"trainer.{tail[:-1]}", {"trainer": trainer}))
    found = eval(f"trainer.{expression}", {"trainer": trainer})
    return sorted(found) if expression.endswith("keys()") else found


def seen_by(where: str) -> Callable[[list[str]], tuple[Any, list[Any]]]:
    """A module that reads of its trainer in one of its hooks, and its callbacks."""

    class Reading(Classifier):
        def configure_optimizers(self) -> Any:
            import torch

            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    def hook(self: Any, *_: Any) -> None:
        if not hasattr(self, "seen") and self.trainer.current_epoch:
            self.seen = {name: read(self.trainer, name) for name in SAME}

    kind = type("Reading", (Reading,), {where: hook})
    return lambda notes: (kind(), [EarlyStopping("val_loss", patience=9)])


@pytest.mark.parametrize(
    "where", ["on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_validation_batch_start"]
)  # fmt: skip
def test_what_is_read_of_it_is_the_same(where: str) -> None:
    settings: dict[str, Any] = {"max_epochs": 3, "accumulate": 2, "clip_norm": 0.5}
    theirs, ours = both(seen_by(where), data, data, **settings)
    different = {
        name: (value, ours.module.seen[name])
        for name, value in theirs.module.seen.items()
        if ours.module.seen[name] != value
    }
    if (
        where == "on_train_epoch_start"
    ):  # there the counters of the batches are still those of the last epoch
        different = {
            n: two for n, two in different.items() if "batch" not in n and n != "is_last_batch"
        }
    # Here schedulers and running means are those of the moment; see docs/migration.md.
    different.pop("callback_metrics.keys()", None)
    assert different == {}


def test_a_batch_after_a_validation_within_the_epoch_is_one_of_training() -> None:
    names = ("training", "validating", "evaluating")

    class Reading(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[bool, ...]] = []

        def note(self, *_: Any) -> None:
            self.seen.append(tuple(bool(getattr(self.trainer, name, None)) for name in names))

        on_validation_end = on_after_backward = on_validation_model_train = note

        def on_train_batch_start(self, *_: Any) -> None:
            self.note()

        def on_train_batch_end(self, *_: Any) -> None:
            self.note()

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            self.note()
            return batch

    theirs, ours = both(lambda notes: (Reading(), []), data, data, max_epochs=1, validate_every=0.5)
    assert ours.module.seen == theirs.module.seen


def test_every_public_name_of_lightnings_trainer_is_answered() -> None:
    with quiet():
        theirs = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    names = {n for n in (*dir(L.Trainer), *vars(theirs)) if not n.startswith("_")}
    unanswered: dict[str, str] = {}

    class Walking(Classifier):
        def on_train_batch_start(self, *_: Any) -> None:
            for name in sorted(names - TOLD):
                try:
                    getattr(self.trainer, name)
                except Exception as error:
                    unanswered[name] = repr(error)

    model = lightning.module(Walking(), callbacks=[ModelCheckpoint(), Timer("00:01:00:00")])
    one = Trainer(max_epochs=1, device="cpu", progress=False)
    one.start(model, data(), data())
    while one.context.counts.batch == 0:
        one.step()
    assert unanswered == {}
    view: Any = model.module.trainer
    for name in TOLD:
        with pytest.raises(lightning.NotAvailable, match="of the trainer you have made"):
            getattr(view, name)
    assert isinstance(view, TrainerView)


@pytest.mark.parametrize(
    "loop", ["fit_loop", "validate_loop", "test_loop", "predict_loop", "fit_loop.epoch_loop"]
)
def test_what_a_loop_of_lightning_would_do_says_where_the_loops_are(loop: str) -> None:
    model = lightning.module(Classifier())
    Trainer(max_epochs=1, device="cpu", progress=False).fit(model, data())
    found: Any = model.module.trainer
    for name in loop.split("."):
        found = getattr(found, name)
    with pytest.raises(
        lightning.NotAvailable, match=rf"trainer\.{loop}\.advance.*trainer\.owner\.loop"
    ):
        found.advance()


def test_a_module_is_in_the_right_phase_in_every_stage() -> None:
    seen: list[tuple[str, ...]] = []
    phases = ("training", "validating", "testing", "predicting", "sanity_checking", "evaluating")

    class Noting(Classifier):
        def note(self) -> None:
            seen.append(tuple(name for name in phases if getattr(self.trainer, name)))

        def forward(self, inputs: Any) -> Any:
            self.note()
            return super().forward(inputs)

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch[0])

    one = Trainer(max_epochs=1, device="cpu", progress=False, sanity_batches=1)
    model = lightning.module(Noting())
    one.fit(model, data(10), data(10))
    one.validate(model, data(10))
    one.test(model, data(10))
    one.predict(model, data(10, shuffle=False))
    assert seen == [
        ("sanity_checking", "evaluating"), ("training",), ("validating", "evaluating"),
        ("validating", "evaluating"), ("testing", "evaluating"), ("predicting",),
    ]  # fmt: skip
