"""Going back: what follows an earlier boundary is the same, to the bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from statemachine_trainer.debugging import NothingRemembered
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.machine.errors import AlreadyRunning
from statemachine_trainer.machine.signals import Moment
from statemachine_trainer.testing.recording import seed_all
from statemachine_trainer.testing.trees import comparable, digest
from statemachine_trainer.trainer import Trainer
from tests.debugging.kit import Net, finish, started
from tests.loops import test_active_learning, test_kfold, test_phases
from tests.loops.outer_kit import Model, make_trainer, numbered
from tests.resume.setups import SETUPS

pytestmark = pytest.mark.filterwarnings("ignore::statemachine_trainer.data.ReplayWarning")


def state(trainer: Trainer) -> str:
    return digest(comparable(trainer.state_dict()))


def test_every_boundary_leads_to_the_same_end() -> None:
    trainer = started()
    memory = trainer.remember(last=1000)
    end = finish(trainer)
    assert len(memory) > 60
    for kept in reversed([*memory][::3]):
        rewound = trainer.rewind(_back_to(trainer, kept.transitions))
        assert rewound.path == trainer.path == kept.path
        assert finish(trainer) == end


def _back_to(trainer: Trainer, transitions: int) -> int:
    """How far back a boundary is, from the end of the fit."""
    memory = trainer._debugger.memory
    assert memory is not None
    return memory._transitions - transitions


@pytest.mark.parametrize("name", SETUPS)
def test_fits_of_every_kind_can_be_gone_back_in(name: str) -> None:
    seed_all(0)
    trainer = SETUPS[name].make_trainer()
    memory = trainer.remember(last=1000)
    end = finish(trainer)
    for kept in random.Random(name).sample([*memory], 3):
        trainer.rewind(_back_to(trainer, kept.transitions))
        assert finish(trainer) == end
    for feed in (trainer.context.train, *(feed for _, feed in trainer.context.validation)):
        feed.shutdown()


@pytest.mark.parametrize(
    "make",
    [
        test_kfold.make_trainer,
        test_active_learning.make_trainer,
        test_phases.make_trainer,
        test_phases.make_rivals,
    ],
)
def test_loops_that_exchange_data_and_optimizers_can_be_gone_back_in(
    make: Callable[[], Trainer],
) -> None:
    seed_all(0)
    trainer = make()
    memory = trainer.remember(last=1000)
    end = finish(trainer)
    for kept in reversed([*memory][:: len(memory) // 4]):
        trainer.rewind(_back_to(trainer, kept.transitions))
        for _ in range(5):
            if trainer.path is not None:
                trainer.step()
        trainer.rewind(3)  # from the midst of a fold, round or phase
        assert finish(trainer) == end


def test_weights_counters_and_random_numbers_are_as_they_were() -> None:
    trainer = started()
    trainer.remember(last=100)
    trainer.run(until=lambda trainer, moment: trainer.steps == 3 and moment.state == "fetch")
    before, drawn = state(trainer), torch.rand(1)
    trainer.rewind(0)  # what was drawn by hand is undone
    assert torch.equal(torch.rand(1), drawn)
    trainer.rewind(0)
    trainer.run(until=lambda trainer, moment: trainer.steps == 5 and moment.state == "fetch")
    while (trainer.steps, trainer.path) != (3, "fit.epoch.fetch"):
        trainer.rewind(1)
    assert state(trainer) == before


def test_the_same_signals_follow() -> None:
    trainer, heard = started(), list[Moment]()
    trainer.on("*:*", lambda moment: heard.append(moment))
    trainer.remember()
    trainer.run(until="validation_step")
    heard.clear()
    trainer.run(until="epoch_end")
    first, told = [*heard], trainer.path
    back = 0
    while trainer.path != "fit.epoch.validation.validation_step":
        back = trainer.rewind(1).back
    assert back == 1
    while trainer.rewind(1).path != "fit.epoch.validation.validation_start":
        pass
    trainer.run(until="validation_step")
    heard.clear()
    trainer.run(until="epoch_end")
    assert (heard, trainer.path) == (first, told)


def test_a_boundary_that_cannot_be_written_down_is_passed_over_and_the_answer_says_so() -> None:
    trainer = started()
    trainer.remember()
    trainer.run(until="optimizer_step")
    rewound = trainer.rewind(1)  # before backward there is a graph
    assert (rewound.asked, rewound.back) == (1, 2)
    assert trainer.path == "fit.epoch.batch.optimizer.forward"
    assert "went back 2 transitions" in str(rewound)
    assert "at least 1 back" in str(rewound)
    trainer.step()
    trainer.step()
    assert str(trainer.rewind(2)) == (
        "went back 2 transitions: before fit.epoch.batch.optimizer.forward, epoch 1, step 0"
    )


def test_only_some_boundaries_are_kept_if_asked_for() -> None:
    trainer = started()
    memory = trainer.remember(at="batch_start", last=3)
    finish(trainer)
    names = [one.path.rpartition(".")[2] for one in memory if one.path]
    assert names == ["batch_start"] * 3
    assert trainer.rewind(1).path == "fit.epoch.batch.batch_start"


def test_one_can_go_back_again_and_again_and_try_something_else() -> None:
    trainer = started()
    trainer.remember(at="batch_start")
    trainer.run(until=lambda trainer: trainer.steps == 4)
    ends = []
    for rate in (0.01, 1.0, 0.01):
        trainer.rewind(1)
        trainer.context.optimizers[0].param_groups[0]["lr"] = rate
        trainer.run(until="batch_end")
        ends.append(digest(dict(trainer.model.state_dict())))
    assert ends[0] == ends[2] != ends[1]


def test_a_receiver_for_once_that_was_called_since_is_called_again() -> None:
    trainer, calls = started(), list[int]()
    trainer.on("batch_end", lambda trainer: calls.append(trainer.steps), once=True)
    trainer.remember()
    trainer.run(until=lambda trainer, moment: moment.event == "batch_done")
    trainer.rewind(3)
    trainer.run()
    assert calls == [1, 1]


def test_a_fit_that_failed_can_be_gone_back_in() -> None:
    undisturbed = finish(started())
    trainer = started()
    trainer.remember()

    def fail(trainer: Trainer) -> None:
        raise RuntimeError

    failing = trainer.on("validation_step", fail)
    with pytest.raises(RuntimeError):
        trainer.run()
    failing.cancel()
    trainer.rewind(4)
    assert finish(trainer) == undisturbed


def test_a_new_fit_forgets_the_boundaries_of_the_one_before() -> None:
    trainer = make_trainer()
    memory = trainer.remember()
    trainer.fit(Model(), numbered(3))
    trainer.fit(Model(), numbered(2), restart=True, until="batch_start")
    names = [one.path.rpartition(".")[2] for one in memory if one.path]
    assert names == ["fit_start", "next_epoch", "epoch_start", "fetch", "batch_start"]
    trainer.rewind(1)
    trainer.run()
    assert trainer.steps == 2


def test_memory_is_bounded_and_tells_its_size() -> None:
    trainer = started()
    memory = trainer.remember(last=4)
    finish(trainer)
    assert len(memory) == 4
    assert "4 boundaries" in repr(memory)
    assert "MiB" in repr(memory)
    memory.stop()
    assert len(memory) == 0
    trainer.breakpoint("fetch")


def test_a_snapshot_is_not_changed_by_what_follows() -> None:
    trainer = started()
    memory = trainer.remember(at="batch_start", last=100)
    trainer.run(until=lambda trainer: trainer.steps == 1)
    kept = next(iter(memory))
    before = digest(kept.tree())
    trainer.run()
    assert digest(kept.tree()) == before


def test_a_stop_at_a_breakpoint_is_forgotten() -> None:
    trainer = started()
    trainer.remember()
    trainer.breakpoint("batch_end")
    trainer.run()
    trainer.rewind(2)
    assert trainer.stopped_at is None
    trainer.run()
    assert trainer.path == "fit.epoch.batch.batch_end"


def test_what_cannot_be_gone_back_to_is_said() -> None:
    trainer = started()
    with pytest.raises(NothingRemembered, match="remember"):
        trainer.rewind()
    trainer.remember(last=3)
    trainer.run(until="validation")
    with pytest.raises(NothingRemembered, match=r"the oldest that is kept is \d back"):
        trainer.rewind(500)
    with pytest.raises(SettingError, match="rewind"):
        trainer.rewind(-1)
    with pytest.raises(SettingError, match="last=0"):
        trainer.remember(last=0)


def test_a_receiver_cannot_rewind_the_run_that_calls_it() -> None:
    trainer = started()
    trainer.remember()
    trainer.on("batch_end", lambda trainer: trainer.rewind(1) and None)
    with pytest.raises(AlreadyRunning):
        trainer.run()


def test_nothing_is_kept_of_evaluations() -> None:
    trainer = started()
    memory = trainer.remember()
    trainer.run(until="batch_start")
    kept = len(memory)
    loader: Any = trainer.context.validation[0][1].loader
    trainer.validate(Net(), loader)
    assert len(memory) == kept
    trainer.rewind(1)
    assert trainer.run() == "fit_done"
