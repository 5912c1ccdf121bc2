"""A mean is weighted by the samples of a batch; where these are not clear, it is told once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from statemachine_trainer import Trainer
from statemachine_trainer.loops.metrics.log import log
from statemachine_trainer.loops.metrics.table import UnclearBatchSize, batch_size_of


class Evaluated(nn.Module):
    """Logs the values of two batches, of 8 and of 2 samples: 1 and 6, of which the mean is 2."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        settings = dict(self.settings)
        if settings.pop("say", False):
            settings["batch_size"] = (8, 2)[batch_idx]
        log("value", (1.0, 6.0)[batch_idx], **settings)
        log("other", 0.0, **settings)


def mean(batches: list[Any], **settings: Any) -> float:
    found = Trainer(progress=False, device="cpu").validate(Evaluated(**settings), batches)
    return found["value"]


@dataclass
class Graphs:
    """Nodes of all graphs, and how many there are; a field that is no tensor does not matter."""

    x: Tensor
    y: Tensor


class Row(NamedTuple):
    """One sample."""

    x: Tensor
    y: int


class Batch:
    """Graphs in one object, as torch_geometric has them."""

    def __init__(self, size: int) -> None:
        self.num_graphs = size


class Opaque:
    """Holds what it is given, which it does not show as a container would."""

    def __init__(self, *held: Any) -> None:
        self.held = held


@contextmanager
def told_once(said: str) -> Iterator[None]:
    with pytest.warns(UnclearBatchSize, match=said) as caught:
        yield
    assert len(caught) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda size: torch.zeros(size, 3),
        lambda size: [torch.zeros(size, 3), torch.zeros(size)],
        lambda size: {"x": torch.zeros(size, 3), "name": "train", "n": 7, "scale": torch.tensor(1)},
        lambda size: ((torch.zeros(size), torch.zeros(size)), torch.zeros(size)),
        lambda size: {"text": ["a"] * size, "value": 1},
        lambda size: [["a"] * size, {"id": ["b"] * size}],
        lambda size: [["a"] * 5, torch.zeros(size)],
        lambda size: {"x": np.zeros((size, 3)), "scale": np.float64(2.0), "y": np.zeros(size)},
        lambda size: [np.zeros((5, 3)), torch.zeros(size)],
        Batch,
        lambda size: Opaque(torch.zeros(size, 3), torch.zeros(size)),
        lambda size: [Opaque(torch.zeros(size))],
    ],
)
def test_a_mean_is_over_samples(make: Any) -> None:
    assert mean([make(8), make(2)]) == pytest.approx(2.0)


@pytest.mark.parametrize(
    "make, said",
    [
        (
            lambda size: {"edge_index": torch.zeros(2, 40), "x": torch.zeros(size, 3)},
            r"batch\['edge_index'\] has 2 and batch\['x'\] has 8.*log\('value', value, batch_size",
        ),
        (lambda size: (torch.zeros(5, size, 3), torch.zeros(size)), r"batch\[0\] has 5 and batch"),
        (lambda size: [{"x": torch.zeros(3, 7)}] * size, "has 3 and there is a list of 8"),
        (
            lambda size: [(torch.zeros(3), 1)] * size,
            r"batch\[0\]\[0\] has 3 and there is a list of 8",
        ),
        (lambda size: [(torch.zeros(3), torch.tensor(1))] * size, "there is a list of 8"),
        (lambda size: [np.zeros(3)] * size, r"batch\[0\] has 3 .* there is a list of 8"),
        (lambda size: (np.zeros((5, 3)), np.zeros(size)), r"batch\[0\] has 5 and batch\[1\] has 8"),
        (lambda size: [{"x": np.zeros(3)}] * size, "has 3 and there is a list of 8"),
        (lambda size: [Row(torch.zeros(3), 1)] * size, "there is a list of 8"),
        (lambda size: {"all": [Graphs(torch.zeros(3), torch.zeros(3))] * size}, "a list of 8"),
        (lambda size: Graphs(torch.zeros(30, 3), torch.zeros(size)), r"batch.x has 30 and batch.y"),
        (lambda size: Opaque(torch.zeros(2, 9), torch.zeros(size)), "has 2 and"),
        (lambda size: Opaque(), "a Opaque does not tell.*every batch counts the same"),
    ],
)
def test_an_unclear_size_is_told_once_and_saying_it_is_the_way_out(make: Any, said: str) -> None:
    with told_once(said):
        mean([make(8), make(2)])
    assert mean([make(8), make(2)], say=True) == pytest.approx(2.0)


def test_where_the_size_does_not_matter_nothing_is_told() -> None:
    unclear = {"edges": torch.zeros(2, 40), "x": torch.zeros(8, 3)}
    assert mean([unclear, unclear], reduce="max") == 6.0


def test_samples_that_an_interval_goes_by_are_told_too() -> None:
    class Plain(nn.Linear):
        def training_step(self, batch: Any) -> Tensor:
            return self(batch["x"]).sum()  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = Trainer(max_epochs=1, progress=False, device="cpu")
    trainer.on("batch_end", lambda: None, every="8 samples")
    batch = {"edges": torch.zeros(2, 40), "x": torch.zeros(8, 3)}
    with told_once(r"the first batch counts as 2.*by batches or steps"):
        trainer.fit(Plain(3, 1), [batch] * 3)


def test_texts_alone_tell_how_many_they_are() -> None:
    assert batch_size_of({"n": 3, "text": ("a", "b", "c")}) == 3
    assert batch_size_of("a text") is None
    assert batch_size_of((["a", "b"], np.zeros(7))) == 2
