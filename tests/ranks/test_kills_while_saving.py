"""Ranks are killed in each phase of a checkpoint in parts: a whole one remains, and the run ends with the same bits."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from statemachine_trainer import Trainer
from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.snapshot import Retention, Store
from tests.ranks.forked import in_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(500),
    pytest.mark.skipif(sys.platform != "linux", reason="processes of Linux"),
]

BATCHES = 9
"""Of the training, each with a checkpoint after it."""

Victims = Literal["the rank itself", "the other one", "both"]


@dataclass(frozen=True)
class Phase:
    """A call to the system, before which ranks are killed.

    Attributes:
        rank: Whose call it is.
        call: Its name, as Python's audit hooks tell it; "write" and "fsync" beside.
        path: Which path it is given; NEW and OLD stand for the numbers of the checkpoints, PID for that of the rank.
        number: The how manieth of these.
        committed: Whether the new checkpoint is there, whoever is killed.
        goes_on: Whether this rank commits it if only the other one is killed.
    """

    rank: int
    call: str
    path: str
    number: int = 1
    committed: bool = False
    goes_on: bool = False


PHASES = {
    "after it has its name": Phase(0, "open", r"@latest$", committed=True),
    "before the folder is made": Phase(0, "os.mkdir", r"/\.tmp@[^@/]*@PID@[^@/]*@NEW-[^/]*$"),
    "before the part of rank 0": Phase(0, "open", r"@NEW-.*/shard-0\."),
    "before the part of rank 1": Phase(1, "open", r"@NEW-.*/shard-1\."),
    "within the part of rank 0": Phase(0, "write", r"@NEW-.*/shard-0\.", 2),
    "within the part of rank 1": Phase(1, "write", r"@NEW-.*/shard-1\.", 2),
    "after the part of rank 0": Phase(0, "fsync", r"@NEW-.*/shard-0\."),
    "after the part of rank 1": Phase(1, "fsync", r"@NEW-.*/shard-1\."),
    "before the manifest": Phase(0, "open", r"@NEW-.*/manifest\.json$", goes_on=True),
    "within the manifest": Phase(0, "fsync", r"@NEW-.*/manifest\.json$", goes_on=True),
    "before it has its name": Phase(
        0, "os.rename", r"/\.tmp@[^@/]*@PID@[^@/]*@NEW-[^/]*$", goes_on=True
    ),
    "before the older one is set aside": Phase(0, "os.rename", r"/OLD-[^/]*$", committed=True),
    "while the older one is deleted": Phase(0, "os.remove", r"/\.trash@OLD-", 3, committed=True),
    "as the older one is gone": Phase(0, "os.rmdir", r"/\.trash@OLD-", committed=True),
}


class Killer:
    """Kills ranks at a phase, from within the rank whose call it is."""

    def __init__(self, phase: Phase, victims: Victims, here: int, newest: int) -> None:
        self._phase = phase
        path = phase.path.replace("NEW", f"{newest + 1:06d}").replace("OLD", f"{newest:06d}")
        self._path = re.compile(path.replace("PID", f"{os.getpid()}"))
        self._victims = {"the rank itself": [0], "the other one": [1], "both": [1, 0]}[victims]
        self._seen = 0
        if here == phase.rank:
            sys.addaudithook(self._audited)
            for name in ("write", "fsync"):
                setattr(os, name, self._before(name, getattr(os, name)))

    def _audited(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == self._phase.call and arguments and isinstance(arguments[0], str | Path):
            self._called(str(arguments[0]))

    def _before(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def told(descriptor: int, *more: Any) -> Any:
            if name == self._phase.call:
                path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
                if name == "write" and self._path.search(path) and len(more[0]) > 1:
                    half = len(more[0]) // 2
                    call(descriptor, more[0][:half])  # so that the file is torn
                    self._called(path)
                    return half + call(descriptor, more[0][half:])
                self._called(path)
            return call(descriptor, *more)

        return told

    def _called(self, path: str) -> None:
        if self._path.search(path) is None:
            return
        self._seen += 1
        if self._seen == self._phase.number:
            ranks = Ranks.known()
            assert ranks is not None
            for offset in self._victims:
                other = ranks.processes[(self._phase.rank + offset) % ranks.size]
                os.kill(other["pid"], signal.SIGKILL)


OTHERS = re.compile(r"/\.(tmp|trash)@")


def foreign_parts(opened: list[str]) -> list[str]:
    """What was opened of checkpoints that an earlier run has begun, or was deleting."""
    ranks = Ranks.known()
    assert ranks is not None
    ours = tuple(f"@{one['pid']}@" for one in ranks.processes)
    return [one for one in opened if OTHERS.search(one) and not any(map(one.__contains__, ours))]


def train(folder: Path, rank: int, *, background: bool = False) -> dict[str, Any]:
    """Train as one of two ranks, from where the folder stands."""
    opened: list[str] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | Path):
            opened.append(str(arguments[0]))

    sys.addaudithook(note)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 17), nn.Dropout(0.2), nn.Linear(17, 3))
    for part in (model[0], model[2], model):
        fully_shard(part)
    inputs = torch.randn(6 * BATCHES, 8)
    data = TensorDataset(inputs, inputs[:, :3].argmax(1))
    torch.manual_seed(rank)
    keeping = Checkpoints(
        folder, every=1, retention=Retention(last=1), at_end=False, background=background
    )
    trainer = Trainer(max_epochs=1, device="cpu", progress=False, checkpoints=keeping)
    began: list[int] = []
    trainer.on("batch_start", lambda: began.append(trainer.context.counts.batch))
    trainer.fit(
        model,
        DataLoader(data, 3, sampler=DistributedSampler(data)),
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(model.parameters()),
        resume="auto",
    )
    weights: dict[str, Any] = model.state_dict()
    whole = {name: one.full_tensor().tolist() for name, one in weights.items()}
    return {"weights": whole, "began": began[:1], "foreign": foreign_parts(opened)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("undisturbed")
    (one, other) = in_ranks(2, folder, lambda rank: train(folder / "run", rank))
    assert one["weights"] == other["weights"]
    assert one["foreign"] == []
    return one["weights"]


@pytest.mark.parametrize(
    "victims, background",
    [
        (["the rank itself"], False),
        (["the other one", "both"], False),
        (["the rank itself", "both"], True),
    ],
)
def test_kills_in_all_phases_leave_whole_checkpoints_and_the_run_ends_with_the_same_bits(
    victims: list[Victims], background: bool, tmp_path: Path, undisturbed: Any
) -> None:
    """One start after the other, each of which is killed as it writes its first checkpoint."""
    run, number = tmp_path / "run", 0
    for (name, phase), who in zip(PHASES.items(), cycle(victims)):
        if background and phase.call == "write":
            phase = replace(phase, number=1)  # a part as small as these is one write there

        def killed(
            rank: int, phase: Phase = phase, who: Victims = who, number: int = number
        ) -> Any:
            Killer(phase, who, rank, number)
            return train(run, rank, background=background)

        ended = in_ranks(2, tmp_path, killed)
        dead = {"the rank itself": {phase.rank}, "the other one": {1 - phase.rank}}
        found = {rank for rank, one in enumerate(ended) if one is None}
        assert found == dead.get(who, {0, 1}), (name, ended)
        number += phase.committed or (phase.goes_on and who == "the other one")
        newest = Store(run).newest()  # a damaged one would be told, which is an error here
        assert newest is not None
        assert newest.path.name.startswith(f"{number:06d}-"), name
    for rank in in_ranks(2, tmp_path, lambda rank: train(run, rank, background=background)):
        assert rank["began"] == [number + 1]
        assert rank["foreign"] == []
        assert rank["weights"] == undisturbed
    assert [one.name for one in run.iterdir() if one.name.startswith((".tmp@", ".trash@"))] == []
