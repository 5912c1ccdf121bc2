"""Ways in which others fail to resume, each tried here."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader

from statemachine_trainer.callbacks.early_stopping import EarlyStopping
from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.testing.setups import Setup
from statemachine_trainer.testing.specimens import Samples
from statemachine_trainer.trainer import Trainer
from tests.resume.kit import (
    Counted,
    boundaries,
    names,
    net,
    one_by_one,
    split_run,
    started,
    stop_before,
)


def test_trap_01_a_stop_before_or_inside_a_training_step_loses_nothing() -> None:
    make_trainer = Setup(validate_every=[2, "batch"]).make_trainer
    stop_before(make_trainer, "batch_start", "forward", "optimizer_step", most=3)


def test_trap_02_a_validation_that_is_due_at_the_stop_runs() -> None:
    make_trainer = Setup(validate_every=[2, "batch"], max_epochs=1).make_trainer
    place = [one.path for one in boundaries(make_trainer)].index("fit.epoch.batch.batch_end")
    second_batch = (
        place
        + 1
        + [one.path for one in boundaries(make_trainer)[place + 1 :]].index(
            "fit.epoch.batch.batch_end"
        )
    )
    _, resumed = split_run(make_trainer, second_batch)
    assert names(resumed.signals)[:3] == ["fetch", "validation", "validation_start"]
    stop_before(make_trainer, "batch_end", "fetch")


def test_trap_03_after_a_stop_at_the_last_batch_the_epoch_ends_with_its_validation() -> None:
    make_trainer = Setup(samples=10).make_trainer
    paths = [one.path for one in boundaries(make_trainer)]
    last = paths.index("fit.epoch.drain") - 2
    assert paths[last] == "fit.epoch.batch.batch_end"
    _, resumed = split_run(make_trainer, last)
    heard = names(resumed.signals)
    assert heard.index("validation_end") < heard.index("epoch_end") < heard.index("epoch_start")
    assert_resumable(make_trainer, stops=[last])


def test_trap_04_a_stop_inside_a_validation_does_not_change_its_metric() -> None:
    make_trainer = Setup(validation_loaders=2, max_epochs=1).make_trainer
    one_by_one(make_trainer, "validation_fetch", "validation_step", "validation_end")


def test_trap_05_the_partial_gradient_of_an_accumulation_window_is_kept() -> None:
    make_trainer = Setup(accumulate=[(0, 4)], samples=15, max_epochs=1, dropout=False).make_trainer
    stop = [one.path for one in boundaries(make_trainer)].index("fit.epoch.fetch") + 7
    first, _ = split_run(make_trainer, stop)
    assert first.trainer.context.open_windows
    assert first.state()["context"]["model"]["grads"]
    stop_before(make_trainer, "fetch", "batch_start", "drain")


def test_trap_06_a_stop_at_the_start_of_the_second_epoch_does_not_skip_it() -> None:
    make_trainer = Setup(samples=10).make_trainer
    paths = [one.path for one in boundaries(make_trainer)]
    second = paths.index("fit.epoch.epoch_start", paths.index("fit.epoch.epoch_end"))
    _, resumed = split_run(make_trainer, second)
    assert (resumed.trainer.epoch, resumed.trainer.steps) == (2, 4)
    assert_resumable(make_trainer, stops=[second - 1, second, second + 1])


def test_trap_07_the_tail_of_a_shuffled_epoch_is_seen_and_its_head_not_again() -> None:
    reads: list[int] = []

    def make_trainer() -> Trainer:
        loader = DataLoader(Counted(12, reads), batch_size=4, shuffle=True)
        return started(Trainer(max_epochs=1, progress=False), train=loader)

    stop = [one.path for one in boundaries(make_trainer)].index("fit.epoch.batch.batch_end") + 1
    reads.clear()
    split_run(make_trainer, stop)
    assert Counter(reads) == Counter(range(12))


def test_trap_08_dropout_and_augmentation_go_on_and_do_not_repeat() -> None:
    drawn: list[float] = []

    def make_trainer() -> Trainer:
        trainer = started(Trainer(max_epochs=2, progress=False))
        trainer.on("batch_start", lambda one: drawn.append(float(one.context.batch[0].sum())))
        return trainer

    stop = [one.path for one in boundaries(make_trainer)].index("fit.epoch.batch.batch_end")
    whole = [*drawn]
    drawn.clear()
    split_run(make_trainer, stop)
    assert len(set(drawn)) == len(drawn) == len(whole)
    stop_before(Setup(dropout=True, augment=True).make_trainer, "forward")


def test_trap_09_the_reason_to_stop_and_the_metrics_that_schedulers_watch_are_kept() -> None:
    callbacks: list[EarlyStopping] = []

    def make_trainer() -> Trainer:
        callbacks.append(EarlyStopping("loss", patience=1, min_delta=10.0))
        return started(Trainer(max_epochs=9, progress=False, callbacks=callbacks[-1:]))

    split_run(make_trainer, len(boundaries(make_trainer)) - 2)
    assert callbacks[-1].reason == callbacks[0].reason is not None
    one_by_one(make_trainer, "epoch_end", "next_epoch", "fit_end")
    one_by_one(Setup(stop_at=2, samples=15).make_trainer, "stopping", "drain", "next_epoch")
    stop_before(Setup(schedule="plateau", samples=10).make_trainer, "epoch_end", "next_epoch")


@pytest.mark.parametrize("seed_samples", [None, True])
def test_trap_10_a_data_set_that_draws_random_numbers_is_read_as_without_a_stop(
    seed_samples: bool | None,
) -> None:
    make_trainer = Setup(augment=True, seed_samples=seed_samples, dropout=False).make_trainer
    stop_before(make_trainer, "fetch", "batch_end")


def test_trap_11_the_ends_of_epochs_are_as_exact_as_the_steps() -> None:
    make_trainer = Setup(schedule="epoch", samples=10).make_trainer
    one_by_one(make_trainer, "drain", "epoch_end", "next_epoch", "epoch_start", "fit_end")


def test_trap_12_asking_a_loader_for_its_length_does_not_make_it_forget_its_state() -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def make_trainer() -> Trainer:
        loader = stateful(Samples(12, augment=True, sequences=False), batch_size=4, shuffle=True)
        assert len(loader) == 3
        return started(Trainer(max_epochs=2, progress=False), train=loader)

    stop_before(make_trainer, "fetch", "batch_end")


@pytest.mark.parametrize("persistent", [False, True])
def test_trap_13_what_workers_have_prefetched_does_not_count_as_read(persistent: bool) -> None:
    def make_trainer() -> Trainer:
        loader = DataLoader(
            Samples(16, augment=True, sequences=False),
            batch_size=4,
            shuffle=True,
            num_workers=2,
            persistent_workers=persistent,
        )
        return started(Trainer(max_epochs=2, progress=False, seed=1), train=loader)

    paths = [one.path for one in boundaries(make_trainer)]
    second_batch = paths.index("fit.epoch.batch.batch_start") + 8
    second_epoch = paths.index("fit.epoch.epoch_start", paths.index("fit.epoch.epoch_end"))
    assert_resumable(make_trainer, stops=[second_batch, second_epoch])


def test_trap_14_a_scheduler_is_stepped_neither_once_more_nor_once_less() -> None:
    def configure(model: Any) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        return {"optimizer": optimizer, "lr_scheduler": ExponentialLR(optimizer, 0.5)}

    def make_trainer() -> Trainer:
        return started(Trainer(max_epochs=3, progress=False), net(configure))

    for number, one in enumerate(boundaries(make_trainer)):
        if one.path in ("fit.epoch.drain", "fit.epoch.epoch_end", "fit.next_epoch"):
            _, resumed = split_run(make_trainer, number)
            (slot,) = resumed.trainer.context.slots
            assert slot.optimizer.param_groups[0]["lr"] == 0.125
            assert resumed.trainer.steps == slot.steps == 9


def test_trap_15_neither_the_sanity_check_nor_a_validation_runs_again() -> None:
    make_trainer = Setup(sanity_batches=2, validate_every=[2, "batch"], samples=15).make_trainer
    paths = [one.path for one in boundaries(make_trainer)]
    after_validation = paths.index("fit.epoch.validation.validation_end") + 1
    first, resumed = split_run(make_trainer, after_validation)
    assert "sanity" in names(first.signals)
    assert "sanity" not in names(resumed.signals)
    assert names(resumed.signals)[0] == "batch"
    stop_before(make_trainer, "sanity_start", "sanity_fetch", "sanity_step", "sanity_end")


def test_trap_18_the_steps_that_a_tracker_is_told_never_go_backwards() -> None:
    told: list[tuple[int, int]] = []

    def make_trainer() -> Trainer:
        trainer = started(Trainer(max_epochs=2, progress=False))
        trainer.on("batch_end", lambda one: told.append((one.epoch, one.steps)))
        return trainer

    stop = len(boundaries(make_trainer)) // 2
    whole = [*told]
    told.clear()
    split_run(make_trainer, stop)
    assert told == whole == sorted(set(whole))


def test_trap_19_a_counter_of_a_callback_is_written_as_it_is_after_its_hook() -> None:
    make_trainer = Setup(stateful_callback=True, samples=10).make_trainer
    first, _ = split_run(
        make_trainer,
        [one.path for one in boundaries(make_trainer)].index("fit.epoch.batch.batch_end"),
    )
    assert first.state()["callbacks"] == [{"kind": "Stumbling", "state": {"batches": 1}}]
    stop_before(make_trainer, "batch_end", "fetch")
