"""The profile: the time of each state, of what lies between them, and of each subscriber."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from statemachine_trainer.observe.profile import Durations, Profile, SubscriberKey
from statemachine_trainer.trainer import Trainer
from tests.loops.outer_kit import Clock, Model, make_trainer, numbered


class SlowModel(Model):
    """A training step takes 2 seconds, a validation step 3."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.clock.now += 2
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.clock.now += 3
        return super().validation_step(batch, batch_idx)


class SlowBatches:
    """The loader needs 5 seconds for a batch."""

    def __init__(self, clock: Clock, count: int) -> None:
        self.clock = clock
        self.batches = numbered(count)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            self.clock.now += 5
            yield batch


def profile_of(trainer: Trainer, clock: Clock) -> Profile:
    return Profile([trainer.driver], trainer.board, clock=clock)


def seconds(profile: Profile) -> dict[str, float]:
    """What took time, by the last name of the state."""
    return {path.rpartition(".")[2]: one.total for path, one in profile.states.items() if one.total}


# -- states ----------------------------------------------------------------------------------------


def test_the_time_of_each_state_is_that_of_its_work() -> None:
    clock, trainer = Clock(), make_trainer()
    profile = profile_of(trainer, clock)
    trainer.fit(SlowModel(clock), SlowBatches(clock, 4), numbered(2))
    assert seconds(profile) == {"fetch": 20, "forward": 8, "validation_step": 6}
    forward = profile.states["fit.epoch.batch.optimizer.forward"]
    assert (forward.count, forward.mean) == (4, 2)
    assert forward.quantile(0.95) == pytest.approx(2, rel=0.02)
    assert profile.transitions.total == 0


def test_time_in_which_the_run_stands_still_counts_nowhere() -> None:
    clock, trainer = Clock(), make_trainer()
    profile = profile_of(trainer, clock)
    trainer.fit(SlowModel(clock), numbered(3), until="batch_end")
    clock.now += 1000
    trainer.step()
    clock.now += 1000
    trainer.run()
    assert seconds(profile) == {"forward": 6}
    assert profile.transitions.total == 0


def test_work_that_raises_is_measured_and_the_run_goes_on_being_measured() -> None:
    clock, trainer, model = Clock(), make_trainer(), None
    profile = profile_of(trainer, clock)
    model = SlowModel(clock)

    def fail(trainer: Trainer) -> None:
        raise ValueError("no")

    failing = trainer.on("backward", fail)
    with pytest.raises(ValueError, match="no"):
        trainer.fit(model, numbered(2))
    failing.cancel()
    trainer.run()
    assert seconds(profile) == {"forward": 4}


# -- subscribers -----------------------------------------------------------------------------------


def test_the_time_of_a_subscriber_is_told_apart_from_work_and_transitions() -> None:
    clock, trainer = Clock(), make_trainer()
    profile = profile_of(trainer, clock)

    def slow() -> None:
        clock.now += 7

    def asking() -> bool:
        clock.now += 1
        return clock.now > 0

    trainer.on("batch_end", slow, when=asking)
    trainer.fit(SlowModel(clock), numbered(3))
    found = {key.receiver.rpartition(".")[2]: one for key, one in profile.subscribers.items()}
    assert {name: one.total for name, one in found.items()} == {"slow": 21}
    assert seconds(profile) == {"forward": 6}
    condition = next(
        one for key, one in profile.subscribers.items() if key.receiver.startswith("when= of ")
    )
    assert (condition.count, condition.total) == (3, 3)
    assert profile.transitions.total == 0


def test_an_evaluation_by_a_receiver_counts_for_its_own_states() -> None:
    clock, trainer = Clock(), make_trainer()
    model = SlowModel(clock)

    def evaluate(trainer: Trainer) -> None:
        clock.now += 1
        trainer.validate(model, numbered(2))

    trainer.on("epoch_end", evaluate)
    drivers = [trainer._drivers["fit"], trainer._drivers["validate"]]
    profile = Profile(drivers, trainer.board, clock=clock)
    trainer.fit(model, numbered(1))
    assert seconds(profile) == {"forward": 2, "validation_step": 6}
    (told,) = (one for one in profile.subscribers.values() if one.total)
    assert told.total == 1


def test_a_receiver_that_subscribes_later_and_a_loop_that_is_swapped_in_are_measured() -> None:
    clock, trainer = Clock(), make_trainer()
    profile = profile_of(trainer, clock)

    def look() -> None:
        clock.now += 1

    trainer.on("fit_start", lambda: trainer.board.on("batch_end", look))
    trainer.fit(SlowModel(clock), numbered(2))
    key = next(key for key in profile.subscribers if key.receiver.endswith("look"))
    assert key == SubscriberKey(key.receiver, "batch_end")
    assert profile.subscribers[key].total == 2


def test_a_profile_that_was_stopped_leaves_nothing_on_the_way() -> None:
    trainer, calls = make_trainer(max_epochs=2), list[int]()
    trainer.on("batch_end", lambda: calls.append(1))
    driver = trainer.driver
    before = {path: node.work for path, node in driver.program.nodes.items()}
    with trainer.profile() as profile:
        trainer.fit(Model(), numbered(3), until="epoch_end")
    assert not profile.running
    assert {path: node.work for path, node in driver.program.nodes.items()} == before
    counted = profile.states["fit.epoch.fetch"].count
    trainer.run()
    assert profile.states["fit.epoch.fetch"].count == counted
    assert len(calls) == 6


