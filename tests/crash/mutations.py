"""Files of a run, changed at random: each number makes one change that can be made again."""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from statemachine_trainer import Run
from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.control.control_errors import PageError
from statemachine_trainer.control.requests import endpoints_in
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.page.server import left_in
from statemachine_trainer.snapshot import Retention, SnapshotError, Store
from statemachine_trainer.testing.trees import digest
from tests.observe.recorded import Net, batches, trainer
from tests.snapshot.forgery import seal

BESIDE = (
    *("run.json", "journal.sqlite", "blackbox-0.ring", "pins.json", "latest"),
    *("requests-0.json", "page.json", "run.lock"),
)
"""Files beside the checkpoints."""

INSIDE = ("manifest.json", "state.json", "tensors.safetensors")
"""Files of a checkpoint."""

_TOKENS = (b"null", b"-1", b"1e999", b'"x"', b"[]", b"{}", b"true", b"9" * 400, b"\x00", b"\xff")


def make_run(folder: Path) -> None:
    """Write a run with all the files that there may be."""
    keeping = Checkpoints(folder, every="1 epoch", retention=Retention(last=3))
    one = trainer(checkpoints=keeping, max_epochs=2)
    one.fit(Net(), batches(2), batches(1))
    one.checkpoints.store.pin("step-00000002")  # type: ignore[union-attr]
    process = {"pid": 2**22 + 1, "host": "elsewhere", "begun": None}
    facts = {"ranks": 1, "address": str(folder / "nowhere"), "process": process}
    (folder / "requests-0.json").write_text(json.dumps(facts))
    (folder / "page.json").write_text(json.dumps({"url": "http://127.0.0.1:1/?token=a"}))
    (folder / "run.lock").write_text(json.dumps({"token": "a", **process}))


def mutate(path: Path, chance: random.Random) -> None:
    """Change one file."""
    if chance.random() < 0.03:
        _replace(path, chance)
        return
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        _change(data, chance)
    path.write_bytes(data)


def _replace(path: Path, chance: random.Random) -> None:
    path.unlink()
    chance.choice(
        (
            lambda: os.mkfifo(path),
            lambda: path.symlink_to("/dev/zero"),
            lambda: path.mkdir(),
            lambda: path.write_bytes(b"[" * 100_000),
            lambda: path.write_bytes(b'{"a":' * 50_000),
            lambda: path.write_bytes(chance.randbytes(5000)),
            lambda: None,
        )
    )()


def _change(data: bytearray, chance: random.Random) -> None:
    if not data:
        data += chance.choice(_TOKENS)
        return
    # What a file holds stands mostly at its beginning; a black box is long and nearly empty.
    at = chance.randrange(min(len(data), chance.choice((64, 4096, len(data)))))
    end = min(len(data), at + chance.choice((1, 4, 64)))
    kind = chance.randrange(7)
    if kind <= 1:
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 2:
        data[at] = chance.randrange(256)
    elif kind == 3:
        del data[at:]
    elif kind == 4:
        del data[at:end]
    elif kind == 5:
        data[at:end] = chance.choice(_TOKENS)
    else:
        data[at:at] = data[at:end]


class Fuzzer:
    """Changes files of one run, sees what comes of each change, and puts them back.

    Args:
        root: An empty folder to work in.
    """

    def __init__(self, root: Path) -> None:
        self._whole, self._root = root / "whole", root / "run"
        make_run(self._whole)
        shutil.copytree(self._whole, self._root)
        store = Store(self._whole)
        self._folders = [info.path.name for info in store.list()]
        self._trees = {name: digest(store.load(self._whole / name).tree) for name in self._folders}

    def try_one(self, number: int, *, resume: bool = False) -> None:
        """Make a change, and see that nobody is harmed by it.

        Args:
            number: Of the change.
            resume: Go on with the run, too.

        Raises:
            AssertionError: What was read is not what was written.
            Exception: Any error that is none of ours.
        """
        chance = random.Random(number)
        checkpoint = None if chance.random() < 0.6 else chance.choice(self._folders)
        inside = checkpoint is not None
        name = chance.choice(INSIDE if inside else BESIDE)
        path = self._root / (checkpoint or "") / name
        try:
            mutate(path, chance)
            sealed = inside and path.is_file() and not path.is_symlink() and chance.random() < 0.5
            if sealed and name != "manifest.json":
                seal(path.parent)  # as by somebody who means it
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._read(None if sealed else checkpoint)
                if resume and not sealed:
                    self._resume()
        finally:
            shutil.rmtree(self._root)
            shutil.copytree(self._whole, self._root)

    def _read(self, damaged: str | None) -> None:
        store = Store(self._root)
        for folder in self._folders:
            try:
                tree = store.load(self._root / folder).tree
            except SnapshotError:
                continue
            if folder == damaged or damaged is None:
                continue
            assert digest(tree) == self._trees[folder]
        if damaged is not None:
            try:
                tree = store.load(self._root / damaged).tree
            except SnapshotError:
                pass
            else:  # a change that changes nothing, such as the order of blanks
                assert digest(tree) == self._trees[damaged]
        asking: list[Callable[[], object]] = [
            store.list,
            lambda: store.pin("step-00000004"),
            lambda: store.newest(map_location=torch.device("cpu")),
            lambda: left_in(self._root),
            lambda: [one.look(patience=0.1) for one in endpoints_in(self._root)],
        ]
        try:
            run = Run(self._root)
        except StateMachineError:
            pass
        else:
            asking += [run.metrics, run.epochs, run.graph, run.settings, run.history, run.record]
            asking += [run.rings, run.look, run.changed, lambda: run.status, run.progress]
        for ask in asking:
            try:
                ask()
            except (StateMachineError, PageError):
                continue

    def _resume(self) -> None:
        keeping = Checkpoints(self._root, every="1 epoch", retention=Retention(last=3))
        one = trainer(checkpoints=keeping, max_epochs=3)
        try:
            one.fit(Net(), batches(2), batches(1), resume="auto")
        except SnapshotError:  # no checkpoint is whole, or the newest is of a later version
            return
        assert one.epoch == 3
