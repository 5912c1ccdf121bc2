"""Traces of a run for Perfetto: slices, events, counters, and a file that is whole at any time."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from statemachine_trainer.observe.trace import TraceUnwritable
from statemachine_trainer.trainer import Trainer
from tests.loops.outer_kit import Model, make_trainer, numbered

ROOT = Path(__file__).resolve().parents[2]
Event = dict[str, Any]


def traced(folder: Path, trainer: Trainer, *data: Any) -> list[Event]:
    with trainer.trace(folder / "trace.json") as trace:
        trainer.fit(Model(), *data)
    return read(trace.path)


def read(path: Path) -> list[Event]:
    events = json.loads(path.read_text())
    assert isinstance(events, list)
    return events


def slices(events: list[Event], track: int = 1) -> list[tuple[float, float, str]]:
    """Begin, end and name of each slice of a track, as a viewer finds them: outer ones first."""
    found, opened = list[tuple[float, float, int, str]](), list[Event]()
    for event in events:
        if event["tid"] != track:
            continue
        if event["ph"] == "X":
            found.append((event["ts"], event["ts"] + event["dur"], 99, event["name"]))
        elif event["ph"] == "B":
            opened.append(event)
        elif event["ph"] == "E":
            begun = opened.pop()
            assert begun["name"] == event["name"]
            found.append((begun["ts"], event["ts"], len(opened), event["name"]))
    assert not opened
    found.sort(key=lambda one: (one[0], -one[1], one[2]))
    return [(begun, ended, name) for begun, ended, _, name in found]


def paths(events: list[Event], track: int = 1) -> list[str]:
    """The names of the slices around each slice and its own; slices must lie within each other."""
    around, found = list[tuple[float, str]](), []
    for begun, ended, name in slices(events, track):
        while around and around[-1][0] <= begun:
            around.pop()
        assert not around or ended <= around[-1][0] + 0.002, (name, around)  # rounded to 1 ns
        around.append((ended, name))
        found.append(".".join(name for _, name in around))
    return found


def test_states_are_slices_within_those_of_their_loops(tmp_path: Path) -> None:
    trainer = make_trainer()
    ran = list[str]()

    def note(path: str, work: Any) -> Any:
        def noted() -> object:
            ran.append(path)
            return work()

        return noted

    trainer.driver.instrument(note)
    events = traced(tmp_path, trainer, numbered(2), numbered(1))
    nodes = trainer.driver.program.nodes
    found = paths(events)
    assert [path for path in found if path in nodes] == ran
    loops = {path for path in found if path not in nodes}
    assert loops == {path.rpartition(".")[0] for path in ran}
    assert found.count("fit.epoch.batch.optimizer") == 2


def test_receivers_are_slices_between_the_states(tmp_path: Path) -> None:
    trainer = make_trainer()

    def report() -> None: ...

    trainer.on("batch_end", report, when=lambda: True)
    events = traced(tmp_path, trainer, numbered(2))
    told = [one["name"] for one in events if one.get("cat") == "subscriber"]
    assert sum(name.endswith("report") for name in told) == 2 + 2  # with its condition
    paths(events)  # they lie between the others


def test_events_are_instants(tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer.on("batch_end", lambda trainer: trainer.stop(), once=True)
    events = traced(tmp_path, trainer, numbered(3))
    instants = [one for one in events if one["ph"] == "i"]
    names = [one["name"] for one in instants]
    assert names[:3] == ["fit_started", "epoch_due", "epoch_started"]
    assert names.count("batch_done") == 1
    assert "stop" in names
    stop = next(one for one in instants if one["name"] == "stop")
    assert stop["args"]["source"] == "fit.epoch.fetch"


def test_metrics_are_counters_at_the_ends_of_passes(tmp_path: Path) -> None:
    trainer = make_trainer(max_epochs=2)
    events = traced(tmp_path, trainer, numbered(2), numbered(2))
    values = [one["args"]["value"] for one in events if one["ph"] == "C" and one["name"] == "value"]
    assert values[0] == 0.5


def test_an_evaluation_within_a_fit_has_its_own_track(tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer.on("epoch_end", lambda trainer: trainer.validate(data=numbered(2)) and None)
    events = traced(tmp_path, trainer, numbered(1))
    names = {one["tid"]: one["args"]["name"] for one in events if one["name"] == "thread_name"}
    track = next(number for number, name in names.items() if name == "validate")
    assert any(path.endswith("validation_step") for path in paths(events, track))
    paths(events)


def test_a_trace_may_begin_and_end_in_the_midst_of_a_run(tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer.fit(Model(), numbered(4), until="backward")
    with trainer.trace(tmp_path / "trace.json"):
        trainer.run(until="batch_end")
    trainer.run()
    found = paths(read(tmp_path / "trace.json"))
    assert found[:4] == ["fit", "fit.epoch", "fit.epoch.batch", "fit.epoch.batch.optimizer"]
    assert "fit.epoch.batch.batch_split" in found
    assert "fit.epoch.batch.batch_end" not in found


def test_slices_are_right_after_the_machine_was_moved(tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer.remember()
    with trainer.trace(tmp_path / "trace.json"):
        trainer.fit(Model(), numbered(2), numbered(1), until="validation_step")
        trainer.rewind(5)
        trainer.run()
    paths(read(tmp_path / "trace.json"))


def test_a_trace_that_was_ended_leaves_nothing_on_the_way(tmp_path: Path) -> None:
    trainer = make_trainer(max_epochs=2)
    with trainer.trace(tmp_path / "trace.json") as trace:
        trainer.fit(Model(), numbered(2), until="epoch_end")
    written = trace.path.read_bytes()
    trainer.run()
    trace.stop()  # a second time does nothing
    assert trace.path.read_bytes() == written


KILLED = """
import os, signal, sys
from tests.loops.outer_kit import Model, make_trainer, numbered
trainer = make_trainer()
trainer.on("batch_end", lambda: os.kill(os.getpid(), signal.SIGKILL), every=300)
trainer.trace(sys.argv[1])
trainer.fit(Model(), numbered(400))
"""


def test_the_trace_of_a_killed_run_lacks_its_bracket_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], cwd=ROOT, timeout=120, stdin=subprocess.DEVNULL
    )
    assert done.returncode == -signal.SIGKILL
    text = path.read_text()
    events = json.loads(text.rstrip().removesuffix(",") + "]")  # as Chrome and Perfetto read it
    assert sum(one["name"] == "batch_end" for one in events) > 200


def test_a_place_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(TraceUnwritable, match="No such file"):
        make_trainer().trace(tmp_path / "missing" / "trace.json")


def test_a_full_disk_ends_the_trace_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    trainer, model = make_trainer(), Model()
    with caplog.at_level(logging.WARNING), trainer.trace("/dev/full"):
        trainer.fit(model, numbered(100))
    assert len(model.trained) == 100
    assert "The trace /dev/full ends here" in caplog.text
