"""Trackers of experiments, each written to for real, without a network."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from statemachine_trainer.integrations.trackers import MissingTracker, TensorBoard, Tracker
from tests.observe.recorded import Net, batches, trainer

ROOT = Path(__file__).resolve().parents[2]


class Noting(Tracker):
    def __init__(self, every: int = 50) -> None:
        super().__init__(every=every)
        self.written: list[tuple[int, list[str]]] = []
        self.closed = 0

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.written.append((step, sorted(metrics)))

    def close(self) -> None:
        self.closed += 1


def test_a_tracker_is_a_function_that_writes() -> None:
    mine = Noting(every=3)
    running = trainer(callbacks=[mine], max_epochs=1)
    running.fit(Net(), batches(), batches(1))
    running.test(data=batches(1))
    assert mine.written == [
        (3, ["step/loss"]),
        (6, ["step/loss"]),
        (8, ["validation/score"]),
        (8, ["train/loss"]),
        (8, ["test/score"]),
    ]
    assert mine.closed == 1


def test_a_tracker_hears_of_the_exception_that_ends_a_run() -> None:
    class Hearing(Noting):
        heard: BaseException | None = None

        def close_after(self, error: BaseException) -> None:
            self.heard = error

    def fail(trainer: object) -> None:
        raise ValueError("boom")

    mine = Hearing()
    running = trainer(callbacks=[mine], max_epochs=1)
    running.on("epoch_end", fail)
    with pytest.raises(ValueError, match="boom") as caught:
        running.fit(Net(), batches())
    assert mine.heard is caught.value
    assert mine.closed == 0


def test_a_tracker_without_an_interval_writes_epochs_and_validations_only() -> None:
    mine = Noting(every=0)
    trainer(callbacks=[mine], max_epochs=1).fit(Net(), batches(), batches(1))
    assert mine.written == [(8, ["validation/score"]), (8, ["train/loss"])]


def test_a_package_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingTracker, match=r"statemachine-trainer\[tensorboard\]"):
        TensorBoard(tmp_path)


def track(code: str, folder: Path) -> None:
    """Train in a process of its own: these packages change signal handlers, threads and streams."""
    script = (
        "from statemachine_trainer.integrations import trackers\n"
        "from tests.observe.recorded import Net, batches, trainer\n"
        "def fit(tracker, epochs=2):\n"
        "    trainer(callbacks=[tracker], max_epochs=epochs).fit(Net(), batches(), batches(1))\n"
        f"{code}\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TRACKIO_DIR": str(folder / "trackio"),
        "HF_HUB_OFFLINE": "1",
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(folder),
        "HOME": str(folder),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (folder / "output.txt").open("w+") as output:
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=100,
        )
        output.seek(0)
        assert done.returncode == 0, output.read()


@pytest.mark.slow
def test_tensorboard_reads_what_was_written_and_a_resumed_run_replaces_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    code = (
        "fit(trackers.TensorBoard('board', every=4))\nfit(trackers.TensorBoard('board', every=4))"
    )
    track(
        code
        + "\nimport json\n"
        + "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        + "found = EventAccumulator('board').Reload()\n"
        + "steps = {n: [e.step for e in found.Scalars(n)] for n in found.Tags()['scalars']}\n"
        + "open('steps.json', 'w').write(json.dumps(steps))",
        tmp_path,
    )
    assert json.loads((tmp_path / "steps.json").read_text()) == {
        "step/loss": [4, 8, 12, 16],
        "train/loss": [8, 16],
        "validation/score": [8, 16],
    }


@pytest.mark.slow
def test_mlflow_has_the_history_of_each_metric(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    track(
        "tracker = trackers.MLflow('digits', uri='sqlite:///store.db', every=4)\n"
        "fit(tracker)\n"
        "import json\n"
        "from mlflow.tracking import MlflowClient\n"
        "client = MlflowClient(tracking_uri='sqlite:///store.db')\n"
        "run = client.get_run(tracker.run_id)\n"
        "names = ('step/loss', 'train/loss', 'validation/score')\n"
        "steps = {n: [m.step for m in client.get_metric_history(tracker.run_id, n)] for n in names}\n"
        "open('steps.json', 'w').write(json.dumps([run.info.status, steps]))",
        tmp_path,
    )
    assert json.loads((tmp_path / "steps.json").read_text()) == [
        "FINISHED",
        {"step/loss": [4, 8, 12, 16], "train/loss": [8, 16], "validation/score": [8, 16]},
    ]


@pytest.mark.slow
def test_a_run_that_failed_is_called_failed_and_keeps_its_points(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("tensorboard")
    track(
        "tracker = trackers.MLflow('digits', uri='sqlite:///store.db', every=4)\n"
        "board = trackers.TensorBoard('board', every=4)\n"
        "running = trainer(callbacks=[tracker, board], max_epochs=1)\n"
        "def fail(trainer):\n"
        "    raise ValueError('boom')\n"
        "running.on('fit_end', fail)\n"
        "try:\n"
        "    running.fit(Net(), batches())\n"
        "except ValueError:\n"
        "    pass\n"
        "import json\n"
        "from mlflow.tracking import MlflowClient\n"
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "status = MlflowClient(tracking_uri='sqlite:///store.db').get_run(tracker.run_id).info.status\n"
        "found = EventAccumulator('board').Reload()\n"
        "steps = {n: [e.step for e in found.Scalars(n)] for n in found.Tags()['scalars']}\n"
        "open('found.json', 'w').write(json.dumps([status, steps]))",
        tmp_path,
    )
    assert json.loads((tmp_path / "found.json").read_text()) == [
        "FAILED",
        {"step/loss": [4, 8], "train/loss": [8]},
    ]


@pytest.mark.slow
def test_tensorboard_keeps_every_point_of_a_fit_after_a_test(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    track(
        "running = trainer(callbacks=[trackers.TensorBoard('board', every=4)], max_epochs=1)\n"
        "running.fit(Net(), batches(), batches(1))\n"
        "running.test(data=batches(1))\n"
        "import json\n"
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "del running\n"
        "import gc; gc.collect()\n"
        "found = EventAccumulator('board').Reload()\n"
        "steps = {n: [e.step for e in found.Scalars(n)] for n in found.Tags()['scalars']}\n"
        "open('steps.json', 'w').write(json.dumps(steps))",
        tmp_path,
    )
    assert json.loads((tmp_path / "steps.json").read_text()) == {
        "step/loss": [4, 8],
        "validation/score": [8],
        "train/loss": [8],
        "test/score": [8],
    }


@pytest.mark.slow
def test_weights_and_biases_keeps_an_offline_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    track("fit(trackers.WandB(project='digits', mode='offline', every=4))", tmp_path)
    (written,) = tmp_path.rglob("run-*.wandb")
    content = written.read_bytes()
    assert all(name in content for name in (b"step/loss", b"train/loss", b"validation/score"))


@pytest.mark.slow
def test_trackio_keeps_the_metrics_on_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    track("fit(trackers.Trackio('digits', name='mine', every=4))", tmp_path)
    (database,) = tmp_path.rglob("digits*.db")
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    steps = [step for step, metrics in rows if "train/loss" in json.loads(metrics)]
    assert steps == [8, 16]


@pytest.mark.slow
def test_mlflow_and_tensorboard_have_the_hyperparameters_and_keep_those_of_a_resumed_run(
    tmp_path: Path,
) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("tensorboard")
    track(
        "def fit(**hparams):\n"
        "    tracker = trackers.MLflow('digits', uri='sqlite:///store.db', run_id=known)\n"
        "    board = trackers.TensorBoard('board')\n"
        "    running = trainer(callbacks=[tracker, board], max_epochs=1, hparams=hparams)\n"
        "    running.fit(Net(), batches(), batches(1))\n"
        "    return tracker.run_id\n"
        "known = None\n"
        "known = fit(width=4)\n"
        "fit(width=4, depth=2)\n"
        "import json\n"
        "from mlflow.tracking import MlflowClient\n"
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "params = MlflowClient(tracking_uri='sqlite:///store.db').get_run(known).data.params\n"
        "found = EventAccumulator('board').Reload().summary_metadata\n"
        "told = any('hparams' in str(one) for one in found.values())\n"
        "open('found.json', 'w').write(json.dumps([params, told]))",
        tmp_path,
    )
    params, told = json.loads((tmp_path / "found.json").read_text())
    assert {name: params[name] for name in ("width", "depth", "lr", "optimizer")} == {
        **{"width": "4", "depth": "2", "lr": "0.1", "optimizer": "SGD"}
    }
    assert told


@pytest.mark.slow
def test_weights_and_biases_and_trackio_have_the_hyperparameters(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    pytest.importorskip("trackio")
    track(
        "def fit(tracker):\n"
        "    trainer(callbacks=[tracker], max_epochs=1, hparams={'my_width': 4}).fit(Net(), batches())\n"
        "fit(trackers.WandB(project='digits', mode='offline', every=4))\n"
        "fit(trackers.Trackio('digits', name='mine', every=4))",
        tmp_path,
    )
    (written,) = tmp_path.rglob("run-*.wandb")
    assert b"my_width" in written.read_bytes()
    (database,) = tmp_path.rglob("digits*.db")
    assert b"my_width" in database.read_bytes()
