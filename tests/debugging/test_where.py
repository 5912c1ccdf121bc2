"""Looking at where a run stands."""

from __future__ import annotations

import torch

from statemachine_trainer.trainer import Trainer
from tests.debugging.kit import started
from tests.loops.outer_kit import Model, make_trainer


def test_it_tells_state_counters_loss_and_what_may_come_next() -> None:
    trainer = started()
    trainer.run(until=lambda trainer, moment: trainer.steps == 2 and moment.state == "backward")
    where = trainer.where()
    assert where.path == "fit.epoch.batch.optimizer.backward"
    assert (where.epoch, where.batch, where.step, where.transient) == (0, 2, 2, True)
    assert where.loss == trainer.loss
    assert where.next["backward_done"] == "fit.epoch.batch.optimizer.optimizer_step"
    lines = str(where).splitlines()
    assert lines[0] == "before fit.epoch.batch.optimizer.backward (cannot be written down here)"
    assert lines[1].startswith("  epoch 1, batch 3 (batch_idx 2), step 2, loss ")


def test_it_tells_what_is_posted_and_what_may_be() -> None:
    trainer = started()
    trainer.run(until="batch_start")
    trainer.post("stop")
    assert trainer.where().posted == ("stop",)
    assert trainer.where().accepts == ()
    assert "posted: stop" in str(trainer.where())
    trainer.driver.withdraw("stop")
    trainer.run(until="fetch")
    assert "stop" in trainer.where().accepts


def test_it_tells_before_the_start_and_after_the_end() -> None:
    assert str(Trainer(max_epochs=1).where()).startswith("not started")
    trainer = started()
    trainer.run()
    assert str(trainer.where()) == "ended with fit_done\n  2 epochs done, step 8"


def test_a_split_batch_tells_its_split() -> None:
    trainer = make_trainer(split_steps=2)
    trainer.fit(Model(), [torch.ones(2, 4, 1)], until="backward")
    where = trainer.where()
    assert where.split == (0, 2)
    assert "split 1 of 2" in str(where)


def test_the_context_says_in_a_line_what_is_in_flight() -> None:
    trainer = started()
    assert repr(trainer.context) == (
        "<Context of Net: 0 epochs, 0 batches and 0 steps done; in flight: nothing>"
    )
    trainer.run(until="backward")
    assert "in flight: batch, output, loss" in repr(trainer.context)
