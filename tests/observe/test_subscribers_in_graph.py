"""The graph names who is subscribed, where it is asked to."""

from __future__ import annotations

from statemachine_trainer.graph import Graph
from statemachine_trainer.trainer import Trainer


def look(trainer: Trainer) -> None:
    """A receiver."""


def listened_to() -> Trainer:
    trainer = Trainer(max_epochs=1, progress=False)
    trainer.on("epoch", look, every=2)
    trainer.on("epoch:exit", look)
    trainer.on("batch:batch_done", look)
    return trainer


def heard(graph: Graph) -> dict[str, tuple[str, ...]]:
    """Labels by what they listen to, those of the library's own subscribers left out."""
    found: dict[str, tuple[str, ...]] = {}
    for state in graph.states():
        found |= {f"{state.path}:enter": state.on_enter, f"{state.path}:exit": state.on_exit}
    found |= {f"{edge.source}:{edge.event}": edge.receivers for edge in graph.edges}
    return {name: labels for name, labels in found.items() if any("look" in one for one in labels)}


def test_subscribers_stand_at_their_states_and_events_by_their_short_names() -> None:
    assert heard(listened_to().graph(subscribers=True)) == {
        "fit.epoch:enter": ("look (every=2)",),
        "fit.epoch:exit": ("look",),
        "fit.epoch.batch:batch_done": ("look",),
    }


def test_nobody_is_named_unless_asked_for() -> None:
    assert heard(listened_to().graph()) == {}
    assert listened_to().graph() == Trainer(max_epochs=1, progress=False).graph()


def test_a_difference_tells_who_was_added() -> None:
    trainer = listened_to()
    before = trainer.graph(subscribers=True)

    def extra(trainer: Trainer) -> None: ...

    trainer.on("epoch_end", extra)
    difference = before.diff(trainer.graph(subscribers=True))
    assert str(difference) == "~ fit.epoch.epoch_end: on enter none -> extra"


def test_the_outline_names_those_of_entries_exits_and_transitions() -> None:
    lines = [line.strip() for line in str(listened_to().graph(subscribers=True)).splitlines()]
    (epoch,) = (line for line in lines if line.startswith("epoch ("))
    (batch,) = (line for line in lines if line.startswith("batch ("))
    assert epoch.endswith("entry / look (every=2); exit / look")
    assert "batch_done / look -> fetch" in batch
