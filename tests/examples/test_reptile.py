"""First-order meta-learning with an inner loop as a sub-machine: Reptile (Nichol et al., 2018)."""

from __future__ import annotations

import copy
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from statemachine_trainer import CustomLoop, FitLoop, Loop, Trainer, field, place
from statemachine_trainer.testing import assert_resumable

# -- the loops: what a user writes ---------------------------------------------------------------


class Adapt(CustomLoop):
    """A few steps on one task, each on another part of its samples."""

    initial = "inner_step"
    transitions = (["again", "inner_step", "inner_step"],)
    outcomes = ("adapted",)

    steps = 5
    taken: int = 0

    def inner_step(self) -> Literal["again", "adapted"]:
        part = slice(self.taken, None, self.steps)
        inputs, labels = self.context.batch
        self.backward(self.training_loss((inputs[part], labels[part])))
        self.optimizer_step()
        self.taken += 1
        return "again" if self.taken < self.steps else "adapted"


class Reptile(CustomLoop):
    """Moves the weights a part of the way to those that a task leads to, task after task."""

    initial = "epoch_start"
    transitions = (
        ["epoch_started", "epoch_start", "fetch"],
        ["fetched", "fetch", "adapt"],
        ["adapted", "adapt", "meta_step"],
        ["moved", "meta_step", "fetch"],
        ["exhausted", "fetch", "epoch_end"],
    )
    outcomes = ("epoch_done",)

    rate = 0.3
    adapt: Loop = place(Adapt)
    before: dict[str, Tensor] = field(factory=dict)

    def fetch(self) -> Literal["fetched", "exhausted"]:
        weights = self.context.model.named_parameters()
        self.before = {name: weight.detach().clone() for name, weight in weights}
        return super().fetch()

    def meta_step(self) -> Literal["moved"]:
        with torch.no_grad():
            for name, weight in self.context.model.named_parameters():
                weight.copy_(self.before[name].lerp(weight, self.rate))
        self.end_batch()
        return "moved"


# -- tasks and model -----------------------------------------------------------------------------

INPUTS, LABELS = (torch.tensor(one) for one in load_digits(return_X_y=True))
CHANCE = torch.Generator().manual_seed(0)
PAIRS = torch.combinations(torch.arange(10))[torch.randperm(45, generator=CHANCE)].tolist()
ORDER = torch.randperm(len(LABELS), generator=CHANCE)
KNOWN, UNSEEN = (PAIRS[:35], ORDER[:900]), (PAIRS[35:], ORDER[900:])
Samples = tuple[Tensor, Tensor]


class Tasks(Dataset[Samples]):
    """Tells two kinds of digits apart, by so many images of each; a task follows from its number."""

    def __init__(self, known: tuple[list[list[int]], Tensor], size: int, shots: int) -> None:
        self.pairs, self.images = known
        self.size, self.shots = size, shots

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> Samples:
        return self.halves(number)[0]

    def halves(self, number: int) -> tuple[Samples, Samples]:
        """The images to learn from, and all others of these two kinds."""
        chance = torch.Generator().manual_seed(number)
        pair = self.pairs[int(torch.randint(len(self.pairs), (), generator=chance))]
        learn, test = [], []
        for which in torch.randperm(2, generator=chance).tolist():
            found = self.images[torch.eq(LABELS[self.images], pair[which])]
            found = found[torch.randperm(len(found), generator=chance)]
            learn.append(found[: self.shots])
            test.append(found[self.shots :])
        return _samples(learn), _samples(test)


def _samples(indices: list[Tensor]) -> Samples:
    labels = torch.cat([torch.full_like(one, label) for label, one in enumerate(indices)])
    return INPUTS[torch.cat(indices)].float() / 16, labels


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
    return nn.Sequential(*layers)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def trainer_of(steps: int) -> Trainer:
    loop = FitLoop(max_epochs=1, epoch=Reptile())
    loop.epoch.adapt.steps = steps  # type: ignore[attr-defined]
    return Trainer(loop, progress=False, device="cpu")


def accuracy_after(model: nn.Module, tasks: Tasks, steps: int, lr: float) -> float:
    """The share of right answers after so many steps on a task, on average over the tasks."""
    right = []
    for number in range(len(tasks)):
        learner, ((inputs, labels), (others, expected)) = copy.deepcopy(model), tasks.halves(number)
        optimizer = torch.optim.SGD(learner.parameters(), lr=lr)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(learner(inputs), labels).backward()
            optimizer.step()
        right.append((learner(others).argmax(1) == expected).float().mean())
    return float(torch.stack(right).mean())


# -- shown ---------------------------------------------------------------------------------------


def make_trainer() -> Trainer:
    trainer = trainer_of(2)
    tasks = DataLoader(Tasks(KNOWN, 4, shots=2), batch_size=None, shuffle=True)
    trainer.start(net(), tasks, loss=F.cross_entropy, optimizer=sgd)
    return trainer


def test_reptile_is_resumed_to_the_same_bits_at_every_boundary() -> None:
    report = assert_resumable(make_trainer, exhaustive=True)
    assert len(report.tried) == report.possible > 15


def test_reptile_does_what_the_paper_says() -> None:
    model, tasks = net(), Tasks(KNOWN, 5, shots=2)
    mine = copy.deepcopy(model)
    trainer = trainer_of(2)
    trainer.fit(model, DataLoader(tasks, batch_size=None), loss=F.cross_entropy, optimizer=sgd)
    for number in range(5):
        learner, (inputs, labels) = copy.deepcopy(mine), tasks[number]
        optimizer = sgd(learner.parameters())
        for part in (slice(0, None, 2), slice(1, None, 2)):
            optimizer.zero_grad()
            F.cross_entropy(learner(inputs[part]), labels[part]).backward()
            optimizer.step()
        with torch.no_grad():
            for weight, adapted in zip(mine.parameters(), learner.parameters(), strict=True):
                weight.copy_(weight.lerp(adapted, 0.3))
    both = zip(model.parameters(), mine.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in both)
    assert (trainer.steps, trainer.context.counts.batch, trainer.epoch) == (10, 5, 1)


@pytest.mark.slow
def test_adapting_meta_trained_weights_beats_as_many_steps_from_a_random_start() -> None:
    """On pairs of digits, and images, that were never met before, from one image of each."""
    model, unseen = net(), Tasks(UNSEEN, 40, shots=1)
    random_start = max(accuracy_after(model, unseen, 5, lr) for lr in (0.1, 0.3, 0.6))
    tasks = DataLoader(Tasks(KNOWN, 1500, shots=25), batch_size=None)
    trainer = trainer_of(5)
    trainer.fit(model, tasks, loss=F.cross_entropy, optimizer=sgd)
    assert accuracy_after(model, unseen, 5, 0.1) > random_start + 0.03
