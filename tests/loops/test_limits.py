"""max_epochs, max_steps, max_batches, max_time, and the limits on the batches of a pass."""

from __future__ import annotations

import datetime
import math
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer.data.data_errors import BadLimit
from statemachine_trainer.loops import EpochLoop, FitLoop, ValidationLoop, every
from statemachine_trainer.loops.fit import parse_time
from statemachine_trainer.loops.loop_errors import NothingToDo, SettingError
from tests.loops.outer_kit import Clock, Model, Trace, Unsized, after, make_trainer, numbered


class TwoOptimizers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(1, 1), nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int, optimizer_idx: int) -> Any:
        return (self.one, self.two)[optimizer_idx](batch).mean()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), lr=0.1) for net in (self.one, self.two)]


def test_max_epochs_is_the_number_of_passes() -> None:
    trainer, model = make_trainer(max_epochs=3), Model()
    trainer.fit(model, numbered(2))
    assert model.trained == [0, 1, 0, 1, 0, 1]
    assert (trainer.epoch, trainer.steps) == (3, 6)


def test_max_steps_is_exact_and_ends_within_an_epoch() -> None:
    trainer, model = make_trainer(max_steps=3), Model()
    trace = Trace(trainer)
    trainer.fit(model, numbered(2), numbered(1))
    assert trainer.steps == 3
    assert trace.text == "bbV|bV|"


def test_max_steps_is_never_exceeded_by_a_window_that_is_still_open() -> None:
    trainer = make_trainer(max_steps=2, accumulate=2)
    trainer.fit(Model(), numbered(7))
    assert (trainer.steps, trainer.context.counts.batch) == (2, 4)


@pytest.mark.parametrize("count_steps_of, most", [("first", 3), ("all", 3), ("all", 4)])
def test_max_steps_is_exact_with_two_optimizers_whichever_steps_count(
    count_steps_of: str, most: int
) -> None:
    trainer = make_trainer(max_steps=most, count_steps_of=count_steps_of)
    trainer.fit(TwoOptimizers(), numbered(5))
    done = [slot.steps for slot in trainer.context.slots]
    assert trainer.steps == most
    assert (done[0] if count_steps_of == "first" else sum(done)) == most


def test_max_steps_of_all_optimizers_is_exact_with_windows_open_at_the_end() -> None:
    for batches in range(1, 7):
        trainer = make_trainer(max_steps=3, count_steps_of="all", accumulate=2, max_epochs=1)
        trainer.fit(TwoOptimizers(), numbered(batches))
        assert trainer.steps <= 3


def test_max_batches_counts_batches_and_not_steps() -> None:
    trainer, model = make_trainer(max_batches=5, accumulate=2), Model()
    trace = Trace(trainer)
    trainer.fit(model, numbered(4), numbered(1))
    assert trace.text == "bbbbV|bV|"
    assert trainer.steps == 3


def test_the_first_limit_reached_ends_the_fit() -> None:
    trainer = make_trainer(max_epochs=10, max_steps=3, max_batches=100)
    trainer.fit(Model(), numbered(2))
    assert trainer.steps == 3


def test_infinity_is_no_limit_and_only_stop_ends_the_fit() -> None:
    trainer, model = make_trainer(max_epochs=math.inf), Model()
    after(trainer, 7, lambda trainer: trainer.stop())
    trainer.fit(model, numbered(3))
    assert len(model.trained) == 7


@pytest.mark.parametrize("name", ["max_steps", "max_batches"])
def test_infinity_is_no_limit_for_steps_and_batches_either(name: str) -> None:
    trainer, model = make_trainer(max_epochs=1, **{name: math.inf}), Model()
    trainer.fit(model, numbered(3))
    assert len(model.trained) == 3


def test_a_fit_without_any_limit_is_refused_with_the_way_out() -> None:
    trainer = make_trainer(max_epochs=None)
    with pytest.raises(SettingError, match=r"math.inf"):
        trainer.fit(Model(), numbered(1))


@pytest.mark.parametrize("name", ["max_epochs", "max_steps", "max_batches"])
def test_a_limit_of_zero_does_nothing_and_says_so(name: str) -> None:
    trainer, model = make_trainer(**{name: 0}), Model()
    with pytest.raises(NothingToDo, match=name):
        trainer.fit(model, numbered(1))
    assert model.trained == []


