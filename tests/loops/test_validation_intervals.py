"""When an epoch is validated: every n batches, steps, samples, seconds, epochs, fractions, on demand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemachine_trainer.intervals import IntervalError
from statemachine_trainer.loops import EpochLoop, every
from tests.loops.outer_kit import Clock, Model, Trace, Unsized, after, make_trainer, numbered

perhaps_never = pytest.mark.filterwarnings(
    "ignore::statemachine_trainer.loops.mistakes.NeverValidated"
)


def trace_of(batches: int, *, unsized: bool = False, **settings: Any) -> Trace:
    trainer = make_trainer(**settings)
    trace = Trace(trainer)
    data = numbered(batches)
    trainer.fit(Model(), Unsized(data) if unsized else data, numbered(1))
    return trace


@perhaps_never
@pytest.mark.parametrize(
    "interval, expected",
    [
        (1.0, "bbbbbbbbbbV|bbbbbbbbbbV|"),
        (0.5, "bbbbbVbbbbbV|bbbbbVbbbbbV|"),
        (0.3, "bbbVbbbVbbbVbV|bbbVbbbVbbbVbV|"),
        (0.25, "bbbVbbVbbbVbbV|bbbVbbVbbbVbbV|"),
        (1, "bV" * 10 + "|" + "bV" * 10 + "|"),
        (4, "bbbbVbbbbVbb|bbVbbbbVbbbbV|"),
        (every(4, "batch", within="epoch"), "bbbbVbbbbVbb|bbbbVbbbbVbb|"),
        (every(4, "batch", within="epoch", at_end=True), "bbbbVbbbbVbbV|bbbbVbbbbVbbV|"),
        (every(7, "step"), "bbbbbbbVbbb|bbbbVbbbbbb|"),
        (every(1, "epoch"), "bbbbbbbbbbV|bbbbbbbbbbV|"),
        (every(2, "epoch"), "bbbbbbbbbb|bbbbbbbbbbV|"),
        ("2 epochs", "bbbbbbbbbb|bbbbbbbbbbV|"),
        ("7 steps", "bbbbbbbVbbb|bbbbVbbbbbb|"),
        (30, "bbbbbbbbbb|bbbbbbbbbb|"),
    ],
    ids=str,
)
def test_an_interval_validates_at_its_moments(interval: Any, expected: str) -> None:
    assert trace_of(10, max_epochs=2, validate_every=interval).text == expected


@pytest.mark.parametrize(
    "interval, expected",
    [
        (1.0, "bbbV|bbbV|"),
        (2, "bbVb|bVbbV|"),
        (every(2, "step"), "bbVb|bVbbV|"),
        (every(2, "epoch"), "bbb|bbbV|"),
        (every(2, "batch", within="epoch", at_end=True), "bbVbV|bbVbV|"),
    ],
    ids=str,
)
def test_data_of_unknown_length_have_every_interval_that_needs_none(
    interval: Any, expected: str
) -> None:
    assert trace_of(3, unsized=True, max_epochs=2, validate_every=interval).text == expected


def test_a_fraction_of_an_unknown_length_is_an_error_before_the_first_batch() -> None:
    trainer, model = make_trainer(validate_every=0.5), Model()
    with pytest.raises(IntervalError, match="has no length"):
        trainer.fit(model, Unsized(numbered(3)), numbered(1))
    assert trainer.path == "fit.epoch.fetch"
    trainer.loop["epoch"].validate_every = every(2)
    trainer.fit(model, Unsized(numbered(3)), numbered(1), restart=True)
    assert model.trained == [0, 1, 2]


def test_a_fraction_of_an_unknown_length_is_no_error_where_nothing_is_validated() -> None:
    trainer, model = make_trainer(validate_every=0.5), Model()
    trainer.fit(model, Unsized(numbered(3)))
    assert model.trained == [0, 1, 2]


def test_a_fraction_is_counted_in_the_limited_number_of_batches_of_unsized_data() -> None:
    trace = trace_of(9, unsized=True, limit_train_batches=4, validate_every=0.5)
    assert trace.text == "bbVbbV|"


def test_samples_are_counted_by_batch_size() -> None:
    assert trace_of(4, validate_every=every(4, "sample")).text == "bbVbbV|"


def test_seconds_are_those_of_the_run() -> None:
    trainer = make_trainer(validate_every=every(25, "second"), max_epochs=2)
    trace, clock = Trace(trainer), Clock()
    trainer.start(Model(), numbered(6), numbered(1))
    trainer.context.clock = clock
    trainer.on("batch_end", lambda: setattr(clock, "now", clock.now + 10.0), priority=9)
    trainer.run()
    assert trace.batches == [3, 5, 8, 10]


def test_seconds_within_an_epoch_are_those_of_the_epoch() -> None:
    interval = every(25, "second", within="epoch", at_end=True)
    trainer = make_trainer(validate_every=interval, max_epochs=2)
    trace, clock = Trace(trainer), Clock()
    trainer.start(Model(), numbered(4), numbered(1))
    trainer.context.clock = clock
    trainer.on("batch_end", lambda: setattr(clock, "now", clock.now + 10.0), priority=9)
    trainer.run()
    assert trace.text == "bbbVbV|bbbVbV|"


def test_validate_epochs_leaves_out_the_epochs_between() -> None:
    assert trace_of(2, max_epochs=5, validate_epochs=2).text == "bb|bbV|bb|bbV|bb|"
    assert trace_of(3, max_epochs=2, validate_epochs=2, validate_every=2).text == "bbb|bVbbV|"


def test_a_moment_is_validated_once_where_the_interval_meets_the_end_of_the_epoch() -> None:
    assert trace_of(4, validate_every=2).text == "bbVbbV|"
    assert trace_of(4, validate_every=2, max_steps=4, max_epochs=None).text == "bbVbbV|"


def test_a_run_that_ends_on_a_limit_or_a_stop_ends_with_a_validation() -> None:
    assert trace_of(9, max_steps=4, validate_every=100).text == "bbbbV|"
    assert trace_of(9, max_batches=4, validate_every=100).text == "bbbbV|"
    trainer = make_trainer(validate_every=100)
    trace = Trace(trainer)
    after(trainer, 4, lambda trainer: trainer.stop())
    trainer.fit(Model(), numbered(9), numbered(1))
    assert trace.text == "bbbbV|"


def test_without_validation_data_nothing_is_validated() -> None:
    trainer = make_trainer(validate_every=1)
    trace = Trace(trainer)
    trainer.fit(Model(), numbered(3))
    assert trace.text == "bbb|"


# -- on demand -----------------------------------------------------------------------------------


def test_a_posted_validation_takes_place_after_the_batch() -> None:
    trainer = make_trainer()
    trace = Trace(trainer)
    trainer.on("forward", lambda trainer: trainer.post("validate"), once=True)
    trainer.fit(Model(), numbered(3), numbered(1))
    assert trace.text == "bVbbV|"


def test_a_posted_validation_where_one_is_due_anyway_takes_its_place() -> None:
    trainer = make_trainer(validate_every=2)
    trace = Trace(trainer)
    after(trainer, 2, lambda trainer: trainer.post("validate"))
    trainer.fit(Model(), numbered(4), numbered(1))
    assert trace.text == "bbVbbV|"


def test_a_posted_validation_at_the_end_of_an_epoch_keeps_the_count_of_epochs() -> None:
    trainer = make_trainer(max_epochs=4, validate_every=every(2, "epoch"))
    trace = Trace(trainer)
    after(trainer, 4, lambda trainer: trainer.post("validate"))
    trainer.fit(Model(), numbered(2), numbered(1))
    assert trace.text == "bb|bbV|bb|bbV|"


def test_a_validation_posted_where_there_are_no_data_warns_and_training_goes_on() -> None:
    trainer, model = make_trainer(), Model()
    after(trainer, 1, lambda trainer: trainer.post("validate"))
    with pytest.warns(UserWarning, match="no data for the validation"):
        trainer.fit(model, numbered(3))
    assert model.trained == [0, 1, 2]


# -- the interval as a setting -------------------------------------------------------------------


def test_trap_38_the_loop_shows_which_of_1_and_1_point_0_was_taken() -> None:
    assert EpochLoop(validate_every=1).validate_every.describe().startswith("every batch")
    assert "fraction 1.0" in EpochLoop(validate_every=1.0).validate_every.describe()
    with pytest.raises(IntervalError, match="taken as a fraction"):
        EpochLoop(validate_every=2.0)


@pytest.mark.parametrize("value", [0, -1, True, None, "often", 0.0, []])
def test_an_interval_that_means_nothing_is_refused_by_the_name_of_the_setting(value: Any) -> None:
    with pytest.raises(IntervalError, match="validate_every="):
        EpochLoop(validate_every=value)


def test_an_interval_may_be_given_to_the_loop_as_to_the_trainer() -> None:
    trainer = make_trainer(max_epochs=2)
    trainer.loop.epoch.validate_every = 2
    trace = Trace(trainer)
    trainer.fit(Model(), numbered(2), numbered(1))
    assert trace.text == "bbV|bbV|"


def test_another_interval_begins_to_count_with_the_epoch_in_which_it_is_set() -> None:
    trainer = make_trainer(max_epochs=2, validate_every=1)
    trace = Trace(trainer)
    trainer.on(
        "epoch_end", lambda trainer: setattr(trainer.loop.epoch, "validate_every", 3), once=True
    )
    trainer.fit(Model(), numbered(4), numbered(1))
    assert trace.text == "bVbVbVbV|bbVbb|"


def test_an_interval_set_in_a_pause_counts_from_there() -> None:
    trainer = make_trainer(max_epochs=2)
    trace = Trace(trainer)
    trainer.start(Model(), numbered(7), numbered(1))
    trainer.run(until=lambda trainer: trainer.context.counts.batch == 3)
    trainer.loop.epoch.validate_every = 2
    trainer.run()
    assert trace.text == "bbbbVbbVb|bVbbVbbVbbV|"


def test_trap_34_validations_by_steps_stay_with_the_steps_under_accumulation() -> None:
    trainer = make_trainer(max_epochs=2, accumulate=3, validate_every=every(2, "step"))
    trace = Trace(trainer)
    trainer.fit(Model(), numbered(7), numbered(1))
    assert [steps for _, _, steps in trace.validations] == [2, 4, 6]


@perhaps_never
@given(
    batches=st.integers(1, 9),
    epochs=st.integers(1, 3),
    n=st.integers(1, 7),
    within=st.sampled_from(["run", "epoch"]),
    at_end=st.booleans(),
    unit=st.sampled_from(["batch", "step"]),
)
def test_any_interval_of_batches_or_steps_validates_at_its_multiples(
    batches: int, epochs: int, n: int, within: Any, at_end: bool, unit: Any
) -> None:
    interval = every(n, unit, within=within, at_end=at_end)
    found = trace_of(batches, max_epochs=epochs, validate_every=interval).batches
    total = batches * epochs
    due = {
        done
        for done in range(1, total + 1)
        if (done if within == "run" else (done - 1) % batches + 1) % n == 0
        or (at_end and within == "epoch" and done % batches == 0)
    }
    assert found == sorted(due)


@given(
    cut=st.integers(0, 14),
    interval=st.sampled_from(
        [
            1.0,
            0.4,
            3,
            every(3, "batch", within="epoch", at_end=True),
            every(2, "epoch"),
            every(3, "step"),
            every(4, "sample"),
            every(25, "second"),
            every(15, "second", within="epoch"),
        ]
    ),
)
def test_a_restored_epoch_loop_answers_as_one_that_was_never_stopped(
    cut: int, interval: Any
) -> None:
    """What the interval remembers is written when it fires only; the rest follows from counters."""

    def run(*, restored_at: int | None) -> str:
        trainer = make_trainer(max_epochs=3, validate_every=interval)
        trace, clock = Trace(trainer), Clock()
        trainer.start(Model(), numbered(5), numbered(1))
        trainer.context.clock = clock
        trainer.on("batch_end", lambda: setattr(clock, "now", clock.now + 10.0), priority=9)
        if restored_at is not None:
            trainer.run(until=lambda trainer: trainer.context.counts.batch == restored_at)
            state = json.loads(json.dumps(trainer.driver.state_dict()))
            trainer.driver.load_state_dict(state)
        trainer.run()
        return trace.text

    assert run(restored_at=cut) == run(restored_at=None)