# -- the trainer's profile -------------------------------------------------------------------------


def test_the_profile_of_a_trainer_is_the_one_that_is_being_made() -> None:
    trainer = make_trainer()
    profile = trainer.profile()
    assert trainer.profile() is profile
    profile.stop()
    assert trainer.profile() is not profile


def test_a_profiled_fit_ends_with_the_same_bits() -> None:
    plain, profiled = Model(), Model()
    make_trainer().fit(plain, numbered(3), numbered(1))
    before = random.getstate()
    trainer = make_trainer()
    with trainer.profile():
        trainer.fit(profiled, numbered(3), numbered(1))
    assert torch.equal(plain.layer.weight, profiled.layer.weight)
    assert random.getstate() == before


def test_states_are_named_in_the_traces_of_torch() -> None:
    trainer = make_trainer()
    with torch.profiler.profile() as traced, trainer.profile(annotate=True):
        trainer.fit(Model(), numbered(2))
    names = [event.name for event in traced.events()]
    assert names.count("fit.epoch.batch.optimizer.forward") == 2
    assert trainer.profile().states["fit.epoch.fetch"].count == 0  # a new one


def test_waiting_for_the_device_changes_nothing_where_there_is_none() -> None:
    trainer = make_trainer()
    profile = trainer.profile(synchronize=True)
    trainer.fit(Model(), numbered(2))
    assert profile.states["fit.epoch.batch.optimizer.backward"].count == 2


# -- looking ---------------------------------------------------------------------------------------


@pytest.fixture
def measured() -> Profile:
    clock, trainer = Clock(), make_trainer()
    profile = profile_of(trainer, clock)

    def look() -> None:
        clock.now += 0.004

    trainer.on("epoch_end", look)
    trainer.fit(SlowModel(clock), SlowBatches(clock, 4))
    return profile


def test_the_hottest_state_is_one_and_the_others_relative_to_it(measured: Profile) -> None:
    heat = measured.heat()
    assert heat["fit.epoch.fetch"] == 1
    assert heat["fit.epoch.batch.optimizer.forward"] == pytest.approx(0.4)
    assert heat["fit.fit_end"] == 0
    assert "fit.epoch.batch" not in heat


def test_a_profile_of_nothing_has_no_heat_and_can_be_printed() -> None:
    profile = make_trainer().profile()
    assert profile.heat() == {}
    assert "count" in str(profile)
    profile._repr_html_()


def test_the_table_names_the_wait_for_data_and_puts_the_longest_first(measured: Profile) -> None:
    text = str(measured)
    lines = [line for line in text.splitlines() if "fit." in line]
    assert "fit.epoch.fetch (wait for data)" in lines[0]
    assert "20 s" in lines[0]
    assert "71.4%" in lines[0]
    assert "forward" in lines[1]
    assert "transitions and boundaries" in text
    assert "look on epoch_end" in text.replace("\n", " ") or "look" in text
    assert "4 ms" in text


def test_a_notebook_shows_a_table_in_which_nothing_is_taken_for_html(measured: Profile) -> None:
    html = measured._repr_html_()
    assert html.startswith("<table>")
    assert "&lt;locals&gt;" in html
    assert "<locals>" not in html


def test_the_figures_are_saved_as_json(measured: Profile, tmp_path: Path) -> None:
    measured.save(tmp_path / "profile.json")
    saved = json.loads((tmp_path / "profile.json").read_text())
    assert saved == measured.to_dict()
    assert saved["states"]["fit.epoch.fetch"]["total"] == 20
    assert saved["subscribers"][0]["signal"] == "epoch_end"
    assert saved["transitions"]["count"] > 0


# -- durations -------------------------------------------------------------------------------------


def test_a_quantile_is_right_within_two_percent() -> None:
    durations, drawn = Durations(), random.Random(0)
    values = [drawn.lognormvariate(-8, 2) for _ in range(5000)]
    for value in values:
        durations.add(value)
    values.sort()
    for share in (0.05, 0.5, 0.95, 0.99):
        exact = values[math.ceil(share * len(values)) - 1]
        assert durations.quantile(share) == pytest.approx(exact, rel=0.021)
    assert durations.mean == pytest.approx(sum(values) / len(values))


def test_memory_does_not_grow_with_what_is_measured() -> None:
    durations = Durations()
    for number in range(20_000):
        durations.add(1e-6 * (1 + number % 977))
    assert len(durations._buckets) < 200


def test_durations_of_no_length_are_counted() -> None:
    durations = Durations()
    assert (durations.mean, durations.quantile(0.95)) == (0, 0)
    durations.add(0.0)
    durations.add(-1e-9)  # what subtraction may leave
    assert durations.count == 2
    assert durations.quantile(0.95) < 1e-7


def test_a_quantile_of_one_duration_is_itself() -> None:
    durations = Durations()
    durations.add(0.123)
    assert durations.quantile(0.95) == 0.123


def test_a_profile_is_a_heat(measured: Profile) -> None:
    graph = Trainer().graph()
    assert graph.to_dot(heat=measured) == graph.to_dot(heat=measured.heat())
