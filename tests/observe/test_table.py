from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemachine_trainer.observe import EpochRecord, MetricsTable
from statemachine_trainer.observe.epoch_table import format_duration, format_number, format_seconds
from statemachine_trainer.trainer import Trainer
from tests.observe.runs import BATCHES, Net

NUMBERS = st.floats(1e-9, 1e9) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0])
METRICS = st.dictionaries(st.text("abc_", min_size=1, max_size=12), NUMBERS, max_size=5)
RECORDS = st.builds(
    EpochRecord,
    epoch=st.integers(1, 9999),
    steps=st.integers(0),
    seconds=st.floats(0, 3e5),
    train=METRICS,
    validation=METRICS,
)


def fitted(table: MetricsTable, **settings: Any) -> Trainer:
    trainer = Trainer(callbacks=[table], progress=False, **settings)
    trainer.fit(Net(), BATCHES, BATCHES[:2])
    return trainer


def test_a_fit_makes_one_record_for_each_epoch() -> None:
    table = MetricsTable()
    fitted(table, max_epochs=3)
    assert [(one.epoch, one.steps) for one in table.records] == [(1, 6), (2, 12), (3, 18)]
    assert [list(one.train) for one in table.records] == [["loss", "score"]] * 3
    assert [list(one.validation) for one in table.records] == [["val_loss"]] * 3


def test_a_record_holds_the_means_of_its_own_epoch() -> None:
    table = MetricsTable()
    trainer = Trainer(callbacks=[table], progress=False, max_epochs=2)
    seen = []
    trainer.on("epoch_end", lambda trainer: seen.append(dict(trainer.metrics)))
    trainer.fit(Net(), BATCHES, BATCHES)
    assert [{**one.train, **one.validation} for one in table.records] == seen
    assert seen[0] != seen[1]


def test_an_epoch_without_validation_has_no_metrics_of_an_older_one() -> None:
    table = MetricsTable()
    fitted(table, max_epochs=4, validate_epochs=2)
    assert [bool(one.validation) for one in table.records] == [False, True, False, True]


def test_the_time_of_an_epoch_is_its_own() -> None:
    table = MetricsTable()
    trainer = fitted(table, max_epochs=3)
    assert all(one.seconds > 0 for one in table.records)
    assert sum(one.seconds for one in table.records) <= trainer.context.counts.seconds


def test_the_table_is_written_as_it_grows() -> None:
    lines: list[str] = []
    table = MetricsTable(lines.append)
    fitted(table, max_epochs=3)
    assert len(lines) == 2 + 3
    assert lines[1].split() == ["epoch", "val_loss", "loss", "score", "time"]
    assert [line.split()[0] for line in lines[2:]] == ["1", "2", "3"]
    assert lines[2].split()[3] == "0.2500"


def test_a_metric_that_comes_later_gets_a_column_and_the_head_is_written_again() -> None:
    lines: list[str] = []
    table = MetricsTable(lines.append)
    table.add(EpochRecord(1, 1, 1.0, {"loss": 0.5}))
    table.add(EpochRecord(2, 2, 1.0, {"loss": 0.4}, {"val": 0.6}))
    table.add(EpochRecord(3, 3, 1.0, {"loss": 0.3}))
    heads = [line.split() for line in lines if "time" in line]
    assert heads == [["epoch", "loss", "time"], ["epoch", "val", "loss", "time"]]
    assert lines[-1].split() == ["3", "0.3000", "1.0", "s"]


def test_metrics_of_one_name_in_training_and_validation_are_told_apart() -> None:
    table = MetricsTable()
    table.add(EpochRecord(1, 1, 1.0, {"loss": 0.5}, {"loss": 0.25}))
    groups, names, row = table.lines()
    assert groups.index("validation") < groups.index("train")
    assert names.split() == ["epoch", "loss", "loss", "time"]
    assert row.split()[1:3] == ["0.2500", "0.5000"]


def test_columns_that_do_not_fit_are_left_out_and_counted() -> None:
    table = MetricsTable(width=60)
    table.add(EpochRecord(1, 1, 1.0, {f"a_long_name_{i}": 0.5 for i in range(6)}))
    assert max(map(len, table.lines())) <= 60
    assert table.lines()[1].endswith("(+4 more)")


def test_where_there_is_no_room_for_all_validation_stays() -> None:
    table = MetricsTable(width=40)
    table.add(EpochRecord(1, 1, 1.0, {f"trained_{i}": 0.5 for i in range(6)}, {"val_loss": 0.25}))
    assert table.lines()[1].split() == ["epoch", "val_loss", "time", "(+6", "more)"]


@given(st.lists(RECORDS, min_size=1, max_size=4), st.integers(30, 120))
def test_every_line_fits_and_names_and_numbers_stand_in_columns(
    records: list[EpochRecord], width: int
) -> None:
    table = MetricsTable(width=width)
    for record in records:
        table.add(record)
    _, names, *rows = table.lines()
    assert max(map(len, table.lines())) <= width
    assert {len(row) for row in rows} == {names.index("time") + len("time")}


@given(st.lists(RECORDS, max_size=4))
def test_records_survive_being_written_down(records: list[EpochRecord]) -> None:
    table, again = MetricsTable(), MetricsTable()
    table.records = list(records)
    again.load_state_dict(table.state_dict())
    assert repr(again.records) == repr(table.records)
    assert again.lines() == table.lines()


def test_the_table_of_a_resumed_fit_is_whole() -> None:
    table, rest = MetricsTable(), MetricsTable()
    first = Trainer(callbacks=[table], progress=False, max_epochs=3, seed=1)
    first.fit(Net(), BATCHES, BATCHES, until=lambda trainer: trainer.context.counts.batch == 8)
    state = first.state_dict()
    second = Trainer(callbacks=[rest], progress=False, max_epochs=3, seed=2)
    second.start(Net(), BATCHES, BATCHES)
    second.load_state_dict(state)
    second.run()
    first.run()
    assert [one.epoch for one in rest.records] == [1, 2, 3]
    assert [one.train for one in rest.records] == [one.train for one in table.records]


def test_a_notebook_shows_the_table_as_html_with_names_escaped() -> None:
    table = MetricsTable()
    table.add(EpochRecord(1, 1, 1.0, {"a<b": 0.5}))
    assert "a&lt;b" in table._repr_html_()
    assert "<td>0.5000</td>" in table._repr_html_()


@pytest.mark.parametrize(
    "value, text",
    [
        (0.70321, "0.7032"),
        (1.0, "1.000"),
        (123.456, "123.5"),
        (12345.0, "12345"),
        (1234567.5, "1.235e+06"),
        (0.0001234, "0.0001234"),
        (-0.5, "-0.5000"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (None, ""),
    ],
)
def test_numbers_have_four_digits(value: float | None, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0 s"),
        (7, "7 s"),
        (59.6, "1 min 0 s"),
        (65, "1 min 5 s"),
        (3599.6, "1 h 0 min"),
        (7384, "2 h 3 min"),
        (298_800, "3 d 11 h"),
    ],
)
def test_a_length_of_time_has_its_units_and_is_no_time_of_day(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_measured_time_has_tenths_of_seconds_while_it_is_short() -> None:
    assert format_seconds(0.84) == "0.8 s"
    assert format_seconds(99.96) == "1 min 40 s"


@given(st.floats(0, 3e6))
def test_every_time_fits_its_column(seconds: float) -> None:
    assert len(format_seconds(seconds)) <= len("59 min 59 s")
