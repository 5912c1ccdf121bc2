"""Two threads read, check and copy large tensors, and nothing of that can be seen in what comes out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn

from statemachine_trainer import load_weights
from statemachine_trainer.snapshot import Damaged, SnapshotMismatch, Store
from statemachine_trainer.snapshot.copying import copy_large
from statemachine_trainer.snapshot.modules import load_module_weights
from statemachine_trainer.snapshot.threads import Worker

LARGE = 5 << 20
"""Bytes of a tensor of which a second thread takes a part."""

TENSORS = "tensors.safetensors"

Threads: TypeAlias = Callable[[], None]


@pytest.fixture(autouse=True)
def one_thread_of_torch() -> Iterator[None]:
    """With many threads torch copies as fast itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["two threads", "no thread to be had"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Threads:
    """Return what decides on how many threads there are from then on."""

    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    def decide() -> None:
        if request.param != "two threads":
            monkeypatch.setattr(Worker, "submit", refuse)

    return decide


def bytes_to(size: int) -> Tensor:
    """Return a tensor in which no two pieces are the same."""
    return torch.randint(0, 256, (size,), dtype=torch.uint8)


# -- Reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4 << 20) - 1, 4 << 20, (4 << 20) + 1, LARGE + 4097])
def test_tensors_of_any_size_are_read_to_the_bit(
    tmp_path: Path, size: int, threads: Threads
) -> None:
    tree = {"small": bytes_to(3), "large": bytes_to(size), "next": bytes_to(LARGE)}
    Store(tmp_path).save(tree, name="one")
    threads()
    read: Any = Store(tmp_path).load("one").tree
    for name, one in tree.items():
        assert torch.equal(read[name], one)


@pytest.mark.parametrize("part", [0.01, 0.49, 0.51, 0.99])
def test_a_flipped_bit_is_found_in_each_half(tmp_path: Path, part: float) -> None:
    path = Store(tmp_path).save({"large": bytes_to(LARGE)}, name="one") / TENSORS
    content = bytearray(path.read_bytes())
    content[int(len(content) * part)] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match="checksum") as caught:
        Store(tmp_path).load("one")
    assert caught.value.file == path


def from_half_on(act: Callable[[], int]) -> Callable[..., int]:
    """Return a reading of a file by place that does something else in its second half."""
    read = os.preadv

    def reading(descriptor: int, buffers: Any, place: int) -> int:
        return act() if place > LARGE / 2 else read(descriptor, buffers, place)

    return reading


def fail() -> int:
    raise OSError(5, "Input/output error")


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="this system reads at no place in a file")
@pytest.mark.parametrize(
    "act, why", [(fail, "cannot be read"), (lambda: 0, "ends too early")], ids=["error", "end"]
)
def test_what_goes_wrong_in_the_second_thread_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[], int], why: str
) -> None:
    path = Store(tmp_path).save({"large": bytes_to(LARGE)}, name="one") / TENSORS
    monkeypatch.setattr(os, "preadv", from_half_on(act))
    with pytest.raises(Damaged, match=why) as caught:
        Store(tmp_path).load("one")
    assert caught.value.file == path


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="this system reads at no place in a file")
def test_a_file_that_gives_less_than_was_asked_for_is_read_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, read = bytes_to(LARGE), os.preadv
    Store(tmp_path).save({"large": large}, name="one")
    monkeypatch.setattr(os, "preadv", lambda file, into, at: read(file, [into[0][:100_001]], at))
    loaded: Any = Store(tmp_path).load("one").tree
    assert torch.equal(loaded["large"], large)


# -- Copying --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4 << 20), (4 << 20) + 1, LARGE + 4097])
def test_a_copy_is_one_to_the_bit(size: int, threads: Threads) -> None:
    threads()
    source, target = bytes_to(size), torch.zeros(size, dtype=torch.uint8)
    assert copy_large({"a": target}, {"a": source, "b": source}).keys() == {"a"}
    assert torch.equal(target, source)


def left_alone() -> dict[str, tuple[Tensor, Any]]:
    """Return pairs of tensors of which a copy of bytes would not be what torch does, or would not pay."""
    side = 1200
    plain = torch.rand(side, side)
    memory = torch.rand(2 * side * side)
    zeros = torch.zeros(side, side)
    return {
        "small": (zeros[:100], plain[:100]),
        "another type": (zeros, plain.double()),
        "another shape": (zeros, plain.view(-1)),
        "another layout": (zeros, plain.t()),
        "layout of the target": (zeros.t(), plain),
        "expanded": (zeros, torch.rand(side).expand(side, side)),
        "conjugated": (zeros.to(torch.complex64), plain.to(torch.complex64).conj()),
        "overlapping": (memory[:LARGE], memory[100 : LARGE + 100]),
        "itself": (plain, plain),
        "no numbers": (zeros, torch.empty(side, side, device="meta")),
        "no tensor": (zeros, [1]),
    }


@pytest.mark.parametrize("which", left_alone())
def test_what_is_more_than_a_copy_of_bytes_is_left_to_torch(which: str) -> None:
    target, source = left_alone()[which]
    before = target.clone()
    assert copy_large({"a": target}, {"a": source}) == {}
    assert torch.equal(target, before)


def test_where_torch_has_more_threads_it_copies() -> None:
    torch.set_num_threads(3)
    assert copy_large({"a": torch.zeros(LARGE)}, {"a": torch.ones(LARGE)}) == {}


class Net(nn.Module):
    """A model with large weights, two of them one tensor, and small ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(1100, 1100) for _ in range(3))
        self.third.weight = self.first.weight
        self.norm = nn.BatchNorm1d(1100)


def test_large_and_small_weights_are_loaded_into_the_memory_that_the_model_has(
    tmp_path: Path, threads: Threads
) -> None:
    model, again = Net(), Net()
    Store(tmp_path).save({"context": {"model": {"weights": model.state_dict()}}}, name="one")
    threads()
    before = {name: one.data_ptr() for name, one in again.state_dict().items()}
    versions = [one._version for one in again.parameters()]
    load_weights(again, tmp_path)
    for name, one in again.state_dict().items():
        assert torch.equal(one, model.state_dict()[name])
        assert one.data_ptr() == before[name]
    assert again.third.weight is again.first.weight
    # Autograd sees that they have changed.
    assert all(one._version > was for one, was in zip(again.parameters(), versions, strict=True))


def test_a_layer_that_loads_in_a_way_of_its_own_is_given_what_was_saved() -> None:
    class Doubling(nn.Linear):
        def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
            state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"] * 2
            super()._load_from_state_dict(state_dict, prefix, *rest)

    model = Doubling(1100, 1100)
    saved = {name: one.clone() for name, one in model.state_dict().items()}
    load_module_weights(model, saved)
    assert torch.equal(model.weight, saved["weight"] * 2)


def test_a_model_that_does_not_fit_is_unchanged() -> None:
    model = Net()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    saved = {name: torch.zeros_like(one) for name, one in before.items()}
    saved["norm.weight"] = torch.zeros(3)
    with pytest.raises(SnapshotMismatch, match=r"norm\.weight"):
        load_module_weights(model, saved)
    for name, one in model.state_dict().items():
        assert torch.equal(one, before[name])
