"""When checkpoints are written, and which are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from statemachine_trainer import EpochLoop, FitLoop, Loop, Trainer, every, log
from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.loops import Phase, PhasesLoop
from statemachine_trainer.loops.base import TrainingLoop
from statemachine_trainer.loops.loop_errors import MissingMetric, SettingError
from statemachine_trainer.machine.errors import NotStarted
from statemachine_trainer.snapshot import Best, KeepEvery, Retention, Unwritable, WriteFailed
from tests.callbacks.kit import Net, batches, fit, found, steps, trainer_with

ALL = Retention(last=None)


def checkpoints(folder: Path, interval: object = "1 epoch", **options: Any) -> Checkpoints:
    return Checkpoints(folder, **{"every": interval, "retention": ALL, "at_end": False, **options})


@pytest.mark.parametrize(
    "interval, expected",
    [
        (3, [3, 6]),
        (every(3, "batch", at_end=True), [3, 6, 8]),
        (every(2, "step"), [2, 4, 6, 8]),
        (every(12, "sample"), [3, 6]),
        ("1 epoch", [8]),
        (1.0, [8]),
        (0.25, [2, 4, 6, 8]),
        (every(5, "batch", within="epoch", at_end=True), [5, 8]),
        ("1 day", []),
    ],
)
def test_every_unit_of_an_interval_is_counted(
    tmp_path: Path, interval: object, expected: list[int]
) -> None:
    mine = checkpoints(tmp_path, interval)
    fit(mine)
    assert steps(mine) == expected


@pytest.mark.filterwarnings("ignore::statemachine_trainer.audit.report.NotHeld")  # its clock
def test_seconds_are_those_of_the_run(tmp_path: Path) -> None:
    mine = checkpoints(tmp_path, "10s")
    trainer = trainer_with(mine)
    trainer.start(Net(), batches())
    now = [0.0]
    trainer.context.clock = lambda: now[0]
    trainer.context.counts.seconds = 0.0

    def spend() -> None:
        now[0] += 4.0

    trainer.on("forward", spend)
    trainer.run()
    assert steps(mine) == [3, 5, 8]


def test_steps_are_counted_under_accumulation(tmp_path: Path) -> None:
    mine = checkpoints(tmp_path, every(1, "step"))
    fit(mine, accumulate=3)
    assert found(mine) == [(1, "batch_start"), (2, "batch_start"), (3, "next_epoch")]


def test_each_batch_of_one_window_has_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    mine = checkpoints(tmp_path, 1)
    fit(mine, accumulate=4, validate_every=1.0)
    assert len(found(mine)) == 8


def test_one_that_is_due_at_a_validation_is_written_after_it(tmp_path: Path) -> None:
    """Traps 33 and 34: before the validation of its step, or drifting away from it."""
    mine = checkpoints(tmp_path, 4)
    trainer = trainer_with(mine, validate_every=4)
    trainer.fit(Net(values=[0.5, 0.25]), batches(), batches(1))
    assert found(mine) == [(4, "fetch"), (8, "fetch")]
    assert [one.metadata["metrics"] for one in mine.store.list()] == [
        {"score": 0.5},
        {"score": 0.25},
    ]


def test_the_one_at_the_end_of_an_epoch_has_its_metrics(tmp_path: Path) -> None:
    mine = checkpoints(tmp_path)
    trainer = trainer_with(mine)
    trainer.fit(Net(values=[0.5]), batches(), batches(1))
    (only,) = mine.store.list()
    assert only.metadata["metrics"] == {"score": 0.5, "loss": 3.5}
    assert (only.metadata["epoch"], only.metadata["state"]) == (1, "fit.next_epoch")


def test_metrics_of_an_earlier_moment_are_not_taken_for_those_of_the_weights(
    tmp_path: Path,
) -> None:
    mine = checkpoints(tmp_path, 3)
    trainer = trainer_with(mine, validate_every=4)
    trainer.fit(Net(values=[0.5, 0.25]), batches(), batches(1))
    last = mine.store.list()[-1].metadata
    assert (last["step"], last["metrics"], last["earlier_metrics"]) == (6, {}, {"score": 0.5})


def test_the_end_of_the_fit_is_written_unless_told_otherwise(tmp_path: Path) -> None:
    mine = checkpoints(tmp_path, "1 day", at_end=True)
    fit(mine)
    assert found(mine) == [(8, None)]


def test_the_last_n_are_kept(tmp_path: Path) -> None:
    mine = checkpoints(tmp_path, 1, retention=Retention(last=2))
    fit(mine)
    assert steps(mine) == [7, 8]


def test_each_new_best_is_written_and_the_best_k_are_kept(tmp_path: Path) -> None:
    """Also where the interval has no checkpoint: the best is that of a validation."""
    best = Retention(last=1, best=Best("score", k=2))
    mine = checkpoints(tmp_path, "1 day", retention=best, at_end=True)
    trainer = trainer_with(mine, validate_every=1)
    values = [0.9, 0.5, 0.7, 0.4, 0.8, 0.45, 0.6, 0.6]
    trainer.fit(Net(values=values), batches(), batches(1))
    kept = [(one.metadata["step"], one.metadata["metrics"]) for one in mine.store.list()]
    assert kept[:2] == [(4, {"score": 0.4}), (6, {"score": 0.45})]
    assert [step for step, _ in kept] == [4, 6, 8]


def test_a_validation_that_is_not_among_the_best_writes_nothing(tmp_path: Path) -> None:
    written: list[str] = []
    mine = checkpoints(tmp_path, "1 day", retention=Retention(last=None, best=Best("score")))
    save = mine.store.save

    def count(*arguments: Any, **options: Any) -> Path:
        written.append(options["name"])
        return save(*arguments, **options)

    mine.store.save = count  # type: ignore[method-assign]
    trainer = trainer_with(mine, validate_every=2)
    trainer.fit(Net(values=[0.5, 0.9, 0.4, 0.4]), batches(), batches(1))
    assert written == ["step-00000002", "step-00000006"]


def test_the_best_by_a_metric_of_training_is_that_of_an_epoch(tmp_path: Path) -> None:
    mine = checkpoints(
        tmp_path, "1 day", retention=Retention(last=1, best=Best("loss", mode="max"))
    )
    trainer = trainer_with(mine, max_epochs=2)
    trainer.fit(Net(), batches())
    assert found(mine) == [(8, "next_epoch")]


def test_a_metric_that_was_never_logged_is_an_error_once_the_first_epoch_is_written(
    tmp_path: Path,
) -> None:
    mine = checkpoints(tmp_path, retention=Retention(best=Best("scor")))
    trainer = trainer_with(mine, max_epochs=2)
    with pytest.raises(MissingMetric, match=r"'scor'.*the end of epoch 1\. Did you mean 'score'"):
        trainer.fit(Net(values=[0.5, 0.4]), batches(), batches(1))
    assert found(mine) == [(8, "next_epoch")]
    mine.store.retention = Retention(best=Best("score"))
    trainer.run()
    assert steps(mine) == [8, 16]


def test_a_metric_of_a_validation_that_is_still_to_come_is_waited_for(tmp_path: Path) -> None:
    mine = checkpoints(tmp_path, retention=Retention(best=Best("scor")))
    trainer = trainer_with(mine, max_epochs=2, validate_epochs=2)
    with pytest.raises(MissingMetric, match="the end of epoch 2"):
        trainer.fit(Net(values=[0.5]), batches(), batches(1))


def test_a_metric_that_a_later_phase_logs_is_waited_for(tmp_path: Path) -> None:
    phases = [Phase(name, FitLoop(max_epochs=1, sanity_batches=0)) for name in ("a", "b")]
    mine = checkpoints(tmp_path, retention=Retention(best=Best("late")))
    trainer = Trainer(PhasesLoop(*phases), checkpoints=mine, progress=False)
    trainer.on("fit.b.epoch.batch.batch_start", lambda: log("late", 1.0))
    trainer.fit(Net(), batches())
    assert trainer.metrics["late"] == 1.0


def test_what_is_no_retention_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"give Retention\(\.\.\.\)"):
        Checkpoints(tmp_path, retention=Best("score"))  # type: ignore[arg-type]


def test_some_are_kept_for_ever(tmp_path: Path) -> None:
    mine = checkpoints(tmp_path, 1, retention=Retention(last=1, every=KeepEvery(3, "step")))
    fit(mine)
    assert steps(mine) == [3, 6, 8]


@pytest.mark.parametrize("background", [False, True])
def test_one_that_a_receiver_asks_for_is_written_at_the_next_boundary(
    tmp_path: Path, background: bool
) -> None:
    mine = checkpoints(tmp_path, "1 day", background=background)
    trainer = trainer_with(mine)
    trainer.on("backward", trainer.checkpoint, when=lambda trainer: trainer.steps == 2)
    trainer.fit(Net(), batches())
    mine.store.wait()
    assert found(mine) == [(2, "optimizer_step")]  # before `backward` there is a graph in flight


def test_one_that_is_asked_for_while_paused_is_written_at_once(tmp_path: Path) -> None:
    mine = checkpoints(tmp_path, "1 day")
    trainer = trainer_with(mine)
    trainer.fit(Net(), batches(), batches(1), until="validation")
    trainer.checkpoint()
    assert found(mine) == [(8, "validation_start")]


def test_one_asked_for_at_a_transient_boundary_comes_at_the_next(tmp_path: Path) -> None:
    mine = checkpoints(tmp_path, "1 day")
    trainer = trainer_with(mine)
    trainer.fit(Net(), batches(), until="backward")
    trainer.checkpoint()
    assert found(mine) == []
    trainer.run(until="batch_end")
    assert found(mine) == [(0, "optimizer_step")]


def test_before_a_fit_there_is_nothing_to_write(tmp_path: Path) -> None:
    trainer = trainer_with(checkpoints(tmp_path))
    with pytest.raises(NotStarted, match="before a fit"):
        trainer.checkpoint()


def test_receivers_of_the_same_signal_are_done_before_it_is_written(tmp_path: Path) -> None:
    """Trap 19: a callback's count that moves after the hook that saves."""

    class Count:
        def __init__(self) -> None:
            self.epochs = 0

        def on_exit_epoch_end(self) -> None:
            self.epochs += 1

        def state_dict(self) -> dict[str, int]:
            return {"epochs": self.epochs}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.epochs = state["epochs"]

    mine = checkpoints(tmp_path)
    trainer_with(mine, callbacks=[Count()]).fit(Net(), batches())
    loaded = mine.store.newest()
    assert loaded is not None
    tree: Any = loaded.tree
    assert tree["callbacks"][0]["state"] == {"epochs": 1}


