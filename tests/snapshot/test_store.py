"""Saving, finding and reading the checkpoints of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from statemachine_trainer.snapshot import BadName, NotACheckpoint, Retention, Store, filesystem


def test_a_checkpoint_is_a_folder_that_a_person_can_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs" / "1", versions={"statemachine_trainer": "0.1"})
    path = store.save(
        {"loops": {"fit": {"epoch": 3}}, "model": {"w": torch.ones(2)}},
        name="step-7",
        metadata={"step": 7, "metrics": {"loss": 0.5}},
    )
    assert path == tmp_path / "runs" / "1" / "000001-step-7"
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["metadata"] == {"step": 7, "metrics": {"loss": 0.5}}
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["versions"]["statemachine_trainer"] == "0.1"
    state = json.loads((path / "state.json").read_text())
    assert state["tree"]["loops"] == {"fit": {"epoch": 3}}
    assert state["tree"]["model"] == {"w": {"$tensor": "model.w"}}
    assert (path.parent / "latest").read_text() == "000001-step-7\n"
    assert {entry.name for entry in path.parent.iterdir()} == {"latest", "000001-step-7"}


def test_an_empty_store_has_no_newest_and_makes_no_folder(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    assert store.newest() is None
    assert store.list() == []
    assert not (tmp_path / "runs").exists()


def test_the_list_tells_what_the_manifests_say_without_reading_tensors(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for step in (1, 2):
        store.save({"w": torch.ones(step)}, name=f"step-{step}", metadata={"step": step})
    path = store.list()[0].path / "tensors.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    infos = store.list()
    assert [(info.name, info.sequence, info.metadata) for info in infos] == [
        ("step-1", 1, {"step": 1}),
        ("step-2", 2, {"step": 2}),
    ]
    assert infos[0].created <= infos[1].created
    assert infos[1].size - infos[0].size == 4
    assert [info.damage for info in infos] == [None, None]


def test_a_checkpoint_is_loaded_by_name_or_by_path(tmp_path: Path) -> None:
    path = Store(tmp_path).save({"a": 1}, name="x", metadata={"step": 1})
    by_name = Store(tmp_path).load("x")
    assert by_name == Store(tmp_path / "elsewhere").load(path)
    assert by_name == Store(tmp_path / "elsewhere").load(str(path))
    assert by_name.tree == {"a": 1}
    assert by_name.metadata == {"step": 1}
    assert by_name.path == path


def test_a_checkpoint_that_was_moved_is_still_one(tmp_path: Path) -> None:
    path = Store(tmp_path).save({"a": 1}, name="x")
    moved = path.rename(tmp_path / "best")
    assert Store(tmp_path).load(moved).tree == {"a": 1}


@pytest.mark.parametrize("wrong, hint", [("step-11", "did you mean 'step-1'"), ("zzz", "list()")])
def test_a_misspelt_name_offers_those_there_are(tmp_path: Path, wrong: str, hint: str) -> None:
    store = Store(tmp_path)
    store.save({}, name="step-1")
    with pytest.raises(NotACheckpoint) as caught:
        store.load(wrong)
    assert hint in str(caught.value)
    with pytest.raises(NotACheckpoint):
        store.pin(wrong)


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NotACheckpoint, match=str(path)):
            Store(tmp_path).load(path)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/x", "a/b", "a\0", "-x", ".x", "x" * 101])
def test_a_name_that_no_folder_should_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadName, match="letters, digits"):
        Store(tmp_path / "runs").save({}, name=name)
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_replaces_the_one_of_the_same_name(tmp_path: Path) -> None:
    store = Store(tmp_path, retention=Retention(last=None))
    store.save({"a": 1}, name="best")
    store.save({"a": 2}, name="other")
    store.save({"a": 3}, name="best")
    assert [(info.name, info.sequence) for info in store.list()] == [("other", 2), ("best", 3)]
    assert store.load("best").tree == {"a": 3}


def test_numbers_go_on_after_the_newest_in_a_new_process(tmp_path: Path) -> None:
    for expected in (1, 2, 3, 4):
        store = Store(tmp_path, retention=Retention(last=1))
        store.save({}, name="x")
        assert [info.sequence for info in store.list()] == [expected]


def test_files_of_other_people_are_left_alone(tmp_path: Path) -> None:
    for name in ("notes", "000001", "000001-", "1-x", "000001-.x", ".hidden", ".tmp@x"):
        (tmp_path / name).mkdir(parents=True)
    store = Store(tmp_path, retention=Retention(last=1))
    for _ in range(3):
        store.save({}, name="x")
    assert len(store.list()) == 1
    assert len(list(tmp_path.iterdir())) == 9


KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
from statemachine_trainer.snapshot import Store
from statemachine_trainer.snapshot.filesystem import LocalFileSystem

class Killed(LocalFileSystem):
    def rename(self, source, target):
        os.kill(os.getpid(), signal.SIGKILL)

Store(Path(sys.argv[1]), files=Killed()).save({"a": [1]}, name="x")
"""


def test_what_a_killed_writer_left_is_removed_by_the_next_save(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path)]
    subprocess.run(command, env=environment, check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".tmp@")
    store = Store(tmp_path)
    assert store.newest() is None
    store.save({}, name="y")
    assert {path.name for path in tmp_path.iterdir()} == {"latest", "000001-y"}


@pytest.mark.parametrize("days, removed", [(0, False), (2, True)])
def test_what_a_writer_on_another_machine_left_is_removed_after_a_day(
    tmp_path: Path, days: int, removed: bool
) -> None:
    left = tmp_path / ".tmp@another.machine@1@abcd@000001-x"
    left.mkdir()
    (left / "state.json").write_bytes(b"{")
    at = time.time() - days * 86400
    os.utime(left, (at, at))
    Store(tmp_path).save({}, name="y")
    assert left.exists() is not removed


def test_what_another_process_writes_now_is_left_alone(tmp_path: Path) -> None:
    own = Store(tmp_path)
    own.save({}, name="x")
    mine = filesystem.temporary_name("000009-z")
    parent = mine.replace(f"@{os.getpid()}@", f"@{os.getppid()}@")
    (tmp_path / parent).mkdir()
    (tmp_path / mine).mkdir()
    own.save({}, name="y")
    assert (tmp_path / parent).exists()
    assert (tmp_path / mine).exists()


def test_a_deletion_that_was_cut_short_is_finished_by_the_next_save(tmp_path: Path) -> None:
    trash = tmp_path / ".trash@000001-x"
    trash.mkdir()
    (trash / "state.json").write_bytes(b"{}")
    store = Store(tmp_path)
    assert store.list() == []
    store.save({}, name="y")
    assert not trash.exists()
