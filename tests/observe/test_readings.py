"""What is measured in a run, as it is handed on."""

from __future__ import annotations

from statemachine_trainer.observe.readings import Reading, Readings, named_apart
from tests.observe.recorded import Net, batches, trainer


def readings_of_a_fit(**settings: float) -> list[tuple[str, int]]:
    """The part and the step of each reading in two epochs of eight batches."""
    taken: list[Reading] = []
    mine = trainer(max_epochs=2)
    every = int(settings.pop("every"))
    Readings(taken.append, every=every, **settings).attach(mine.driver)
    mine.fit(Net(), batches(), batches(1))
    return [(one.part, one.step) for one in taken]


def test_steps_are_read_at_intervals_of_batches_and_ends_always() -> None:
    ends = [("validation", 8), ("train", 8), ("validation", 16), ("train", 16)]
    assert readings_of_a_fit(every=0) == ends
    found = readings_of_a_fit(every=4)
    assert [one for one in found if one[0] != "step"] == ends
    assert len(found) - len(ends) == 4


def test_steps_are_read_no_more_often_than_told() -> None:
    found = readings_of_a_fit(every=1, seconds=3600.0)
    assert [part for part, _ in found].count("step") == 1
    assert len(found) == 5


def test_a_name_of_several_parts_means_the_first_and_the_others_say_theirs() -> None:
    parts = {"train": {"loss": 1, "a": 2}, "validation": {"loss": 3, "b": 4}, "test": {"loss": 5}}
    assert named_apart(parts) == {
        "loss": 1,
        "a": 2,
        "validation/loss": 3,
        "b": 4,
        "test/loss": 5,
    }
