"""Small models, data and callbacks of every kind, for the random training set-ups of `strategies`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, IterableDataset, Sampler, default_collate

from statemachine_trainer.loops import BatchLoop, EpochLoop, log
from statemachine_trainer.machine import Loop, place
from statemachine_trainer.trainer import Trainer

FEATURES, CLASSES, STEPS = 4, 3, 6

Sample = tuple[torch.Tensor, torch.Tensor]


class Samples(Dataset[Sample]):
    """Points with labels, or sequences of them; augmentation draws from every global generator."""

    def __init__(self, size: int, *, augment: bool, sequences: bool, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (size, STEPS, FEATURES) if sequences else (size, FEATURES)
        self.inputs = torch.randn(shape, generator=generator)
        self.targets = self.inputs[..., :CLASSES].argmax(-1)
        self.augment = augment

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Sample:
        sample = self.inputs[index]
        if self.augment:
            noise = random.random() + float(np.random.rand())
            sample = sample + 0.1 * noise * torch.randn(sample.shape)
        return sample, self.targets[index]


class Stream(IterableDataset[Sample]):
    """The same as a stream, in an order drawn anew in each pass, with a state or without."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Sample]:
        for index in torch.randperm(len(self.samples)).tolist():
            yield self.samples[index]


class StatefulStream(Stream):
    """A stream that can say where it stands."""

    def __init__(self, samples: Samples) -> None:
        super().__init__(samples)
        self.order: list[int] = []
        self.given = 0

    def __iter__(self) -> Iterator[Sample]:
        if not self.order:
            self.order, self.given = torch.randperm(len(self.samples)).tolist(), 0
        while self.given < len(self.order):
            self.given += 1
            yield self.samples[self.order[self.given - 1]]
        self.order = []

    def state_dict(self) -> dict[str, Any]:
        """Return the order of the pass and how far it has come."""
        return {"order": [*self.order], "given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.order, self.given = [*state["order"]], state["given"]


class Shuffled(Sampler[int]):
    """A sampler of one's own, with a generator of its own."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(self.size, generator=self.generator).tolist()


class Net(nn.Module):
    """A classifier; `nan_at` names a batch of each epoch whose loss is NaN.

    Args:
        norm: With batch normalisation.
        dropout: With dropout.
        nan_at: Number of that batch; None for no such batch.
        configure: Makes of the model what `configure_optimizers` returns.
    """

    def __init__(self, *, norm: bool, dropout: bool, nan_at: int | None, configure: Any) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(FEATURES, 6),
            nn.BatchNorm1d(6) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(0.3 if dropout else 0.0),
        )
        self.head = nn.Linear(6, CLASSES)
        self.nan_at = nan_at
        self.criterion: Any = F.cross_entropy
        self.configure = configure

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(inputs))  # type: ignore[no-any-return]

    def loss(self, batch: Sample, batch_idx: int) -> torch.Tensor:
        """Compute and log the loss."""
        loss: torch.Tensor = self.criterion(self(batch[0]), batch[1])
        if batch_idx == self.nan_at:
            loss = loss * float("nan")
        else:
            log("loss", loss)
        return loss

    def training_step(self, batch: Sample, batch_idx: int) -> Any:
        return self.loss(batch, batch_idx)

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        answer = self(batch[0])
        log("val_loss", F.cross_entropy(answer, batch[1]))
        log("right", (answer.argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return self.configure(self)


class Pair(Net):
    """Two optimizers: body and head, each with a loss of its own."""

    def training_step(self, batch: Sample, batch_idx: int, optimizer_idx: int) -> Any:  # type: ignore[override]
        return self.loss(batch, batch_idx) * (optimizer_idx + 1)


class ByHand(Net):
    """Steps its optimizer itself, at every second batch."""

    automatic_optimization = False

    def training_step(self, batch: Sample, batch_idx: int, optimizers: Any) -> Any:  # type: ignore[override]
        loss = self.loss(batch, batch_idx)
        loss.backward()
        if batch_idx % 2:
            optimizers[0].step()
            optimizers[0].zero_grad()


class Tested(Net):
    """One that k-fold can score."""

    test_step = Net.validation_step


class Recurrent(nn.Module):
    """Labels each step of a sequence, and hands hidden states on from split to split."""

    def __init__(self, *, dropout: bool, configure: Any) -> None:
        super().__init__()
        self.cells = nn.GRU(FEATURES, 5, batch_first=True)
        self.dropout = nn.Dropout(0.3 if dropout else 0.0)
        self.head = nn.Linear(5, CLASSES)
        self.criterion: Any = F.cross_entropy
        self.configure = configure

    def forward(self, inputs: torch.Tensor, hiddens: Any = None) -> Any:
        answer, hiddens = self.cells(inputs, hiddens)
        return self.head(self.dropout(answer)), hiddens

    def training_step(self, batch: Sample, batch_idx: int, hiddens: Any) -> Any:
        answer, hiddens = self(batch[0], hiddens)
        loss = self.criterion(answer.transpose(1, 2), batch[1])
        log("loss", loss)
        return {"loss": loss, "hiddens": hiddens}

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        answer, _ = self(batch[0])
        log("val_loss", F.cross_entropy(answer.transpose(1, 2), batch[1]))

    def configure_optimizers(self) -> Any:
        return self.configure(self)


class Stumbling:
    """A callback with state: every third batch it shakes the weights a little."""

    def __init__(self) -> None:
        self.batches = 0

    def on_batch_end(self, trainer: Trainer) -> None:
        self.batches += 1
        if self.batches % 3 == 0:
            with torch.no_grad():
                for parameter in trainer.model.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.001 * self.batches)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of batches seen."""
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.batches = state["batches"]


class PostAt:
    """A callback that posts events after some batches: `[(batch, event), ...]`."""

    def __init__(self, posts: list[tuple[int, str]]) -> None:
        self.posts = posts

    def on_batch_end(self, trainer: Trainer) -> None:
        for batch, event in self.posts:
            if trainer.context.counts.batch == batch:
                trainer.post(event)


class SetAt:
    """A callback that sets something after some batches: `[(batch, what), ...]`.

    What is "rate" (of all optimizers), "decay" (weight decay), "weights" (to a half), "frozen" (no
    gradients for the last parameter from here on), or "dropout" (off).
    """

    def __init__(self, sets: list[tuple[int, str]]) -> None:
        self.sets = sets

    def on_batch_end(self, trainer: Trainer) -> None:
        for batch, what in self.sets:
            if trainer.context.counts.batch == batch:
                getattr(self, f"_{what}")(trainer)

    def _rate(self, trainer: Trainer) -> None:
        for optimizer in trainer.context.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= 0.3

    def _decay(self, trainer: Trainer) -> None:
        for optimizer in trainer.context.optimizers:
            for group in optimizer.param_groups:
                if "weight_decay" in group:
                    group["weight_decay"] = 0.5

    def _weights(self, trainer: Trainer) -> None:
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.mul_(0.5)

    def _frozen(self, trainer: Trainer) -> None:
        [*trainer.model.parameters()][-1].requires_grad_(False)

    def _dropout(self, trainer: Trainer) -> None:
        for module in trainer.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0


class Shaking:
    """A callback that shakes the weights by a generator that it makes at its first batch."""

    def __init__(self) -> None:
        self.generator: torch.Generator | None = None

    def on_batch_end(self, trainer: Trainer) -> None:
        if self.generator is None:
            self.generator = torch.Generator().manual_seed(7)
        _shake(trainer, float(torch.rand((), generator=self.generator)))


def shaking() -> Callable[[Trainer], None]:
    """Return a receiver that shakes the weights by a generator in its closure."""
    generator = random.Random(8)

    def receive(trainer: Trainer) -> None:
        _shake(trainer, generator.random())

    return receive


def noisy_inputs() -> Callable[[nn.Module, Any], Any]:
    """Return a hook of a module that scales inputs by a generator in its closure."""
    generator = np.random.default_rng(9)

    def hook(_module: nn.Module, inputs: Any) -> Any:
        return (inputs[0] * float(1 + 0.1 * generator.random()), *inputs[1:])

    return hook


def jumping() -> Callable[[int], float]:
    """Return a factor of the learning rate that is drawn from a generator in its closure."""
    generator = np.random.default_rng(11)
    return lambda count: float(0.5 + generator.random())


def jitter() -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a transform that draws from a generator in its closure."""
    generator = torch.Generator().manual_seed(12)
    return lambda inputs: inputs + 0.1 * torch.randn((), generator=generator)


def noisy_collate() -> Callable[[list[Sample]], Sample]:
    """Return a collate function that draws from a generator which it makes at its first batch."""
    generators: dict[str, random.Random] = {}

    def collate(samples: list[Sample]) -> Sample:
        generator = generators.setdefault("noise", random.Random(13))
        inputs, targets = default_collate(samples)
        return inputs + 0.1 * generator.random(), targets

    return collate


def add_generator(model: Any, where: Literal["attribute", "loss"]) -> None:
    """Let a model draw from a generator: an attribute of it, or one inside its loss."""
    if where == "attribute":
        model.generator = np.random.RandomState(14)
        model.register_forward_hook(_scaled)
    else:
        model.criterion = NoisyLoss()


def _scaled(module: Any, _inputs: Any, outputs: Any) -> Any:
    factor = float(1 + 0.1 * module.generator.random_sample())
    return (outputs[0] * factor, *outputs[1:]) if isinstance(outputs, tuple) else outputs * factor


class NoisyLoss(nn.Module):
    """A loss that smooths the labels by a number drawn from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(15)

    def forward(self, answers: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        smoothing = 0.2 * float(torch.rand((), generator=self.generator))
        return F.cross_entropy(answers, targets, label_smoothing=smoothing)


def _shake(trainer: Trainer, by: float) -> None:
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(1 + 0.01 * by)


class Jittered(Dataset[Sample]):
    """Samples with noise from a generator of their own, in a dict."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.inside = {"noise": np.random.RandomState(10)}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        inputs, target = self.samples[index]
        return inputs + 0.1 * self.inside["noise"].standard_normal(), target


class Transformed(Dataset[Sample]):
    """Samples whose inputs go through a transform."""

    def __init__(self, samples: Samples, transform: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        inputs, target = self.samples[index]
        return self.transform(inputs), target


class CountingBatches(BatchLoop):
    """A batch loop with a field of its own: every third batch is scaled down."""

    seen: int = 0

    def batch_start(self) -> Literal["batch_started"]:
        self.seen += 1
        return super().batch_start()


class CountingEpochs(EpochLoop):
    """An epoch loop with a field of its own, and with a batch loop that it brings along."""

    batch: Loop = place(CountingBatches)
    begun: int = 0

    def epoch_start(self) -> Literal["epoch_started"]:
        self.begun += 1
        return super().epoch_start()
