"""What the page is told of a run in its own process."""

from __future__ import annotations

from statemachine_trainer import SAMLoop, Trainer
from statemachine_trainer.page.live import LiveRun


def test_the_graph_has_a_new_number_after_each_swap_and_keeps_it_in_between() -> None:
    trainer = Trainer(max_epochs=1, progress=False)
    live = LiveRun(trainer)
    numbers = [live.state()["graph"]]
    assert live.state()["graph"] == numbers[0]
    for _ in range(20):
        trainer.loop.replace(optimizer=SAMLoop)
        numbers.append(live.state()["graph"])
        assert live.state()["graph"] == numbers[-1]
    assert len(set(numbers)) == 21
    live.close()
