"""Intervals: when they are due, how they are written, and that a resume changes nothing."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemachine_trainer.intervals import (
    Counts,
    Every,
    Interval,
    IntervalError,
    every,
    parse_interval,
)


def run(epochs: int, batches: int, *, steps: int = 1, known: bool = True) -> Iterator[Counts]:
    """The counters after each batch of a run; one object, changed in place, as in the loops."""
    counts = Counts()
    for _ in range(epochs):
        counts.begin_epoch(batches if known else None)
        for _ in range(batches):
            counts.batch += 1
            counts.batch_in_epoch += 1
            counts.step += steps
            counts.step_in_epoch += steps
            counts.sample += 32
            counts.sample_in_epoch += 32
            counts.seconds += 0.7
            counts.seconds_in_epoch += 0.7
            yield counts


def due_batches(interval: Every, batches: int, epochs: int = 1, known: bool = True) -> list[int]:
    """After which batches of an epoch it is due, when the end is told after the last of them."""
    ticker, fired = Interval(interval), []
    for counts in run(epochs, batches, known=known):
        due = ticker.due(counts)
        if counts.batch_in_epoch == batches:
            counts.epoch += 1
            end = "run" if counts.epoch == epochs else "epoch"
            due_at_end = ticker.due(counts, ended="run" if end == "run" else "epoch")
            assert not (due and due_at_end)
            due |= due_at_end
        if due:
            fired.append(counts.batch)
    return fired


@given(n=st.integers(1, 12), batches=st.integers(1, 20), epochs=st.integers(1, 3))
def test_over_the_run_it_is_due_once_for_each_multiple(n: int, batches: int, epochs: int) -> None:
    total = batches * epochs
    assert due_batches(every(n), batches, epochs) == list(range(n, total + 1, n))


@given(n=st.integers(1, 12), batches=st.integers(1, 20), epochs=st.integers(1, 3))
def test_within_the_epoch_counting_begins_anew(n: int, batches: int, epochs: int) -> None:
    expected = [e * batches + b for e in range(epochs) for b in range(n, batches + 1, n)]
    assert due_batches(every(n, within="epoch"), batches, epochs) == expected


@given(n=st.integers(1, 12), batches=st.integers(1, 20), epochs=st.integers(1, 3))
def test_the_end_of_the_run_adds_one_unless_it_coincides(n: int, batches: int, epochs: int) -> None:
    total = batches * epochs
    expected = sorted({*range(n, total + 1, n), total})
    assert due_batches(every(n, at_end=True), batches, epochs) == expected


@given(n=st.integers(1, 12), batches=st.integers(1, 20), epochs=st.integers(1, 3))
def test_the_end_of_each_epoch_adds_one_unless_it_coincides(
    n: int, batches: int, epochs: int
) -> None:
    within = {e * batches + b for e in range(epochs) for b in range(n, batches + 1, n)}
    ends = {(e + 1) * batches for e in range(epochs)}
    interval = every(n, within="epoch", at_end=True)
    assert due_batches(interval, batches, epochs) == sorted(within | ends)


@given(percent=st.integers(1, 100), batches=st.integers(1, 60), epochs=st.integers(1, 2))
def test_a_fraction_is_due_at_the_first_batch_that_reaches_each_multiple_and_at_the_end(
    percent: int, batches: int, epochs: int
) -> None:
    multiples = range(1, 100 // percent + 1)
    reached = {-(-k * percent * batches // 100) for k in multiples} | {batches}
    expected = sorted(e * batches + b for e in range(epochs) for b in reached)
    assert due_batches(every(percent / 100, "epoch"), batches, epochs) == expected


@pytest.mark.parametrize(
    "fraction,batches,expected",
    [
        (0.3, 10, [3, 6, 9, 10]),
        (0.25, 10, [3, 5, 8, 10]),
        (0.1, 10, list(range(1, 11))),
        (0.25, 2, [1, 2]),
        (1.0, 7, [7]),
    ],
)
def test_a_fraction_of_an_epoch(fraction: float, batches: int, expected: list[int]) -> None:
    assert due_batches(every(fraction, "epoch"), batches) == expected


def test_one_epoch_and_the_fraction_one_differ_in_when_the_epoch_counts_as_done() -> None:
    whole, fraction = Interval(every(1, "epoch")), Interval(every(1.0, "epoch"))
    for counts in run(1, 4):
        assert not whole.due(counts)
        assert fraction.due(counts) == (counts.batch == 4)
    counts.epoch += 1
    assert whole.due(counts)
    assert not fraction.due(counts, ended="epoch")


def test_every_second_epoch_and_the_last() -> None:
    assert due_batches(every(2, "epoch", at_end=True), batches=3, epochs=5) == [6, 12, 15]


def test_a_fraction_of_an_unknown_length_is_an_error_but_the_whole_of_it_is_not() -> None:
    assert due_batches(every(1.0, "epoch"), batches=4, epochs=2, known=False) == [4, 8]
    with pytest.raises(IntervalError, match=r"every\(0.5, 'epoch'\).*no length.*every\(100\)"):
        due_batches(every(0.5, "epoch"), batches=4, known=False)


@given(n=st.integers(1, 9), jump=st.integers(1, 7), batches=st.integers(1, 30))
def test_counts_that_jump_over_a_multiple_are_due_once(n: int, jump: int, batches: int) -> None:
    ticker = Interval(every(n, "step"))
    fired = [counts.step for counts in run(1, batches, steps=jump) if ticker.due(counts)]
    crossed = [s for s in range(jump, jump * batches + 1, jump) if s // n > (s - jump) // n]
    assert fired == crossed
    if jump <= n:
        assert len(fired) == jump * batches // n


@given(n=st.floats(0.1, 20.0), batches=st.integers(1, 40))
def test_seconds_are_due_as_often_as_they_have_passed(n: float, batches: int) -> None:
    ticker, fired, expected, before = Interval(every(n, "second")), 0, 0, 0.0
    for counts in run(1, batches):
        fired += ticker.due(counts)
        expected += counts.seconds // n > before // n
        before = counts.seconds
    assert fired == expected
    assert fired <= before // n


def test_samples_and_seconds_can_be_counted_within_the_epoch() -> None:
    assert due_batches(every(64, "sample", within="epoch"), batches=3, epochs=2) == [2, 5]
    assert due_batches(every(1, "second", within="epoch"), batches=2, epochs=2) == [2, 4]


def test_the_same_moment_is_never_due_twice() -> None:
    ticker = Interval(every(1, at_end=True))
    counts = Counts(batch=1, batch_in_epoch=1)
    assert ticker.due(counts)
    assert not ticker.due(counts)
    assert not ticker.due(counts, ended="run")


def test_an_end_at_which_nothing_was_done_is_not_due() -> None:
    assert not Interval(every(5, at_end=True)).due(Counts(), ended="run")
    assert not Interval(every(0.5, "epoch")).due(Counts(batches_per_epoch=0), ended="epoch")


def test_a_ticker_that_joins_late_counts_from_where_it_joined() -> None:
    ticker = Interval(every(4), Counts(batch=10, batch_in_epoch=10))
    assert not ticker.due(Counts(batch=11, batch_in_epoch=11))
    assert ticker.due(Counts(batch=12, batch_in_epoch=12))


def test_a_fraction_may_join_before_the_length_is_known() -> None:
    Interval(every(0.5, "epoch"), Counts())


numbers = st.integers(1, 8)
intervals = st.one_of(
    st.builds(
        every,
        numbers,
        st.sampled_from(["batch", "step", "sample", "second"]),
        st.sampled_from(["run", "epoch"]),
        st.booleans(),
    ),
    st.builds(every, numbers, st.just("epoch"), st.just("run"), st.booleans()),
    st.builds(every, st.floats(0.05, 1.0), st.just("epoch")),
)


@given(
    interval=intervals,
    batches=st.integers(1, 8),
    epochs=st.integers(1, 3),
    stop=st.integers(0, 24),
)
def test_a_resumed_ticker_is_due_at_the_same_counts(
    interval: Every, batches: int, epochs: int, stop: int
) -> None:
    def fired(stops: bool) -> list[bool]:
        ticker, answers = Interval(interval), []
        for counts in run(epochs, batches, steps=2):
            if stops and counts.batch == stop:
                state, saved_counts = ticker.state_dict(), counts.state_dict()
                ticker, resumed = Interval(interval), Counts()
                ticker.load_state_dict(state)
                resumed.load_state_dict(saved_counts)
                assert resumed == counts
            answers.append(ticker.due(counts))
            if counts.batch_in_epoch == batches:
                counts.epoch += 1
                over = counts.epoch == epochs
                answers.append(ticker.due(counts, ended="run" if over else "epoch"))
        return answers

    assert fired(stops=True) == fired(stops=False)


@pytest.mark.parametrize(
    "value,expected,words",
    [
        (5, every(5), "every 5 batches, counted over the run"),
        (1, every(1), "every batch, counted over the run"),
        (1.0, every(1.0, "epoch"), "at the end of each epoch (the fraction 1.0 of it)"),
        (0.25, every(0.25, "epoch"), "every 0.25 of an epoch (a fraction), and at its end"),
        ("30s", every(30, "second"), "every 30 seconds, counted over the run"),
        ("10min", every(600, "second"), "every 600 seconds, counted over the run"),
        ("1.5 hours", every(5400.0, "second"), "every 5400.0 seconds, counted over the run"),
        ("every 2 epochs", every(2, "epoch"), "every 2 epochs"),
        ("0.5 epochs", every(0.5, "epoch"), "every 0.5 of an epoch (a fraction), and at its end"),
        ("500 Steps", every(500, "step"), "every 500 steps, counted over the run"),
        (datetime.timedelta(minutes=1), every(60.0, "second"), "every 60.0 seconds"),
        (
            every(3, "sample", within="epoch", at_end=True),
            every(3, "sample", within="epoch", at_end=True),
            "every 3 samples of an epoch, and at the end of each epoch",
        ),
    ],
)
def test_short_forms_say_how_they_were_taken(value: object, expected: Every, words: str) -> None:
    interval = parse_interval(value)
    assert interval == expected
    assert interval.describe().startswith(words)


@given(interval=intervals)
def test_the_repr_is_the_expression_that_makes_it(interval: Every) -> None:
    assert eval(repr(interval), {"every": every}) == interval


def test_trap_38_one_and_one_point_zero_are_told_apart() -> None:
    assert parse_interval(1) != parse_interval(1.0)
    assert every(1, "epoch") != every(1.0, "epoch")
    with pytest.raises(IntervalError) as caught:
        parse_interval(2.0, "validate_every")
    message = str(caught.value)
    assert message.startswith("validate_every=2.0: 2.0 is a float, so it is taken as a fraction")
    assert "write 2 (batches) or every(2, 'epoch')" in message


@pytest.mark.parametrize(
    "value,reason",
    [
        (0, "never reached"),
        (-3, "never reached"),
        (math.nan, "never reached"),
        (math.inf, "never reached"),
        (True, "not an interval"),
        (None, "NoneType"),
        ([5], "list"),
        ("5", "a number and a unit"),
        ("5 parsecs", "a number and a unit"),
        ("1.5 batches", "a batch has no parts"),
        (datetime.timedelta(0), "never reached"),
    ],
)
def test_what_is_no_interval_is_an_error_that_names_the_setting(value: object, reason: str) -> None:
    with pytest.raises(IntervalError, match=rf"log_every=.*{reason}"):
        parse_interval(value, "log_every")


@pytest.mark.parametrize(
    "arguments,reason",
    [
        ((5, "minute"), "no unit"),
        ((5, "batch", "fold"), "choose 'run' or 'epoch'"),
        ((2, "epoch", "epoch"), "leave out within"),
        ((2.0, "step"), "a step has no parts"),
        ((True,), "n is a number"),
    ],
)
def test_an_interval_that_means_nothing_is_refused(
    arguments: tuple[object, ...], reason: str
) -> None:
    with pytest.raises(IntervalError, match=reason):
        every(*arguments)  # type: ignore[arg-type]
