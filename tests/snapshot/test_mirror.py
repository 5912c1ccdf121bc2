"""A mirror holds each checkpoint whole or not at all, wherever it is cut off, and is brought back whole."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from statemachine_trainer.snapshot import (
    BadMirror,
    Mirror,
    Retention,
    SnapshotMismatch,
    Store,
    WriteFailed,
)


class CutOff(LocalFileSystem):  # type: ignore[misc]
    """A file system that writes half of a file at one of its calls, and does nothing more from then on."""

    protocol: ClassVar[str] = "cutoff"

    def __init__(self, after: int, **options: Any) -> None:
        super().__init__(**options)
        self.left = after

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("cutoff://"))  # type: ignore[no-any-return]

    def _write(self, path: str, data: bytes) -> None:
        self.left -= 1
        if self.left > 0:
            super().pipe_file(path, data)
            return
        if self.left == 0:
            super().pipe_file(path, data[: len(data) // 2])
        raise ConnectionError("the line is dead")

    def pipe_file(self, path: str, value: bytes, *rest: Any, **options: Any) -> None:
        self._write(path, value)

    def put_file(self, path1: str, path2: str, *rest: Any, **options: Any) -> None:
        self._write(path2, Path(path1).read_bytes())

    def rm_file(self, path: str) -> None:
        self.left -= 1
        if self.left <= 0:
            raise ConnectionError("the line is dead")
        super().rm_file(path)


fsspec.register_implementation("cutoff", CutOff, clobber=True)


def save(store: Store, step: int) -> None:
    store.save(tree(step), name=f"step-{step}", metadata={"step": step})


def tree(step: int) -> dict[str, Any]:
    return {"step": step, "w": torch.full((50,), step)}


def steps_in(folder: Path) -> list[int]:
    """Read each checkpoint of a folder to the last byte."""
    store, found = Store(folder), []
    for info in store.list():
        loaded: Any = store.load(info.path).tree
        assert bool((loaded["w"] == loaded["step"]).all())
        found.append(loaded["step"])
    return found


@pytest.mark.parametrize("calls", range(1, 25))
def test_wherever_the_line_is_cut_what_is_there_is_whole(calls: int, tmp_path: Path) -> None:
    there = tmp_path / "there"
    cut = Mirror(f"cutoff://{there}", options={"after": calls, "skip_instance_cache": True})
    store = Store(tmp_path / "here", retention=Retention(last=2))
    safe = 0
    for step in (1, 2, 3, 4):
        save(store, step)
        cut.send(store.root)
        try:
            cut.wait()
            safe = step
        except WriteFailed:
            break

    mirror = Mirror(f"file://{there}")
    mirror.fetch(tmp_path / "new")
    fetched = steps_in(tmp_path / "new")
    assert not fetched or fetched[-1] >= safe, "what was told to be sent is there"
    assert fetched or not safe

    again = Store(tmp_path / "new", retention=Retention(last=2))
    save(again, 9)
    mirror.send(again.root)
    mirror.wait()
    assert mirror.whole() == {one.name for one in again.root.glob("0*")}
    assert not [*there.rglob("*half")], "what was cut off is gone"


def test_it_holds_what_the_folder_holds(address: str, tmp_path: Path) -> None:
    mirror, store = Mirror(address), Store(tmp_path / "here", retention=Retention(last=2))
    for step in range(1, 6):
        save(store, step)
        if step == 2:
            store.pin("step-2")
        mirror.send(store.root)
        mirror.wait()
    assert mirror.whole() == {one.path.name for one in store.list()}
    mirror.fetch(tmp_path / "new")
    assert steps_in(tmp_path / "new") == [2, 4, 5]
    save(Store(tmp_path / "new", retention=Retention(last=1)), 6)
    assert steps_in(tmp_path / "new") == [2, 6], "what is pinned stays pinned"


def test_a_folder_that_is_as_new_fetches_nothing(address: str, tmp_path: Path) -> None:
    mirror, store = Mirror(address), Store(tmp_path / "here")
    save(store, 1)
    mirror.send(store.root)
    mirror.wait()
    assert Mirror(address).fetch(store.root) == []
    save(store, 2)
    assert Mirror(address).fetch(store.root) == []


def test_an_older_folder_gets_what_it_lacks(address: str, tmp_path: Path) -> None:
    first = Store(tmp_path / "first")
    save(first, 1)
    mirror = Mirror(address)
    mirror.fetch(tmp_path / "second")
    mirror.send(first.root)
    mirror.wait()
    mirror.fetch(tmp_path / "second")
    save(first, 2)
    mirror.send(first.root)
    mirror.wait()
    assert [one.name for one in Mirror(address).fetch(tmp_path / "second")] == ["000002-step-2"]


def test_a_run_that_went_on_in_two_places_is_refused(address: str, tmp_path: Path) -> None:
    mirror = Mirror(address)
    for place in ("first", "second"):
        save(Store(tmp_path / place), 1)
    mirror.send(tmp_path / "first")
    mirror.wait()
    with pytest.raises(SnapshotMismatch, match="in two places"):
        Mirror(address).fetch(tmp_path / "second")


def test_a_damaged_one_there_is_passed_over(address: str, tmp_path: Path) -> None:
    mirror, store = Mirror(address), Store(tmp_path / "here")
    for step in (1, 2):
        save(store, step)
    mirror.send(store.root)
    mirror.wait()
    files, root = fsspec.url_to_fs(address)
    files.pipe_file(f"{root}/000002-step-2/tensors.safetensors", b"short")
    assert [one.name for one in mirror.fetch(tmp_path / "new")] == ["000001-step-1"]
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["000001-step-1"]


def test_a_file_in_the_place_of_the_folder_is_told(address: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteFailed, match="is no folder"):
        Mirror(address).fetch(tmp_path / "file")


def test_all_files_of_a_checkpoint_are_sent(address: str, tmp_path: Path) -> None:
    store, mirror = Store(tmp_path / "here"), Mirror(address)
    save(store, 1)
    whole = store.root / "000001-step-1"
    (whole / "shard-1.safetensors").write_bytes(b"a part of a tensor")
    mirror.send(store.root)
    mirror.wait()
    files, root = fsspec.url_to_fs(address)
    there = {one.rpartition("/")[2] for one in files.find(f"{root}/{whole.name}")}
    assert there == {one.name for one in whole.iterdir()}


def test_an_earlier_run_is_set_aside_there(address: str, tmp_path: Path) -> None:
    for name in ("earlier-1", "earlier-2"):
        store = Store(tmp_path / name)
        save(store, 1)
        mirror = Mirror(address)
        mirror.send(store.root)
        mirror.wait()
        mirror.set_aside()
        assert mirror.whole() == set()
        assert Mirror(f"{address}/{name}").whole() == {"000001-step-1"}
    mirror.set_aside()
    assert Mirror(f"{address}/earlier-3").whole() == set()


@pytest.mark.parametrize(
    "address, told",
    [
        ("nope://bucket/run", "cannot be opened: .*Protocol not known"),
        ("runs/mine", "is no address"),
        ("/runs/mine", "is no address"),
        ("", "is no address"),
        (None, "is no address"),
        ("simplecache::s3://bucket/run", "is no address"),
        ("memory://", "names no folder"),
    ],
)
def test_what_is_no_place_for_one_is_refused_at_once(address: Any, told: str) -> None:
    with pytest.raises(BadMirror, match=told):
        Mirror(address)


def test_the_package_that_is_missing_is_named() -> None:
    for kind, package, told in (("s3", "s3fs", "remote"), ("gs", "gcsfs", "gcsfs")):
        if importlib.util.find_spec(package) is None:
            with pytest.raises(BadMirror, match=rf"pip install .*{told}"):
                Mirror(f"{kind}://bucket/run")


def test_a_place_that_takes_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    mirror = Mirror(f"file://{tmp_path}/file/run")
    with pytest.raises(WriteFailed, match="cannot be written"):
        mirror.try_to_write()
