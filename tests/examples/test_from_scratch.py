"""A training loop written from scratch: each update is scaled by a loss on a validation split."""

from __future__ import annotations

import ast
import copy
import functools
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer import CustomLoop, FitLoop, Loop, Trainer, ValidationLoop, place
from statemachine_trainer.testing import assert_resumable

# -- the loop: what a user writes ----------------------------------------------------------------


class ScaledUpdates(CustomLoop):
    """The worse the model is on data held out, the larger the update."""

    initial = "epoch_start"
    transitions = (
        ["epoch_started", "epoch_start", "fetch"],
        ["fetched", "fetch", "gradients"],
        ["found", "gradients", "held_out"],
        ["validation_done", "held_out", "update"],
        ["updated", "update", "fetch"],
        ["exhausted", "fetch", "epoch_end"],
    )
    outcomes = ("epoch_done",)

    held_out: Loop = place(ValidationLoop)

    def gradients(self) -> Literal["found"]:
        self.backward(self.training_loss())
        return "found"

    def update(self) -> Literal["updated"]:
        for parameter in self.context.model.parameters():
            if parameter.grad is not None:
                parameter.grad *= self.context.results["val_loss"]
        self.optimizer_step()
        self.end_batch()
        return "updated"


# -- data and model ------------------------------------------------------------------------------


@functools.cache
def digits() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Digits to learn from, to scale the updates by, and to test on."""
    inputs, labels = (torch.tensor(one) for one in load_digits(return_X_y=True))
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    parts = order[:1000], order[1000:1300], order[1300:]
    train, held_out, test = (TensorDataset(inputs[p].float() / 16, labels[p]) for p in parts)
    return train, held_out, test


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.3, momentum=0.9)


def trainer_of(epochs: int, **settings: Any) -> Trainer:
    loop = FitLoop(max_epochs=epochs, sanity_batches=0, epoch=ScaledUpdates())
    return Trainer(loop, progress=False, device="cpu", **settings)


# -- shown ---------------------------------------------------------------------------------------


def test_the_loop_trains_the_digits() -> None:
    train, held_out, test = digits()
    trainer = trainer_of(5)
    data = DataLoader(train, 50, shuffle=True), DataLoader(held_out, 300)
    trainer.fit(net(), *data, loss=F.cross_entropy, optimizer=sgd)
    inputs, labels = test.tensors
    with torch.no_grad():
        right = trainer.model.eval()(inputs).argmax(1) == labels
    assert right.float().mean() > 0.94
    assert (trainer.epoch, trainer.steps) == (5, 100)


def test_it_ends_with_the_bits_of_the_same_loop_in_plain_torch() -> None:
    train, held_out, _ = digits()
    batches = [train[i : i + 50] for i in range(0, 500, 50)]
    model, validation = net(), held_out.tensors
    mine = copy.deepcopy(model)
    torch.manual_seed(1)
    trainer_of(2).fit(model, batches, [validation], loss=F.cross_entropy, optimizer=sgd)
    torch.manual_seed(1)
    optimizer = sgd(mine.parameters())
    for inputs, labels in [*batches, *batches]:
        optimizer.zero_grad()
        F.cross_entropy(mine.train()(inputs), labels).backward()
        with torch.no_grad():
            scale = float(F.cross_entropy(mine.eval()(validation[0]), validation[1]))
        for parameter in mine.parameters():
            assert parameter.grad is not None
            parameter.grad *= scale
        optimizer.step()
    assert same(model, mine)


def test_a_callback_written_for_the_loops_of_the_package_hears_this_one_too() -> None:
    class Counting:
        def __init__(self) -> None:
            self.losses: list[float] = []

        def on_epoch_end(self, trainer: Trainer) -> None:
            self.losses.append(trainer.metrics["loss"])

    counting = Counting()
    train, held_out, _ = digits()
    trainer = trainer_of(3, callbacks=[counting])
    data = DataLoader(train, 100), DataLoader(held_out, 300)
    trainer.fit(net(), *data, loss=F.cross_entropy, optimizer=sgd)
    assert counting.losses == sorted(counting.losses, reverse=True)
    assert len(counting.losses) == 3


def make_trainer() -> Trainer:
    train, held_out, _ = digits()
    data = [
        DataLoader(TensorDataset(*(tensor[:12] for tensor in part.tensors)), 4, shuffle=True)
        for part in (train, held_out)
    ]
    trainer = trainer_of(2)
    trainer.start(net(), *data, loss=F.cross_entropy, optimizer=sgd)
    return trainer


def test_it_is_resumed_to_the_same_bits_at_every_boundary() -> None:
    report = assert_resumable(make_trainer, exhaustive=True)
    assert len(report.tried) == report.possible > 60


def test_a_run_killed_between_gradients_and_update_goes_on(tmp_path: Path) -> None:
    train, held_out, _ = digits()
    data = DataLoader(train, 100), DataLoader(held_out, 300)

    def run() -> Trainer:
        return trainer_of(1, checkpoints=tmp_path / "run")

    torch.manual_seed(2)
    whole = trainer_of(1)
    whole.fit(net(), *data, loss=F.cross_entropy, optimizer=sgd)
    torch.manual_seed(2)
    killed = run()
    killed.fit(net(), *data, loss=F.cross_entropy, optimizer=sgd, until="held_out.validation_step")
    killed.checkpoint()
    resumed = run()
    resumed.fit(net(), *data, loss=F.cross_entropy, optimizer=sgd, resume="auto")
    assert same(resumed.model, whole.model)


def test_limits_and_stop_hold_for_it_as_for_any_epoch_loop() -> None:
    train, held_out, _ = digits()
    data = DataLoader(train, 100), DataLoader(held_out, 300)
    trainer = trainer_of(3)
    trainer.loop.max_steps = 13
    trainer.fit(net(), *data, loss=F.cross_entropy, optimizer=sgd)
    assert (trainer.steps, trainer.epoch) == (13, 2)
    trainer.loop.max_steps = 20
    trainer.fit()  # goes on with the data where they stood
    assert (trainer.steps, trainer.context.counts.batch_in_epoch) == (20, 7)
    stopped = trainer_of(5)
    stopped.on("epoch_end", lambda trainer: trainer.stop(), once=True)
    stopped.fit(net(), *data, loss=F.cross_entropy, optimizer=sgd)
    assert stopped.epoch == 1


@pytest.mark.parametrize("name", ["test_from_scratch", "test_reptile"])
def test_a_loop_from_scratch_takes_less_than_forty_lines(name: str) -> None:
    """Without blank lines, imports, data and model."""
    source = (Path(__file__).parent / f"{name}.py").read_text()
    loops = [
        ast.get_source_segment(source, node) or ""
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and "CustomLoop" in map(ast.unparse, node.bases)
    ]
    code = [line for line in "\n".join(loops).split("\n") if line.strip()]
    assert 20 < len(code) < 40


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)
