"""What a fold, a round or a phase begins with: nothing of the one before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from statemachine_trainer import FitLoop, KFoldLoop
from statemachine_trainer.callbacks import EarlyStopping
from statemachine_trainer.data import BadSource, dataset_of, reloaded, targets_of
from statemachine_trainer.intervals import Counts
from statemachine_trainer.loops.fresh_start import captured, captured_callbacks, renew
from statemachine_trainer.loops.loop_errors import ModelError
from statemachine_trainer.trainer import Trainer
from tests.loops.fold_kit import Net, loader
from tests.loops.outer_kit import Clock


def fitted(**settings: Any) -> Trainer:
    trainer = Trainer(max_epochs=2, progress=False, **settings)
    trainer.fit(Net(), loader(), loader(8, seed=1))
    return trainer


def test_counters_metrics_optimizers_and_gradients_are_those_of_a_new_fit() -> None:
    context = fitted().context
    old = context.slots[0].optimizer
    renew(context)
    counts = context.counts
    counts.seconds = 0.0
    assert counts == Counts()
    assert context.read_metrics() == {}
    assert context.slots[0].optimizer is not old
    assert not context.slots[0].optimizer.state
    assert all(p.grad is None for p in context.model.parameters())
    assert context.limit_reached is None


def test_weights_and_buffers_come_back_as_often_as_wanted() -> None:
    trainer = Trainer(max_epochs=1, progress=False)
    trainer.start(Net(), loader())
    first = captured(trainer.context)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for _ in range(2):
        trainer.fit()
        assert not torch.equal(
            before["1.running_mean"], trainer.model.state_dict()["1.running_mean"]
        )
        renew(trainer.context, weights=first)
        for name, value in trainer.model.state_dict().items():
            assert torch.equal(value, before[name])


def test_layers_that_have_no_shape_yet_are_refused_before_the_first_fold() -> None:
    model = Net()
    model[0] = nn.LazyLinear(6)
    trainer = Trainer(KFoldLoop(2, fit=FitLoop(max_epochs=1)), device="cpu", progress=False)
    with pytest.raises(ModelError, match="Pass a batch through the model before you call fit"):
        trainer.fit(model, loader())


def test_without_weights_the_model_stays_as_it_is() -> None:
    trainer = fitted()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    renew(trainer.context)
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_callbacks_begin_with_the_state_that_was_remembered() -> None:
    stopping = EarlyStopping("val_acc", mode="max")
    trainer = Trainer(max_epochs=2, progress=False, callbacks=[stopping])
    trainer.start(Net(), loader(), loader(8, seed=1))
    before = captured_callbacks(trainer.context)
    trainer.fit()
    assert stopping.best is not None
    renew(trainer.context, callbacks=before)
    assert stopping.best is None


def test_a_clock_that_runs_goes_on_from_zero_and_one_that_stands_stays_so() -> None:
    context = fitted().context
    clock = Clock()
    context.clock = clock
    context.start_clock()
    clock.now += 5
    renew(context)
    assert context.read_clock() == 0
    clock.now += 3
    assert context.read_clock() == 3
    context.stop_clock()
    renew(context)
    clock.now += 2
    assert context.read_clock() == 0


def test_the_generators_of_random_numbers_go_on() -> None:
    context = fitted().context
    before = torch.get_rng_state()
    renew(context, train=loader())
    assert torch.equal(before, torch.get_rng_state())


# -- loaders made anew ---------------------------------------------------------------------------


def numbers(size: int) -> Any:
    return range(size)


def test_a_loader_made_anew_keeps_its_settings() -> None:
    own = torch.Generator()
    old: Any = DataLoader(numbers(10), batch_size=3, shuffle=True, drop_last=True, generator=own)
    new: Any = reloaded(old, numbers(7))
    assert (new.batch_size, new.drop_last, new.generator) == (3, True, own)
    assert sum(len(batch) for batch in new) == 6
    tested: Any = reloaded(old, numbers(7), evaluate=True)
    assert [batch.tolist() for batch in tested] == [[0, 1, 2], [3, 4, 5], [6]]


def test_batches_chosen_by_a_sampler_of_ones_own_are_evaluated_in_order() -> None:
    class Own(BatchSampler):
        pass

    own = Own(SequentialSampler(range(6)), 2, drop_last=False)
    old: Any = DataLoader(numbers(6), batch_sampler=own)
    with pytest.raises(BadSource, match="make_loader"):
        reloaded(old, numbers(4))
    tested: Any = reloaded(old, numbers(4), evaluate=True)
    assert [batch.tolist() for batch in tested] == [[0, 1], [2, 3]]


def test_data_without_an_index_cannot_be_taken_apart() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(3))

    with pytest.raises(BadSource, match="a length and an index"):
        dataset_of(DataLoader(Stream()), "KFoldLoop")


def test_targets_are_found_without_reading_samples_where_that_can_be() -> None:
    class Pictures:
        targets = (2, 1)

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            raise AssertionError("read")

    assert targets_of(Pictures()) == [2, 1]
    assert targets_of([("a", 0), ("b", 1)]) == [0, 1]