# -- background ------------------------------------------------------------------------------------


def test_what_is_written_in_the_background_is_of_one_moment(tmp_path: Path) -> None:
    """While it is written the weights move on."""
    seen: dict[int, torch.Tensor] = {}
    mine = checkpoints(tmp_path, 1, background=True)
    trainer = trainer_with(mine)
    trainer.on("batch_end", lambda t: seen.update({t.steps: t.model.layer.weight.detach().clone()}))
    trainer.fit(Net(), batches())
    assert steps(mine) == [*range(1, 9)]
    for info in mine.store.list():
        tree: Any = mine.store.load(info.path).tree
        weight = tree["context"]["model"]["weights"]["layer.weight"]
        assert torch.equal(weight, seen[tree["context"]["counts"]["step"]])


def test_a_write_that_fails_in_the_background_is_raised(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    mine = checkpoints(tmp_path / "run", 1, background=True)
    trainer = trainer_with(mine)

    def take_the_folder_away() -> None:
        mine.store.wait()
        (tmp_path / "run").rename(tmp_path / "gone")
        (tmp_path / "run").write_text("a file in its place")

    trainer.on("batch_end", take_the_folder_away, when=lambda t: t.steps == 3, once=True)
    with pytest.raises(WriteFailed):
        trainer.fit(Net(), batches())
    assert trainer.path is not None  # at a boundary: mended, it goes on
    (tmp_path / "run").unlink()
    trainer.run()
    assert trainer.path is None


# -- batches that cannot be written ----------------------------------------------------------------


class Opaque:
    def __init__(self, pair: Any) -> None:
        self.pair = pair


class OpaqueNet(Net):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch.pair, batch_idx)


