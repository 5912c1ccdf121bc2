"""The files of a checkpoint go to the disk together: an error of one is that of the save."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
import torch

from statemachine_trainer.snapshot import Store, WriteFailed

SYNCED = 5
"""Three files, their folder and the one around it."""


@pytest.mark.parametrize("number", range(SYNCED))
def test_a_file_that_the_disk_does_not_take_fails_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = Store(tmp_path / "run")
    store.save({"w": torch.ones(3)}, name="before")
    sync, taken = os.fsync, iter(range(1000))

    def broken(descriptor: int) -> None:
        if next(taken) == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        with pytest.raises(WriteFailed):
            store.save({"w": torch.zeros(3)}, name="after")
    names = [path.name for path in (tmp_path / "run").iterdir()]
    assert not [name for name in names if name.startswith(".tmp@")]
    store.save({"w": torch.full((3,), 2.0)}, name="last")
    newest = store.newest()
    assert newest is not None
    assert newest.path.name.endswith("-last")


def test_where_no_thread_is_to_be_had_a_checkpoint_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    store = Store(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        store.save({"w": torch.ones(3)}, name="alone")
    newest = store.newest()
    assert newest is not None
    assert newest.path.name.endswith("-alone")
