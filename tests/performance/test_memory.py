"""Nothing of a batch is kept beyond its step, and a run needs no more memory the longer it is."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer.loops import log
from statemachine_trainer.trainer import Trainer

Batch = tuple[torch.Tensor, torch.Tensor]


class Net(nn.Module):
    """Notes by weak references what it saw and made of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.seen: list[list[weakref.ref[torch.Tensor]]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        inputs, targets = batch
        logits = self.layer(inputs)
        loss = F.cross_entropy(logits, targets)
        log("loss", loss)
        self.seen.append([weakref.ref(one) for one in (inputs, targets, logits, loss)])
        return {"loss": loss, "logits": logits}

    def validation_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        inputs, targets = batch
        logits: torch.Tensor = self.layer(inputs)
        log("validation_loss", F.cross_entropy(logits, targets))
        self.seen.append([weakref.ref(one) for one in (inputs, targets, logits)])
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    @property
    def alive(self) -> list[int]:
        """The batches, by number, of which something is still there."""
        return [
            number
            for number, tensors in enumerate(self.seen)
            if any(tensor() is not None for tensor in tensors)
        ]


def stream(count: int) -> Iterator[Batch]:
    for _ in range(count):
        yield torch.randn(4, 8), torch.randint(4, (4,))


def samples(count: int) -> DataLoader[Any]:
    data = TensorDataset(torch.randn(count, 8), torch.randint(4, (count,)))
    return DataLoader(data, batch_size=4)


@pytest.fixture(autouse=True)
def _without_collector() -> Iterator[None]:
    """What is freed is freed by its last reference: no cycle waits for the collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def trainer(**settings: Any) -> Trainer:
    return Trainer(max_epochs=1, device="cpu", progress=False, **settings)


def collect_alive(one: Trainer, name: str, model: Net) -> list[list[int]]:
    found: list[list[int]] = []
    one.on(name, lambda trainer, moment: found.append(model.alive))
    return found


SETTINGS = [{}, {"accumulate": 3}, {"clip_norm": 1.0}, {"prefetch": True}, {"precision": "bf16"}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_when_the_next_batch_is_fetched_nothing_is_left_of_the_one_before(
    settings: dict[str, Any],
) -> None:
    model, fit = Net(), trainer(**settings)
    at_fetch = collect_alive(fit, "fetch", model)
    in_batch = collect_alive(fit, "optimizer:exit", model)
    fit.fit(model, stream(6))
    assert at_fetch == [[]] * 7
    assert in_batch == [[number] for number in range(6)]  # the test can see what is there


def test_a_validation_within_the_epoch_keeps_nothing_either() -> None:
    model, fit = Net(), trainer(validate_every=2)
    at_fetch = collect_alive(fit, "epoch.fetch", model)
    fit.fit(model, stream(4), samples(12))
    assert len(model.seen) > 8
    assert set(map(tuple, at_fetch)) == {()}


def test_after_a_fit_nothing_is_left_of_any_batch() -> None:
    model, fit = Net(), trainer()
    fit.fit(model, samples(16), samples(16))
    assert model.alive == []


@pytest.mark.parametrize("step", ["validate", "test"])
def test_an_evaluation_holds_one_batch_at_a_time(step: str) -> None:
    class Tested(Net):
        test_step = Net.validation_step

    model, one = Tested(), trainer()
    held = []
    evaluate: Callable[..., object] = getattr(one, step)
    one.on(
        f"{'validation' if step == 'validate' else step}_step:exit",
        lambda t, m: held.append(len(model.alive)),
    )
    evaluate(model, samples(16))
    assert held == [1] * 4
    assert model.alive == []


@pytest.mark.parametrize("asked", [False, True])
def test_outputs_are_gathered_only_when_asked_for(asked: bool) -> None:
    fit, model = trainer(gather_outputs=asked), Net()
    kept: list[int | None] = []

    def count(trainer: Trainer, moment: object) -> None:
        outputs = trainer.context.outputs
        kept.append(None if outputs is None else len(outputs))

    fit.on("fetch", count)
    fit.fit(model, stream(3))
    assert kept == ([0, 1, 2, 3] if asked else [None] * 4)
    assert fit.context.outputs is None
    assert model.alive == []


def test_a_model_that_wants_the_outputs_of_its_epoch_gets_them_and_they_go_with_it() -> None:
    class Wanting(Net):
        got = 0

        def training_epoch_end(self, outputs: list[Any]) -> None:
            self.got = len(outputs)

    model = Wanting()
    trainer().fit(model, stream(3))
    assert model.got == 3
    assert model.alive == []


def test_the_number_of_living_tensors_is_the_same_after_every_batch() -> None:
    model, fit = Net(), trainer()
    living: list[int] = []

    def count(trainer: Trainer, moment: object) -> None:
        living.append(sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects()))

    fit.on("fetch", count)
    fit.fit(model, stream(8))
    assert len({*living[2:-1]}) == 1, living  # momentum comes with the first step


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_a_long_run_needs_no_more_memory_than_a_short_one() -> None:
    batch = (torch.randn(256, 8), torch.randint(4, (256,)))
    model, fit = Quiet(), trainer()
    resident: list[int] = []

    def note(trainer: Trainer, moment: object) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * 4096)

    fit.on("batch_end", note, every=250)
    gc.enable()
    fit.fit(model, [batch] * 3000)
    grown = resident[-1] - resident[3]
    # 2000 batches lie between: an object kept of each would be seen from 500 bytes on.
    assert grown < 1_000_000, f"{grown / 2000:.0f} bytes a batch: {resident}"


class Quiet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        inputs, targets = batch
        loss = F.cross_entropy(self.layer(inputs), targets)
        log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)