def test_a_batch_of_a_class_of_ones_own_postpones_it_until_the_batch_is_done(
    tmp_path: Path,
) -> None:
    mine = checkpoints(tmp_path, 3)
    trainer_with(mine).fit(OpaqueNet(), [Opaque(one) for one in batches()])
    assert found(mine) == [(4, "fetch"), (7, "fetch")]


def test_a_batch_that_is_never_let_go_is_an_error_in_the_end(tmp_path: Path) -> None:
    class Keeping(OpaqueNet):
        def on_exit_batch_end(self, trainer: Trainer) -> None:
            trainer.context.batch = Opaque(None)

    mine = checkpoints(tmp_path, 3)
    with pytest.raises(Unwritable, match=r"context\.in_flight\.batch"):
        trainer_with(mine).fit(Keeping(), [Opaque(one) for one in batches()])


def test_a_run_at_rest_says_which_batch_cannot_be_written(tmp_path: Path) -> None:
    mine = checkpoints(tmp_path, 100)
    trainer = trainer_with(mine)
    trainer.fit(OpaqueNet(), [Opaque(one) for one in batches()], until="batch_start")
    with pytest.raises(Unwritable, match=r"context\.in_flight\.batch"):
        mine.write()
    assert trainer.run() is not None


# -- other trees -----------------------------------------------------------------------------------


class Rounds(TrainingLoop):
    """A loop that has nothing of the standard ones."""

    initial = "play"
    transitions = (
        ["again", "play", "play"],
        ["enough", "play", "rest"],
    )
    outcomes = ("over",)

    rounds: int = 0

    def play(self) -> Literal["again", "enough"]:
        self.rounds += 1
        self.context.counts.batch += 1
        return "again" if self.rounds < 5 else "enough"

    def rest(self) -> Literal["over"]:
        return "over"


def test_a_tree_without_the_usual_states_has_checkpoints_all_the_same(tmp_path: Path) -> None:
    loop: Loop = Rounds()
    mine = checkpoints(tmp_path, 2, at_end=True)
    trainer = Trainer(loop, checkpoints=mine, progress=False)
    trainer.fit(Net(), batches())
    batches_done = [one.metadata["batch"] for one in mine.store.list()]
    assert batches_done == [2, 4, 5]


def test_loops_that_are_swapped_after_the_trainer_was_made_are_listened_to(tmp_path: Path) -> None:
    mine = checkpoints(tmp_path, 3)
    trainer = trainer_with(mine)
    trainer.loop.replace(epoch=EpochLoop(validate_every=2))
    trainer.fit(Net(), batches(), batches(1))
    assert steps(mine) == [3, 6]


def test_checkpoints_belong_to_one_trainer(tmp_path: Path) -> None:
    mine = checkpoints(tmp_path)
    trainer_with(mine)
    with pytest.raises(SettingError, match="belong to another trainer"):
        trainer_with(mine)
