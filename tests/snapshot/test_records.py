"""Named tuples and dataclasses survive being written, and bring no code with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from statemachine_trainer import Trainer
from statemachine_trainer.snapshot import Unwritable, decode, encode
from statemachine_trainer.snapshot.leaves import Undecodable
from statemachine_trainer.testing import assert_resumable


class Pair(NamedTuple):
    inputs: torch.Tensor
    targets: torch.Tensor | None = None


@dataclass
class Example:
    pair: Pair
    name: str = "one"
    seen: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        assert self.name != "never", "it was made anew"


@dataclass(frozen=True, slots=True)
class Frozen:
    value: float


class Batch(NamedTuple):
    inputs: torch.Tensor
    target: torch.Tensor


class Calls:
    def __set__(self, instance: object, value: object) -> None:
        raise AssertionError("code was run")

    def __get__(self, instance: object, owner: type) -> int:
        return 1


@dataclass
class WithDescriptor:
    value: Any = Calls()


def there_and_back(value: object) -> Any:
    document, tensors = encode({"it": value})
    tree = decode(document, tensors)
    assert isinstance(tree, dict)
    return tree["it"]


def test_they_come_back_as_what_they_were() -> None:
    example = Example(Pair(torch.arange(3)))
    example.seen.append(4)
    example.name = "never"
    again = there_and_back([example, Frozen(0.5)])
    assert type(again[0]) is Example
    assert type(again[0].pair) is Pair
    assert again[0].pair.inputs.equal(torch.arange(3))
    assert again[0].pair.targets is None
    assert (again[0].name, again[0].seen, again[1]) == ("never", [4], Frozen(0.5))


def test_a_packed_sequence_is_a_named_tuple_too() -> None:
    packed = pack_sequence([torch.randn(3, 2), torch.randn(1, 2)])
    again = there_and_back(packed)
    assert type(again) is PackedSequence
    assert again.data.equal(packed.data)
    assert again.batch_sizes.equal(packed.batch_sizes)


def test_one_whose_class_is_within_a_function_is_refused() -> None:
    @dataclass
    class Inside:
        value: int

    with pytest.raises(Unwritable, match="top level of a module"):
        encode({"it": Inside(1)})


def test_one_whose_fields_run_code_is_refused() -> None:
    one = object.__new__(WithDescriptor)
    with pytest.raises(Unwritable):
        encode({"it": one})


@pytest.mark.parametrize(
    "record, problem",
    [
        (["tests.snapshot.test_records", "Gone", {}], "is not there"),
        (["no.such.module", "Pair", {}], "is not there"),
        (["os", "system", {}], "is not there"),
        (["torch.nn", "Linear", {}], "is not there"),
        ([__name__, "Pair", {"inputs": 1}], "had the fields inputs, and now has inputs, targets"),
        ([__name__, "WithDescriptor", {"value": 1}], "is not there"),
        ([__name__, "Pair", []], "has no fields"),
    ],
)
def test_what_names_no_such_class_is_refused(record: list[Any], problem: str) -> None:
    with pytest.raises(Undecodable, match=problem):
        decode({"tree": {"$record": record}, "tensors": {}}, {})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.layer(batch.inputs), batch.target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def make_trainer() -> Trainer:
    torch.manual_seed(0)
    data = [Batch(torch.randn(3, 4), torch.tensor([0, 1, 0])) for _ in range(3)]
    trainer = Trainer(max_epochs=2, progress=False)
    trainer.start(Net(), data)
    return trainer


def test_a_run_on_named_tuples_is_stopped_and_resumed_at_every_boundary() -> None:
    assert_resumable(make_trainer, exhaustive=True)
