"""The laws of keeping and deleting."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemachine_trainer.loops import every
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.snapshot import Best, CleanupWarning, KeepEvery, Retention, Store

START = datetime(2030, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Record:
    created: datetime = START
    metadata: dict[str, object] = field(default_factory=dict)


def with_loss(*losses: object) -> list[Record]:
    return [Record(metadata={"metrics": {"loss": loss}}) for loss in losses]


def at_steps(*steps: object) -> list[Record]:
    return [Record(metadata={"step": step}) for step in steps]


metrics = st.floats() | st.integers() | st.none() | st.text() | st.booleans()
records = st.builds(
    Record,
    st.integers(0, 300).map(lambda minutes: START + timedelta(minutes=minutes)),
    st.fixed_dictionaries(
        {},
        optional={
            "step": st.integers(0, 30) | st.floats(),
            "epoch": st.integers(0, 9) | st.none(),
            "metrics": st.dictionaries(st.sampled_from(["loss", "accuracy"]), metrics)
            | st.lists(st.integers(), max_size=2),
        },
    ),
)
bests = st.builds(
    Best, st.sampled_from(["loss", "accuracy"]), st.integers(1, 3), st.sampled_from(["min", "max"])
)
everys = st.builds(
    KeepEvery, st.integers(1, 12) | st.just(0.5), st.sampled_from(["step", "epoch", "minute"])
)
retentions = st.builds(
    Retention,
    st.none() | st.integers(1, 4),
    bests | st.lists(bests, max_size=2).map(tuple),
    everys | st.lists(everys, max_size=2).map(tuple),
)


@given(retentions, st.lists(records, min_size=1, max_size=20))
def test_deleting_after_each_save_keeps_what_all_saves_together_would_keep(
    retention: Retention, history: list[Record]
) -> None:
    kept: list[Record] = []
    for record in history:
        kept.append(record)
        kept = [kept[place] for place in sorted(retention.choose(kept))]
    expected = [history[place] for place in sorted(retention.choose(history))]
    assert [id(record) for record in kept] == [id(record) for record in expected]


@given(retentions, st.lists(records, min_size=1, max_size=20))
def test_the_newest_are_always_kept(retention: Retention, history: list[Record]) -> None:
    count = len(history)
    newest = count if retention.last is None else min(retention.last, count)
    assert set(range(count - newest, count)) <= retention.choose(history)


@given(st.integers(1, 4), bests, st.lists(records, max_size=20))
def test_none_is_better_than_the_best(last: int, best: Best, history: list[Record]) -> None:
    chosen = best.choose(history)
    assert len(chosen) <= best.k
    assert chosen <= Retention(last=last, best=best).choose(history)

    def value(place: int) -> float:
        found = history[place].metadata.get("metrics")
        number = found.get(best.metric) if isinstance(found, dict) else None
        if isinstance(number, bool) or not isinstance(number, int | float) or math.isnan(number):
            return -math.inf
        return -number if best.mode == "min" else number

    others = set(range(len(history))) - chosen
    if others and chosen:
        assert max(map(value, others)) <= min(map(value, chosen))


def test_of_equals_the_earlier_is_the_best() -> None:
    assert Best("loss").choose(with_loss(2.0, 1.0, 1.0, 3.0)) == {1}
    assert Best("loss", k=2, mode="max").choose(with_loss(2.0, 1.0, 3.0, 3.0)) == {2, 3}


def test_what_is_not_a_number_is_never_the_best() -> None:
    strange = with_loss(math.nan, None, "1", True, [1], 10**400)
    assert Best("loss", k=9).choose([*strange, *with_loss(np.float32(1.5), 7)]) == {6, 7}
    assert Best("loss").choose([Record(), Record(metadata={"metrics": 1})]) == set()


def test_the_first_checkpoint_at_or_after_each_multiple_is_kept() -> None:
    assert KeepEvery(10, "step").choose(at_steps(0, 5, 10, 15, 20, 33, 39, 40)) == {2, 4, 5, 7}
    assert KeepEvery(2, "epoch").choose([Record(metadata={"epoch": n}) for n in range(6)]) == {2, 4}


def test_steps_that_a_resumed_run_counts_again_are_no_new_multiples() -> None:
    assert KeepEvery(10, "step").choose(at_steps(10, 20, 12, 21)) == {0, 1}


def test_the_first_checkpoint_of_each_stretch_of_the_clock_is_kept() -> None:
    minutes = [0, 10, 29, 30, 61, 62]
    history = [Record(created=START + timedelta(minutes=minute)) for minute in minutes]
    assert KeepEvery(30, "minute").choose(history) == {0, 3, 4}


@pytest.mark.parametrize(
    "make, complaint",
    [
        (lambda: Retention(last=0), "the newest is always kept; use 1"),
        (lambda: Retention(last="3"), "use a whole number from 1, or None for all"),  # type: ignore[arg-type]
        (lambda: Retention(last=True), "use a whole number from 1, or None for all"),
        (lambda: Retention(every=every(10)), "counted in steps, epochs or seconds"),
        (lambda: Retention(every="now and then"), "a text is a number and a unit"),
        (lambda: Retention(every=3.5j), "which is no interval"),  # type: ignore[arg-type]
        (lambda: Retention(best="loss"), "statemachine_trainer.snapshot import Best"),  # type: ignore[arg-type]
        (lambda: Retention(best=(Best("loss"), KeepEvery(1, "step"))), "import Best"),  # type: ignore[arg-type]
        (lambda: Retention(best=[Best("loss")]), "a tuple of several"),  # type: ignore[arg-type]
        (lambda: Best(3), "give the name of a metric"),  # type: ignore[arg-type]
        (lambda: Best("loss", k=1.5), "use a whole number from 1"),  # type: ignore[arg-type]
        (lambda: Best("loss", k=0), "keeps nothing"),
        (lambda: Best("loss", mode="best"), "choose 'min' or 'max'"),  # type: ignore[arg-type]
        (lambda: KeepEvery("2", "step"), "n must be above 0"),  # type: ignore[arg-type]
        (lambda: KeepEvery(0, "step"), "n must be above 0"),
        (lambda: KeepEvery(math.nan, "step"), "n must be above 0"),
        (lambda: KeepEvery(1, "batch"), "choose 'step', 'epoch' or 'minute'"),  # type: ignore[arg-type]
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(make: object, complaint: str) -> None:
    assert callable(make)
    with pytest.raises(StateMachineError, match=complaint) as raised:
        make()
    assert isinstance(raised.value, ValueError)


@given(retentions, st.lists(st.floats(0, 9), min_size=1, max_size=8))
def test_a_store_holds_what_the_rules_keep(retention: Retention, losses: list[float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), retention=retention)
        for step, loss in enumerate(losses):
            metadata = {"step": step, "metrics": {"loss": loss}}
            store.save({}, name=f"step-{step}", metadata=metadata)
            assert store.list()[-1].name == f"step-{step}"
        if "minute" not in str(retention):  # the clock of the run is not ours to set
            history = with_loss(*losses)
            for step, record in enumerate(history):
                record.metadata["step"] = step
            kept = [info.metadata["step"] for info in store.list()]
            assert kept == sorted(retention.choose(history))


def test_what_is_pinned_stays(tmp_path: Path) -> None:
    store = Store(tmp_path, retention=Retention(last=1))
    store.save({}, name="a")
    store.pin("a")
    for name in "bcd":
        Store(tmp_path, retention=Retention(last=1)).save({}, name=name)
    assert [info.name for info in store.list()] == ["a", "d"]
    store.unpin("a")
    store.save({}, name="e")
    assert [info.name for info in store.list()] == ["e"]


def test_while_the_pins_cannot_be_read_nothing_is_deleted(tmp_path: Path) -> None:
    store = Store(tmp_path, retention=Retention(last=1))
    store.save({}, name="a")
    (tmp_path / "pins.json").write_bytes(b"[")
    with pytest.warns(CleanupWarning, match="Nothing is deleted meanwhile"):
        store.save({}, name="b")
    assert [info.name for info in store.list()] == ["a", "b"]


@pytest.mark.parametrize(
    "interval, same",
    [
        (every(10, "step"), KeepEvery(10, "step")),
        ("10 steps", KeepEvery(10, "step")),
        ("2 epochs", KeepEvery(2, "epoch")),
        ("30min", KeepEvery(30, "minute")),
        (timedelta(hours=1), KeepEvery(60, "minute")),
        (every(90, "second"), KeepEvery(1.5, "minute")),
    ],
)
def test_what_is_kept_for_ever_is_said_by_any_interval(interval: Any, same: KeepEvery) -> None:
    assert Retention(every=interval) == Retention(every=same)
    assert Retention(every=(interval, KeepEvery(7, "step"))).every == (same, KeepEvery(7, "step"))


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_what_is_damaged_after_a_save_has_looked_at_it_is_left_for_a_person(
    tmp_path: Path, name: str
) -> None:
    store = Store(tmp_path, retention=Retention(last=2))
    first = store.save({"step": 0}, name="step-0")
    for file in first.iterdir():
        # Long before the look of the next save, which keeps what it found.
        os.utime(file, (1e9, 1e9))
    store.save({"step": 1}, name="step-1")
    damaged = first / name
    damaged.write_bytes(damaged.read_bytes() + b" ")
    for step in (2, 3):
        store.save({"step": step}, name=f"step-{step}")
    assert first.exists()
    assert [info.name for info in store.list() if info.damage is None] == ["step-2", "step-3"]


@pytest.mark.parametrize("hours_ago", [0, 1])
def test_the_newest_is_damaged_before_the_next_save_looks_at_it_and_is_left_for_a_person(
    tmp_path: Path, hours_ago: int
) -> None:
    store = Store(tmp_path, retention=Retention(last=1))
    first = store.save({"w": np.arange(3)}, name="step-1")
    manifest = first / "manifest.json"
    text = manifest.read_bytes()
    manifest.write_bytes(text.replace(b"step-1", b"step-7"))  # as long as it was
    for file in first.iterdir():
        then = file.stat().st_mtime - 3600 * hours_ago
        os.utime(file, (then, then))
    store.save({"w": np.arange(3)}, name="step-2")
    assert first.is_dir()
    manifest.write_bytes(text)
    store.save({"w": np.arange(3)}, name="step-3")
    assert [info.name for info in store.list()] == ["step-3"]
