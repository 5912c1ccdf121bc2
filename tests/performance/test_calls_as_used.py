"""What a step costs as people use the trainer, in Python calls beyond those of a bare loop."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from statemachine_trainer import EMA, Checkpoints, Monitor, Progress, every, log
from statemachine_trainer.observe.recorder import RunFolder
from statemachine_trainer.snapshot.codec import encode
from statemachine_trainer.trainer import Trainer
from tests.counting import counting_calls
from tests.performance.test_call_counts import (
    Batch,
    Batches,
    Classifier,
    bare,
    calls,
    per_step,
)

Part = Callable[[Path, ExitStack], dict[str, Any]]
"""Makes arguments of a trainer."""


class Logging(Classifier):
    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        log("loss", loss)
        log("number", 0.5)
        return loss


def no_part(folder: Path, stack: ExitStack) -> dict[str, Any]:
    return {}


def rates(folder: Path, stack: ExitStack) -> dict[str, Any]:
    return {"callbacks": [Monitor()]}


def average(folder: Path, stack: ExitStack) -> dict[str, Any]:
    return {"callbacks": [Monitor(throughput=True), EMA()]}


def black_box(folder: Path, stack: ExitStack) -> dict[str, Any]:
    return {"run": RunFolder(folder / "run", journal=False)}


def checkpoints(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Checkpoints of which none is due within the run."""
    often = every(10**6, "step")
    return {"checkpoints": Checkpoints(folder / "run", every=often, at_end=False), "run": False}


def bar(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """A bar that is drawn at the beginning and then for long not again."""
    terminal = Path(os.devnull).open("w")  # noqa: SIM115 - the stack closes it
    stack.callback(terminal.close)
    console = Console(file=terminal, force_terminal=True, width=100)
    return {"progress": Progress(console, per_second=0.0001)}


@pytest.mark.parametrize(
    "kind, parts, most",
    [
        pytest.param(Logging, (no_part,), -32, id="two logged values"),
        pytest.param(Classifier, (rates,), -33, id="learning rate"),
        pytest.param(Classifier, (average,), -22, id="throughput and an average"),
        pytest.param(Classifier, (black_box,), -29, id="black box"),
        pytest.param(Classifier, (bar,), -35, id="progress bar"),
        pytest.param(Classifier, (checkpoints,), -30, id="checkpoints"),
        pytest.param(Logging, (rates, black_box, bar), -16, id="all of these"),
    ],
)
def test_what_people_switch_on_adds_few_python_calls_to_a_step(
    tmp_path: Path, kind: type[Classifier], parts: tuple[Part, ...], most: int
) -> None:
    def train(model: Classifier, batches: Iterable[Batch]) -> None:
        folder = tmp_path / str(len([*tmp_path.iterdir()]))  # each run begins in an empty one
        folder.mkdir()
        with ExitStack() as stack:
            settings: dict[str, Any] = {"progress": False}
            for part in parts:
                settings |= part(folder, stack)
            Trainer(max_epochs=1, device="cpu", **settings).fit(model, batches)

    def count(batches: int) -> Counter[str]:
        model, data = kind(), Batches(batches)
        seen: Counter[str] = Counter()
        with counting_calls(seen):
            train(model, data)
        return seen

    theirs = per_step(lambda n: calls(bare, n))
    found = per_step(count)
    added = {name: found.get(name, 0) - theirs.get(name, 0) for name in {*found, *theirs}}
    listed = "\n".join(f"{number:+g} {name}" for name, number in sorted(added.items()) if number)
    # What happens once a run may differ by a call or two from run to run.
    assert round(sum(added.values())) <= most, f"{sum(added.values()):g} calls more:\n{listed}"


def test_the_state_of_a_fit_is_made_ready_for_its_file_by_few_python_calls(tmp_path: Path) -> None:
    """Most of them read what training may have changed without a word, so all of it is looked at."""
    never = Checkpoints(tmp_path, every=every(10**6, "step"), at_end=False)
    trainer = Trainer(max_epochs=1, device="cpu", progress=False, checkpoints=never, run=False)
    trainer.fit(Classifier(), Batches(3))

    def make_ready() -> None:
        encode(trainer.state_dict())

    make_ready()  # what is kept of classes is kept from now on
    seen: Counter[str] = Counter()
    with counting_calls(seen):
        make_ready()
    listed = "\n".join(f"{number:g} {name}" for name, number in seen.most_common(20))
    assert sum(seen.values()) <= 1900, f"{sum(seen.values())} calls, most of them of:\n{listed}"
