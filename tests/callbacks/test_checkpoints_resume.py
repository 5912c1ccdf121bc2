"""Going on from a checkpoint: which one, by which trainer, and what is refused."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer import EpochLoop, Trainer, every
from statemachine_trainer.audit.settings_record import SettingsChanged
from statemachine_trainer.callbacks import Checkpoints, EarlyStopping
from statemachine_trainer.callbacks.checkpoints import EarlierRun
from statemachine_trainer.callbacks.finding import NoCheckpoint
from statemachine_trainer.data.data_errors import DataChanged
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.machine.errors import StateMachineError, StateMismatch
from statemachine_trainer.parallel.parallel_errors import PrecisionMismatch
from statemachine_trainer.run_record import RESUME_VARIABLE
from statemachine_trainer.snapshot import Damaged, DamagedCheckpointWarning, Retention
from statemachine_trainer.snapshot.loading import load_weights
from statemachine_trainer.snapshot.snapshot_errors import NotACheckpoint, SnapshotMismatch
from tests.callbacks.kit import Net, batches, fit, same, steps, trainer_with, weights_of

ALL = Retention(last=None)


def checkpoints(folder: Path, interval: object = 3, **options: Any) -> Checkpoints:
    return Checkpoints(folder, **{"every": interval, "retention": ALL, **options})


def stopped_at(folder: Path, step: int = 5, interval: object = 3, **settings: Any) -> Path:
    """A run that was stopped, with a checkpoint, after so many steps."""
    trainer = trainer_with(checkpoints(folder, interval), **settings)
    trainer.on("batch_end", trainer.pause, when=lambda trainer: trainer.steps == step)
    trainer.fit(Net(), batches())
    trainer.checkpoint()
    return folder


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, torch.Tensor]:
    trainer = trainer_with(None)
    trainer.fit(Net(), batches())
    return weights_of(trainer)


# -- which one -------------------------------------------------------------------------------------


def test_auto_begins_where_there_is_no_checkpoint_and_goes_on_where_there_is(
    tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    for stop in (2, 5, None):  # the same command each time
        trainer = trainer_with(checkpoints(tmp_path / "run"))
        trainer.on("batch_end", trainer.pause, when=lambda t, at=stop: t.steps == at)
        trainer.fit(Net(), batches(), resume="auto")
        if stop:
            trainer.checkpoint()
    assert trainer.path is None
    assert same(weights_of(trainer), undisturbed)


def test_a_checkpoint_is_named_by_its_folder_or_by_that_of_its_run(
    tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    run = stopped_at(tmp_path / "run")
    for place in (run, str(run), run / "000001-step-00000003"):
        trainer = trainer_with(None)
        trainer.fit(Net(), batches(), resume=place)
        assert same(weights_of(trainer), undisturbed)


def test_where_there_is_none_the_error_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    torch.save({}, tmp_path / "pickle.pt")
    for place, message in (
        (
            tmp_path / "nowhere",
            "There is no checkpoint at .*nowhere: no such folder.*leave resume out",
        ),
        (tmp_path / "empty", "There is no checkpoint in"),
        (tmp_path / "pickle.pt", "pickle"),
        ("latest", 'is resume="auto"'),
        ("atuo", 'is resume="auto"'),
    ):
        with pytest.raises(NoCheckpoint, match=message):
            trainer_with(None).fit(Net(), batches(), resume=place)
    with pytest.raises(NoCheckpoint, match="needs a place to look"):
        trainer_with(None).fit(Net(), batches(), resume="auto")


def damage(checkpoint: Path) -> None:
    path = checkpoint / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_damaged_newest_one_is_passed_over_with_a_warning_that_names_the_damage(
    tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    run = stopped_at(tmp_path / "run")
    damage(run / "000002-step-00000005")
    trainer = trainer_with(checkpoints(run))
    with pytest.warns(DamagedCheckpointWarning, match=r"step-00000005.*its checksum is"):
        trainer.fit(Net(), batches(), resume="auto")
    assert same(weights_of(trainer), undisturbed)


def test_where_all_are_damaged_nothing_begins_anew_by_itself(tmp_path: Path) -> None:
    run = stopped_at(tmp_path / "run")
    for path in run.glob("0*"):
        damage(path)
    trainer = trainer_with(checkpoints(run))
    with pytest.warns(DamagedCheckpointWarning), pytest.raises(Damaged, match="is whole"):
        trainer.fit(Net(), batches(), resume="auto")


# -- the folder of a run ---------------------------------------------------------------------------


def kept_in(run: Path) -> list[str]:
    """Names of what is in the folder of a run, whether or not a trainer still has it or its journal."""
    passing = ("requests-", "run.lock", "journal.sqlite-")
    return sorted(one.name for one in run.iterdir() if not one.name.startswith(passing))


def test_a_run_does_not_begin_in_the_folder_of_another_one(tmp_path: Path) -> None:
    run = stopped_at(tmp_path / "run")
    before = kept_in(run)
    with pytest.raises(EarlierRun, match="checkpoints of an earlier run"):
        trainer_with(checkpoints(run)).fit(Net(), batches())
    other = stopped_at(tmp_path / "other")
    with pytest.raises(EarlierRun):  # nor does one that goes on from elsewhere
        trainer_with(checkpoints(run)).fit(Net(), batches(), resume=other)
    assert kept_in(run) == before


def test_restart_sets_the_earlier_run_aside(tmp_path: Path) -> None:
    run = stopped_at(tmp_path / "run")
    old = sorted(path.name for path in run.glob("0*"))
    for number in (1, 2):
        mine = checkpoints(run, "1 day")
        trainer_with(mine).fit(Net(), batches(), restart=True)
        assert steps(mine) == [8]
        aside = run / f"earlier-{number}"
        assert json.loads((aside / "run.json").read_text())["history"][0]["event"] == "started"
        load_weights(Net(), aside)
    assert sorted(path.name for path in (run / "earlier-1").glob("0*")) == old


def test_a_trainer_that_begins_again_counts_its_interval_anew(tmp_path: Path) -> None:
    mine = checkpoints(tmp_path, at_end=False)
    trainer = fit(mine)
    trainer.fit(None, batches(), batches(1), restart=True)
    assert steps(mine) == [3, 6]


def test_the_record_tells_how_the_run_was_started_and_what_became_of_it(tmp_path: Path) -> None:
    run = stopped_at(tmp_path / "run")
    trainer_with(checkpoints(run)).fit(Net(), batches(), resume="auto")
    record = json.loads((run / "run.json").read_text())
    assert record["folder"] == str(Path.cwd())
    assert {"python", "torch", "statemachine_trainer"} <= set(record["versions"])
    events = [one["event"] for one in record["history"]]
    assert events == ["started", "resumed", "ended"]
    assert record["history"][1]["checkpoint"].endswith("000002-step-00000005")


def test_a_run_that_fails_says_so_in_its_record(tmp_path: Path) -> None:
    trainer = trainer_with(checkpoints(tmp_path))

    def fail() -> None:
        raise ValueError("no more")

    trainer.on("batch_end", fail, when=lambda trainer: trainer.steps == 4)
    with pytest.raises(ValueError, match="no more"):
        trainer.fit(Net(), batches())
    last = json.loads((tmp_path / "run.json").read_text())["history"][-1]
    assert (last["event"], last["error"]) == ("failed", "ValueError: no more")
    assert steps(trainer.checkpoints) == [3]  # type: ignore[arg-type]  # trap 17: none where it raised


def test_a_run_json_that_is_something_else_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run.json").write_text('{"command": "make coffee"}')
    fit(checkpoints(tmp_path))
    assert "run.json is not the record of a run. It is now in" in caplog.text
    assert (tmp_path / "damaged-1" / "run.json").read_text() == '{"command": "make coffee"}'
    assert json.loads((tmp_path / "run.json").read_text())["history"][0]["event"] == "started"


# -- the environment of `smt resume` ---------------------------------------------------------------


def test_the_environment_makes_a_fit_that_says_nothing_go_on(
    tmp_path: Path, undisturbed: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped_at(tmp_path / "run")
    monkeypatch.setenv(RESUME_VARIABLE, "auto")
    trainer = trainer_with(checkpoints(run))
    trainer.on("fit:enter", lambda: pytest.fail("it began anew"))
    trainer.fit(Net(), batches())
    assert same(weights_of(trainer), undisturbed)


def test_the_environment_does_not_overrule_what_the_script_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped_at(tmp_path / "run")
    monkeypatch.setenv(RESUME_VARIABLE, "auto")
    begun: list[int] = []
    mine = checkpoints(run, "1 day")
    trainer = trainer_with(mine)
    trainer.on("epoch_start", lambda: begun.append(1))
    trainer.fit(Net(), batches(), restart=True)
    assert (begun, steps(mine)) == ([1], [8])
    trainer.loop.max_epochs = 2
    trainer.fit()  # goes on in this process, as ever
    assert (trainer.epoch, trainer.steps) == (2, 16)
    trainer_with(None).fit(Net(), batches())  # without checkpoints there is nothing to look for


# -- other checkpoints -----------------------------------------------------------------------------


def test_a_run_may_go_on_without_checkpoints_and_with_them_again(
    tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    run = stopped_at(tmp_path / "run")
    bare = trainer_with(None)
    bare.fit(Net(), batches(), resume=run, until="epoch_end")
    state = bare.state_dict()
    assert state["checkpoints"] is None

    mine = checkpoints(tmp_path / "other", 1)
    trainer = trainer_with(mine)
    trainer.start(Net(), batches())
    trainer.load_state_dict(state)
    trainer.run()
    assert same(weights_of(trainer), undisturbed)
    assert steps(mine) == [8]


@pytest.mark.parametrize(
    "before, after, expected",
    [
        (1, 4, [1, 2, 3, 4, 5, 8]),
        (4, 1, [4, 5, 6, 7, 8]),
        (4, every(2, "step"), [4, 5, 6, 8]),
        (3, 3, [3, 5, 6, 8]),
        ("1 day", 5, [5, 8]),
    ],
)
def test_a_run_may_go_on_with_another_interval(
    tmp_path: Path, before: object, after: object, expected: list[int]
) -> None:
    run = stopped_at(tmp_path / "run", interval=before)
    mine = checkpoints(run, after)
    told = r"the checkpoints: every was .*, is .* now\. The script's holds"
    with nullcontext() if before == after else pytest.warns(SettingsChanged, match=told):
        trainer_with(mine).fit(Net(), batches(), resume="auto")
    assert sorted({*steps(mine)}) == expected  # type: ignore[type-var]


def test_a_run_that_was_stopped_writes_where_the_undisturbed_one_does(tmp_path: Path) -> None:
    whole = checkpoints(tmp_path / "whole", 2)
    fit(whole, validate_every=4)
    for stop in range(1, 8):
        folder = tmp_path / f"at-{stop}"
        for at in (stop, None):
            mine = checkpoints(folder, 2)
            trainer = trainer_with(mine, validate_every=4)
            trainer.on("forward", trainer.pause, when=lambda t, at=at: t.steps == at)
            trainer.fit(Net(), batches(), batches(1), resume="auto")
            if at:
                trainer.checkpoint()
        assert {*steps(whole)} <= {*steps(mine)} <= {*steps(whole), stop}
        shutil.rmtree(folder)


# -- runs that had ended ---------------------------------------------------------------------------


def test_an_ended_run_that_is_resumed_does_nothing_and_knows_its_metrics(tmp_path: Path) -> None:
    first = fit(checkpoints(tmp_path))
    trainer = trainer_with(checkpoints(tmp_path))
    trainer.on("*", lambda: pytest.fail("it did something"))
    metrics = trainer.fit(Net(), batches(), batches(1), resume="auto")
    assert metrics == first.metrics
    assert (trainer.path, trainer.epoch, trainer.steps) == (None, 1, 8)
    assert same(weights_of(trainer), weights_of(first))


@pytest.mark.parametrize(
    "limit, first, then", [("max_epochs", 1, 3), ("max_steps", 5, 24), ("max_batches", 8, 24)]
)
def test_an_ended_run_whose_limit_was_raised_goes_on_as_in_one_process(
    tmp_path: Path, limit: str, first: int, then: int
) -> None:
    limits: dict[str, Any] = {"max_epochs": None, limit: first}
    trainer_with(checkpoints(tmp_path), **limits).fit(Net(), batches())
    again = trainer_with(checkpoints(tmp_path), **{**limits, limit: then})
    again.fit(Net(), batches(), resume="auto")

    one = trainer_with(None, **limits)
    one.fit(Net(), batches())
    setattr(one.loop, limit, then)
    one.fit()
    assert again.steps == one.steps == 24
    assert same(weights_of(again), weights_of(one))


def test_a_run_that_stopped_early_stays_so(tmp_path: Path) -> None:
    def make() -> Trainer:
        stop = EarlyStopping("loss", patience=1, min_delta=1.0)
        return trainer_with(checkpoints(tmp_path), callbacks=[stop], max_epochs=10)

    first = make()
    first.fit(Net(), batches())
    assert first.epoch == 2
    again = make()
    again.fit(Net(), batches(), resume="auto")
    assert (again.epoch, again.path) == (2, None)


# -- other runs ------------------------------------------------------------------------------------


class Deeper(Net):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(2, 2)


class Momentum(Net):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


class Scheduled(Net):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class TwoOptimizers(Net):
    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD([parameter], lr=0.1)
            for parameter in (self.layer.weight, self.layer.bias)
        ]

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int = 0) -> torch.Tensor:
        return super().training_step(batch, batch_idx)


class Counting:
    def on_epoch_end(self) -> None: ...

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None: ...


class OwnEpoch(EpochLoop):
    more: int = 0


def own_loop() -> Trainer:
    trainer = trainer_with(None)
    trainer.loop.replace(epoch=OwnEpoch())
    return trainer


@pytest.mark.parametrize(
    "error, says, trainer, model, data",
    [
        (SnapshotMismatch, "'more.weight' is only in the model", {}, Deeper, batches),
        (SnapshotMismatch, r"shape \(2, 4\), here \(2, 5\)", {}, lambda: Net(5), batches),
        (SnapshotMismatch, "was SGD, here it is Adam", {}, Momentum, batches),
        (SnapshotMismatch, "schedulers", {}, Scheduled, batches),
        (SnapshotMismatch, "there were 1.*here are 2", {}, TwoOptimizers, batches),
        (DataChanged, "8", {}, Net, lambda: batches(9)),
        (PrecisionMismatch, "'32'.*'bf16'", {"precision": "bf16"}, Net, batches),
        (SnapshotMismatch, "Counting", {"callbacks": [Counting()]}, Net, batches),
        (StateMismatch, "'fit.epoch' was a EpochLoop and is a OwnEpoch", own_loop, Net, batches),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_what_differs_is_said(
    tmp_path: Path, error: type[StateMachineError], says: str, trainer: Any, model: Any, data: Any
) -> None:
    run = stopped_at(tmp_path)
    other = trainer() if callable(trainer) else trainer_with(None, **trainer)
    with pytest.raises(error, match=says):
        other.fit(model(), data(), resume=run)
    with pytest.raises(StateMachineError):
        other.run()  # nothing is left half loaded
    width = 5 if "2, 5" in says else 4
    other.fit(model(), batches(width=width))
    assert other.context.counts.batch == 8


def test_other_validation_loaders_are_refused(tmp_path: Path) -> None:
    run = stopped_at(tmp_path)
    with pytest.raises(SnapshotMismatch, match="0 validation loaders, this run 1"):
        trainer_with(None).fit(Net(), batches(), batches(1), resume=run)


# -- the weights alone -----------------------------------------------------------------------------


def test_the_weights_alone_go_into_a_model_in_other_surroundings(tmp_path: Path) -> None:
    run = stopped_at(tmp_path, step=8)
    model = Net().eval()
    for place in (run, str(run), sorted(run.glob("0*"))[-1]):
        model.layer.weight.data.zero_()
        load_weights(model, place)
        assert model.layer.weight.abs().sum() > 0
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_weights_of_another_model_change_nothing(tmp_path: Path) -> None:
    run = stopped_at(tmp_path)
    model = Deeper()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SnapshotMismatch, match=r"'more\.bias' is only in the model"):
        load_weights(model, run)
    assert same(dict(model.state_dict()), before)


def test_a_checkpoint_that_holds_something_else_has_no_weights(tmp_path: Path) -> None:
    from statemachine_trainer.snapshot import Store

    for number, tree in enumerate([{"w": 1}, [1], {"context": {"model": {"weights": [1]}}}]):
        path = Store(tmp_path).save(tree, name=f"n{number}")
        with pytest.raises(SnapshotMismatch, match="holds no weights of a model"):
            load_weights(Net(), path)
    with pytest.raises(NotACheckpoint):
        load_weights(Net(), tmp_path / "nowhere")


def test_a_trainer_goes_on_with_a_run_by_its_folder(tmp_path: Path) -> None:
    data = [(torch.ones(2, 2), torch.zeros(2, 1))] * 4
    parts: Any = {"loss": torch.nn.functional.mse_loss, "optimizer": torch.optim.SGD}
    first = Trainer(max_epochs=1, progress=False, checkpoints=Checkpoints(tmp_path / "run"))
    first.fit(torch.nn.Linear(2, 1), data, **parts)
    second = Trainer(max_epochs=3, progress=False)
    second.resume(tmp_path / "run", torch.nn.Linear(2, 1), data, **parts)
    assert (second.epoch, second.steps) == (3, 12)


def test_a_fit_begins_anew_or_goes_on(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"restart=True begins .*resume='auto' goes on"):
        trainer_with(checkpoints(tmp_path, 4)).fit(Net(), batches(), resume="auto", restart=True)