@pytest.mark.parametrize(
    "name", ["max_epochs", "max_steps", "max_batches", "min_epochs", "min_steps"]
)
@pytest.mark.parametrize("value", [-1, 2.5, "3", True, -math.inf, math.nan])
def test_a_limit_that_is_no_whole_number_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=f"FitLoop\\({name}="):
        FitLoop(**{name: value})


def test_a_limit_may_be_any_kind_of_whole_number() -> None:
    trainer, model = make_trainer(max_epochs=torch.tensor(2)), Model()
    trainer.fit(model, numbered(1))
    assert len(model.trained) == 2


def test_a_limit_raised_in_a_pause_holds_for_the_rest_of_the_fit() -> None:
    trainer, model = make_trainer(max_steps=2, max_epochs=1), Model()
    trainer.fit(model, numbered(5), until="batch_end")
    trainer.loop.max_steps = 4
    trainer.run()
    assert len(model.trained) == 4


def test_a_limit_changed_by_a_hook_holds_from_the_next_epoch_on() -> None:
    trainer, model = make_trainer(max_epochs=2), Model()
    trainer.on("epoch_end", lambda trainer: setattr(trainer.loop, "max_epochs", 4), once=True)
    trainer.fit(model, numbered(1))
    assert trainer.epoch == 4


# -- time --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, seconds",
    [
        (90, 90.0),
        (1.5, 1.5),
        (datetime.timedelta(minutes=2), 120.0),
        ({"hours": 1, "seconds": 1}, 3601.0),
        ("00:00:01:30", 90.0),
        ("01:02:03:04", 93784.0),
        ("02:03:04", 7384.0),
        (math.inf, math.inf),
    ],
)
def test_max_time_is_understood_in_every_form(value: Any, seconds: float) -> None:
    assert parse_time(value) == seconds


@pytest.mark.parametrize(
    "value",
    [0, -1, "1 hour", "90", "00:00:00:00", {"fortnights": 1}, {"hours": 0}, [1], math.nan, True],
)
def test_a_time_that_means_nothing_is_refused_with_the_forms_there_are(value: Any) -> None:
    with pytest.raises(SettingError, match=r"max_time=.*DD:HH:MM:SS"):
        FitLoop(max_time=value)


def run_with_clock(trainer: Any, model: Model, seconds_a_batch: float, *data: Any) -> Clock:
    clock = Clock()
    trainer.start(model, *data)
    trainer.context.clock = clock
    trainer.on("batch_end", lambda: setattr(clock, "now", clock.now + seconds_a_batch), priority=9)
    return clock


def test_max_time_ends_the_fit_at_the_first_batch_after_it_with_its_validation() -> None:
    trainer, model = make_trainer(max_time=25), Model()
    trace = Trace(trainer)
    run_with_clock(trainer, model, 10.0, numbered(10), numbered(1))
    trainer.run()
    assert trace.text == "bbbV|"


def test_max_time_waits_for_the_least_number_of_steps() -> None:
    trainer, model = make_trainer(max_time=25, min_steps=7), Model()
    run_with_clock(trainer, model, 10.0, numbered(10))
    trainer.run()
    assert len(model.trained) == 7


def test_max_time_waits_for_the_least_number_of_epochs() -> None:
    trainer, model = make_trainer(max_time=25, min_epochs=2), Model()
    run_with_clock(trainer, model, 10.0, numbered(4))
    trainer.run()
    assert len(model.trained) == 8


def test_the_time_of_a_pause_does_not_count() -> None:
    trainer, model = make_trainer(max_time=25), Model()
    clock = run_with_clock(trainer, model, 10.0, numbered(10))
    trainer.run(until="batch_end")
    clock.now += 1000.0
    trainer.run()
    assert len(model.trained) == 3


def test_a_fit_whose_time_is_over_says_so_when_it_is_called_again() -> None:
    trainer, model = make_trainer(max_time=25), Model()
    run_with_clock(trainer, model, 10.0, numbered(10))
    trainer.run()
    with pytest.raises(NothingToDo, match="max_time"):
        trainer.fit()
    trainer.loop.max_time = 45
    trainer.fit()
    assert model.trained == [0, 1, 2, 3, 4]


