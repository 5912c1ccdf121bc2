"""Where a run is, and how batches get there; "meta" stands for any device but the CPU."""

from __future__ import annotations

import datetime
import pathlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from statemachine_trainer import Trainer
from statemachine_trainer.parallel import (
    CannotMove,
    NoNumbers,
    UnknownDevice,
    numbers_needed_on,
    resolve_device,
    to_device,
)

META = torch.device("meta")
CPU = torch.device("cpu")


class Pair(NamedTuple):
    x: object
    y: object


@dataclass
class Sample:
    image: torch.Tensor
    name: str


class Graph:
    """A batch of a library of its own, which knows how to move itself."""

    def __init__(self, device: torch.device = CPU) -> None:
        self.device = device

    def to(self, device: torch.device) -> Graph:
        return Graph(device)


class Unknown:
    pass


def test_on_the_cpu_the_batch_itself_comes_back_whatever_is_in_it() -> None:
    batch = {"x": torch.zeros(2), "odd": Unknown()}
    assert to_device(batch, CPU) is batch


def test_every_tensor_is_moved_and_containers_keep_their_type() -> None:
    image = torch.zeros(4)
    batch: dict[str, object] = {
        "pair": Pair(torch.zeros(2), [torch.zeros(3), (torch.zeros(1),)]),
        "sample": Sample(image, "cat"),
    }
    moved = to_device(batch, META)
    pair, sample = moved["pair"], moved["sample"]
    assert isinstance(pair, Pair)
    assert isinstance(pair.x, torch.Tensor)
    assert pair.x.device == META
    assert isinstance(pair.y, list)
    assert pair.y[0].device == META
    assert pair.y[1][0].device == META
    assert isinstance(sample, Sample)
    assert sample.image.device == META
    assert sample.name == "cat"
    assert image.device == CPU


def test_a_bare_tensor_is_moved() -> None:
    assert to_device(torch.zeros(2), META).device == META


def test_an_object_that_can_move_itself_is_asked_to() -> None:
    assert to_device([Graph()], META)[0].device == META


def test_a_packed_sequence_moves_as_a_whole() -> None:
    packed = pack_padded_sequence(torch.zeros(2, 3, 1), torch.tensor([3, 2]), batch_first=True)
    assert to_device({"x": packed}, META)["x"].data.device == META


def test_data_of_the_host_stays_there() -> None:
    batch = [1, 2.0, "id", None, True, b"x", pathlib.Path("a"), np.zeros(2), np.float32(1.0)]
    batch += [datetime.date(2020, 1, 1), {"a", "b"}, torch.Size([1]), torch.float32]
    for before, after in zip(batch, to_device(batch, META), strict=True):
        assert before is after


def test_what_cannot_be_moved_is_named_with_its_place_and_the_way_out() -> None:
    with pytest.raises(CannotMove) as caught:
        to_device({"x": torch.zeros(2), "more": [1, Unknown()]}, META)
    message = str(caught.value)
    assert "batch['more'][1] is a " in message
    assert "Unknown" in message
    assert "`to(device)`" in message
    assert "`transfer_batch(batch, device)`" in message


def test_auto_is_a_device_that_can_be_used() -> None:
    assert torch.zeros(1, device=resolve_device("auto")).device == resolve_device("auto")


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu")])
def test_the_cpu_has_one_name(device: str | torch.device) -> None:
    assert resolve_device(device) == CPU


def test_an_unknown_name_is_an_error_that_lists_the_devices_here() -> None:
    with pytest.raises(UnknownDevice, match=r"'gpuu' is not the name of a device.*'auto', 'cpu'"):
        resolve_device("gpuu")


def test_a_device_that_this_machine_lacks_is_an_error() -> None:
    with pytest.raises(UnknownDevice, match="This machine has no device 'cuda:99'"):
        resolve_device("cuda:99")


class Read(torch.nn.Module):
    """A model whose step reads the value of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.layer(batch).sum()
        return loss if loss > 0 else -loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_fit_without_numbers_says_so_where_it_needs_one() -> None:
    trainer = Trainer(device="meta", progress=False, max_epochs=1)
    with pytest.raises(NoNumbers, match=r"device='meta'.*no numbers.*another device"):
        trainer.fit(Read(), [torch.ones(1, 2)])


@pytest.mark.parametrize("error", [RuntimeError("another one"), ValueError("meta")])
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), numbers_needed_on(META):
        raise error
