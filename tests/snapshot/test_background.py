"""Saving in the background: the copy is consistent, and a failure is never swallowed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statemachine_trainer.snapshot import Retention, Store, Unwritable, WriteFailed
from statemachine_trainer.snapshot.filesystem import LocalFileSystem, OutputFile
from statemachine_trainer.snapshot.tensor_file import DTYPES, bytes_of, write
from statemachine_trainer.snapshot.threads import Staging


class Gate(LocalFileSystem):
    """A disk that waits before it opens a file, until it is let."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open_gate = threading.Event()

    def create(self, path: Path) -> OutputFile:
        self.reached.set()
        assert self.open_gate.wait(60)
        return super().create(path)


class Full(LocalFileSystem):
    """A disk that is full for as long as one says."""

    full = True

    def create(self, path: Path) -> OutputFile:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().create(path)


def test_save_returns_before_anything_is_written(tmp_path: Path) -> None:
    gate = Gate()
    with Store(tmp_path, background=True, files=gate) as store:
        path = store.save({"w": torch.ones(2)}, name="x")
        assert gate.reached.wait(60)
        assert store.newest() is None
        gate.open_gate.set()
        store.wait()
        newest = store.newest()
        assert newest is not None
        assert newest.path == path


def test_what_changes_after_save_returned_is_not_in_the_checkpoint(tmp_path: Path) -> None:
    gate = Gate()
    weight = torch.arange(6.0)
    array = weight.numpy()[::2]
    numbers = [1]
    tree: dict[str, object] = {"w": weight, "view": weight[1:3], "n": array, "l": numbers}
    tree["turned"] = weight.view(2, 3).T
    with Store(tmp_path, background=True, files=gate) as store:
        store.save(tree, name="x", metadata=(metadata := {"metrics": {"loss": 1}}))
        assert gate.reached.wait(60)
        weight.fill_(-1)
        numbers.append(2)
        metadata["metrics"]["loss"] = 2
        tree.clear()
        gate.open_gate.set()
    read = store.load("x")
    assert isinstance(read.tree, dict)
    assert read.tree["w"].tolist() == [0, 1, 2, 3, 4, 5]
    assert read.tree["view"].tolist() == [1, 2]
    assert read.tree["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert read.tree["n"].tolist() == [0, 2, 4]
    assert read.tree["l"] == [1]
    assert read.metadata == {"metrics": {"loss": 1}}


@given(st.lists(st.lists(st.integers(0, 300_000), max_size=4), min_size=1, max_size=4))
def test_memory_used_again_for_other_shapes_holds_no_old_values(shapes: list[list[int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), background=True, retention=Retention(last=None))
        with store:
            for step, sizes in enumerate(shapes):
                weights = [torch.full((size,), step, dtype=torch.int32) for size in sizes]
                store.save(weights, name=f"step-{step}")
                for weight in weights:
                    weight.fill_(-1)
        for step, sizes in enumerate(shapes):
            read = store.load(f"step-{step}").tree
            assert isinstance(read, list)
            assert [len(weight) for weight in read] == sizes
            assert all(bool((weight == step).all()) for weight in read)


@pytest.mark.parametrize("names", [[*DTYPES], [*DTYPES][::-1], [*DTYPES][::3], []])
def test_the_file_of_copies_is_that_of_the_tensors_themselves(names: list[str]) -> None:
    shapes = [(3,), (), (0,), (2, 0, 3), (5, 7), (70_000,)]
    tensors = {
        f"{name} {shape}": torch.zeros(shape, dtype=torch.uint8).to(DTYPES[name])
        for name in names
        for shape in shapes
    }
    staging = Staging()
    for value in (0, 1, 255):
        for one in tensors.values():
            bytes_of(one)[:] = bytes([value % (2 if one.dtype is torch.bool else 256)]) * one.nbytes
        expected, found = bytearray(), bytearray()
        write(tensors, expected.extend)
        staging.copy(tensors).write(found.extend)
        assert found == expected


def test_a_failed_write_is_raised_by_wait_once(tmp_path: Path) -> None:
    store = Store(tmp_path, background=True, files=Full())
    store.save({}, name="x")
    with pytest.raises(WriteFailed, match=r"'x' could not be written.*No space left"):
        store.wait()
    store.wait()
    store.close()


def test_a_failed_write_is_raised_by_the_next_save_which_then_works(tmp_path: Path) -> None:
    disk = Full()
    store = Store(tmp_path, background=True, files=disk)
    store.save({"a": 1}, name="x")
    with pytest.raises(WriteFailed, match="'x'"):
        store.save({"a": 2}, name="y")
    disk.full = False
    store.save({"a": 2}, name="y")
    store.close()
    assert [info.name for info in store.list()] == ["y"]


def test_a_failed_write_is_raised_at_the_end_of_with(tmp_path: Path) -> None:
    with (
        pytest.raises(WriteFailed, match="'x'"),
        Store(tmp_path, background=True, files=Full()) as store,
    ):
        store.save({}, name="x")


def test_a_failed_write_is_logged_even_if_nobody_waits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path, background=True, files=Full())
    store.save({}, name="x")
    with pytest.raises(WriteFailed):
        store.wait()
    assert "'x' could not be written" in caplog.text


def test_a_tree_that_is_not_plain_is_refused_at_once(tmp_path: Path) -> None:
    with Store(tmp_path, background=True) as store, pytest.raises(Unwritable, match=r"a\.b"):
        store.save({"a": {"b": object()}}, name="x")


def test_a_save_waits_for_the_one_before(tmp_path: Path) -> None:
    gate = Gate()
    saved: list[str] = []
    with Store(tmp_path, background=True, files=gate) as store:

        def save_both() -> None:
            for name in ("x", "y"):
                store.save({}, name=name)
                saved.append(name)

        thread = threading.Thread(target=save_both)
        thread.start()
        assert gate.reached.wait(60)
        assert "y" not in saved
        gate.open_gate.set()
        thread.join(60)
        assert saved == ["x", "y"]
    assert [info.name for info in store.list()] == ["x", "y"]


EXITS_AT_ONCE = """
import sys
from pathlib import Path
import torch
from statemachine_trainer.snapshot import Store

Store(Path(sys.argv[1]), background=True).save([torch.ones(12_000_000)] * 2, name="x")
"""


def test_a_process_does_not_exit_before_the_write_is_done(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", EXITS_AT_ONCE, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert isinstance(Store(tmp_path).load("x").tree, list)


def test_deleting_happens_in_the_background_too(tmp_path: Path) -> None:
    with Store(tmp_path, background=True, retention=Retention(last=1)) as store:
        for step in range(5):
            store.save({"w": torch.full((3,), step)}, name=f"step-{step}")
    assert [info.name for info in store.list()] == ["step-4"]