# -- batches of a pass ---------------------------------------------------------------------------


def test_a_limit_on_batches_is_a_count_or_a_fraction() -> None:
    for limit, expected in ((3, 3), (0.5, 5), (1, 1), (1.0, 10), (100, 10), (None, 10)):
        trainer, model = make_trainer(limit_train_batches=limit), Model()
        trainer.fit(model, numbered(10))
        assert len(model.trained) == expected, limit


def test_trap_38_one_and_one_point_zero_differ_and_the_error_says_which_was_taken() -> None:
    for limit, expected in ((1, 1), (1.0, 4)):
        trainer, model = make_trainer(limit_validation_batches=limit), Model()
        trainer.fit(model, numbered(1), numbered(4))
        assert len(model.validated) == expected
    with pytest.raises(BadLimit, match=r"taken as a fraction \(a float\)"):
        EpochLoop(limit_batches=2.0)
    with pytest.raises(BadLimit, match=r"taken as a count \(an int\)"):
        ValidationLoop(limit_batches=-2)


def test_a_limit_that_leaves_nothing_to_train_on_is_refused() -> None:
    for limit in (0, 0.0):
        with pytest.raises(SettingError, match="nothing to train on"):
            make_trainer(limit_train_batches=limit)


def test_a_limit_of_zero_validation_batches_validates_nothing() -> None:
    trainer, model = make_trainer(limit_validation_batches=0), Model()
    trainer.fit(model, numbered(1), numbered(4))
    assert model.validated == []


def test_data_of_unknown_length_may_be_limited_by_a_count_only() -> None:
    trainer, model = make_trainer(limit_train_batches=3), Model()
    trainer.fit(model, Unsized(numbered(10)))
    assert model.trained == [0, 1, 2]
    trainer = make_trainer(limit_train_batches=0.5)
    with pytest.raises(BadLimit, match="no length"):
        trainer.fit(Model(), Unsized(numbered(10)))
    assert trainer.path == "fit.epoch.epoch_start"


def test_a_loader_that_gives_more_than_its_length_is_read_to_its_end() -> None:
    class Shy(Unsized):
        def __len__(self) -> int:
            return 2

    trainer, model = make_trainer(max_epochs=2), Model()
    trainer.fit(model, Shy(numbered(3)))
    assert model.trained == [0, 1, 2, 0, 1, 2]


def test_a_fraction_of_an_epoch_is_one_of_the_limited_epoch() -> None:
    trainer = make_trainer(limit_train_batches=4, validate_every=0.5)
    trace = Trace(trainer)
    trainer.fit(Model(), numbered(10), numbered(1))
    assert trace.text == "bbVbbV|"


def test_steps_limit_and_interval_of_steps_go_together() -> None:
    trainer = make_trainer(max_steps=3, validate_every=every(2, "step"), accumulate=2)
    trace = Trace(trainer)
    trainer.fit(Model(), numbered(10), numbered(1))
    assert trace.text == "bbbbVbbV|"


@pytest.mark.parametrize("name", ["max_steps", "max_batches"])
@pytest.mark.parametrize(
    "before, after_pause, expected", [(None, 5, 5), (8, 5, 5), (5, 8, 8), (9, 2, 3)]
)
def test_a_limit_set_in_a_pause_within_an_epoch_holds_at_once(
    name: str, before: int | None, after_pause: int, expected: int
) -> None:
    trainer, model = make_trainer(max_epochs=1, **{name: before}), Model()
    trainer.fit(model, numbered(10), until=lambda trainer: trainer.context.counts.batch == 3)
    setattr(trainer.loop, name, after_pause)
    trainer.run()
    assert len(model.trained) == expected


def test_a_time_limit_set_in_a_pause_holds_at_once() -> None:
    trainer, model = make_trainer(max_epochs=1), Model()
    run_with_clock(trainer, model, 10.0, numbered(10))
    trainer.run(until="batch_end")
    trainer.loop.max_time = 25
    trainer.run()
    assert len(model.trained) == 3
