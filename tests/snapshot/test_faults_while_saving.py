"""Whatever happens to a save, a whole checkpoint is found: the one before, or the new one.

A save is repeated with an error at its first call to the file system, its second, and so on until
it meets none; then with a crash after each call; then with a loss of power there.
"""

from __future__ import annotations

import errno
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from statemachine_trainer.snapshot import (
    CleanupWarning,
    Damaged,
    Loaded,
    Retention,
    Store,
    WriteFailed,
)
from statemachine_trainer.snapshot.filesystem import FileSystem, LocalFileSystem
from tests.snapshot.faults import Crash, FaultyFileSystem


def save(store: Store, step: int, name: str | None = None) -> None:
    tree = {"step": step, "weights": [torch.full((50,), float(step)), torch.full((3,), step)]}
    store.save(tree, name=name or f"step-{step}", metadata={"step": step})


def step_of(loaded: Loaded | None) -> int:
    """The step of a checkpoint, whose parts all tell the same one."""
    assert loaded is not None
    step = loaded.metadata["step"]
    assert isinstance(step, int)
    assert isinstance(loaded.tree, dict)
    assert loaded.tree["step"] == step
    assert all(bool((weight == step).all()) for weight in loaded.tree["weights"])
    return step


def store_in(root: Path, files: FileSystem | None = None) -> Store:
    return Store(root, retention=Retention(last=2), files=files)


def first(store: Store) -> None:
    """The first save of a run, which makes the folder."""
    save(store, 4)


def next_one(store: Store) -> None:
    """A save that makes an older checkpoint superfluous."""
    save(store, 4)


def same_name(store: Store) -> None:
    """A save that takes the place of the one before."""
    save(store, 4, name="step-3")


@pytest.fixture(params=[first, next_one, same_name], ids=lambda save: save.__name__)
def saving(request: pytest.FixtureRequest) -> Callable[[Store], None]:
    act: Callable[[Store], None] = request.param
    return act


@pytest.fixture
def start(tmp_path: Path, saving: Callable[[Store], None]) -> Callable[[], Path]:
    """A fresh run of three saves, as often as asked for; of none, before a first save."""
    template = tmp_path / "template"
    if saving is not first:
        for step in (1, 2, 3):
            save(store_in(template), step)
    count = 0

    def copy() -> Path:
        nonlocal count
        count += 1
        root = tmp_path / str(count)
        if template.exists():
            shutil.copytree(template, root)
        return root

    return copy


def newest(root: Path) -> Loaded | None:
    """Without a warning: no checkpoint that can be seen is damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return store_in(root).newest()


def assert_old_or_new(root: Path, saving: Callable[[Store], None], *, old: bool = True) -> None:
    found = newest(root)
    if saving is first and found is None:
        assert old
    else:
        assert step_of(found) in ({3, 4} if old else {4})
    assert all(info.damage is None for info in store_in(root).list())


def assert_goes_on(root: Path, store: Store) -> None:
    """The next save works, and after it what is on the disk is what is meant to be there."""
    save(store, 5)
    assert step_of(newest(root)) == 5
    assert len(store.list()) <= 2


def failure_of(saving: Callable[[Store], None], store: Store) -> WriteFailed | None:
    """The error of a save; that an old checkpoint could not be deleted is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CleanupWarning)
        try:
            saving(store)
        except WriteFailed as failure:
            return failure
    return None


def calls_of(saving: Callable[[Store], None], start: Callable[[], Path]) -> list[str]:
    files = FaultyFileSystem()
    saving(store_in(start(), files))
    return files.calls


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from-then-on"])
def test_an_error_at_any_call_leaves_a_whole_checkpoint(
    start: Callable[[], Path], saving: Callable[[Store], None], error: int, lasting: bool
) -> None:
    for number in range(1000):
        files = FaultyFileSystem(number, error=error, lasting=lasting)
        root = start()
        store = store_in(root, files)
        failure = failure_of(saving, store)
        if failure is not None:
            assert isinstance(failure.__cause__, OSError)
            assert failure.__cause__.errno == error
            assert "make room" in str(failure)
        assert_old_or_new(root, saving, old=failure is not None)
        if failure is not None and saving is not first:
            assert step_of(store_in(root).load("step-2")) == 2  # nothing is deleted for a failure
        assert_goes_on(root, store_in(root))
        if not files.happened:
            break
    assert number == len(files.calls) > 20


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_after_an_error_the_same_store_goes_on(
    start: Callable[[], Path], saving: Callable[[Store], None], error: int
) -> None:
    for number in range(len(calls_of(saving, start))):
        root = start()
        store = store_in(root, FaultyFileSystem(number, error=error))
        if failure_of(saving, store) is not None:
            saving(store)
        assert_old_or_new(root, saving, old=False)
        assert_goes_on(root, store)


def test_a_crash_after_any_call_leaves_a_whole_checkpoint(
    start: Callable[[], Path], saving: Callable[[Store], None]
) -> None:
    for number in range(len(calls_of(saving, start))):
        root = start()
        with pytest.raises(Crash):
            saving(store_in(root, FaultyFileSystem(number)))
        assert_old_or_new(root, saving)
        assert_goes_on(root, store_in(root))


@pytest.mark.parametrize("seed", range(4))
def test_a_loss_of_power_after_any_call_leaves_a_whole_checkpoint(
    start: Callable[[], Path], saving: Callable[[Store], None], seed: int
) -> None:
    chance = random.Random(seed)
    for number in range(len(calls_of(saving, start))):
        root = start()
        files = FaultyFileSystem(number)
        with pytest.raises(Crash):
            saving(store_in(root, files))
        files.lose_power(chance)
        assert_old_or_new(root, saving)
        assert_goes_on(root, store_in(root))


@pytest.mark.parametrize("seed", range(4))
def test_what_save_returned_from_survives_a_loss_of_power(
    start: Callable[[], Path], saving: Callable[[Store], None], seed: int
) -> None:
    root = start()
    files = FaultyFileSystem()
    saving(store_in(root, files))
    files.lose_power(random.Random(seed))
    assert_old_or_new(root, saving, old=False)


class WithoutSync(FaultyFileSystem):
    """A disk on which nothing is ever safe: the model of a loss of power must show it."""

    def sync_folder(self, path: Path) -> None:
        self.call("sync_folder", lambda: None)


def test_the_model_of_a_loss_of_power_finds_a_missing_sync(tmp_path: Path) -> None:
    lost = 0
    for seed in range(10):
        root = tmp_path / str(seed)
        for step in (1, 2, 3):
            save(store_in(root), step)
        files = WithoutSync()
        save(store_in(root, files), 4)
        files.lose_power(random.Random(seed))
        try:
            lost += newest(root) is None or step_of(newest(root)) != 4
        except Damaged:
            lost += 1
    assert lost > 0


def test_a_real_disk_that_refuses_a_large_file_fails_the_save(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    store = store_in(tmp_path)
    save(store, 3)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 20, before[1]))
    try:
        with pytest.raises(WriteFailed, match="File too large"):
            store.save({"w": torch.ones(10 << 20)}, name="large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert step_of(newest(tmp_path)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001-step-3", "latest"]


def test_the_local_disk_refuses_what_is_no_regular_file(tmp_path: Path) -> None:
    files = LocalFileSystem()
    with pytest.raises(OSError, match="not a regular file"):
        files.open(tmp_path)
    (tmp_path / "link").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="symbolic link"):
        files.open(tmp_path / "link")
