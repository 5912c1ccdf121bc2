"""What is not plain is refused, by its address, with what to do about it."""

from __future__ import annotations

import enum
from collections import Counter, namedtuple
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import torch
from torch import nn

from statemachine_trainer.snapshot import Store, Unwritable, encode
from statemachine_trainer.snapshot.modules import module_state


def elsewhere() -> object:
    """A named tuple that is not found under the name it has."""
    Point = namedtuple("Point", "x y")
    return Point(1, 2)


class Colour(enum.IntEnum):
    RED = 1


@dataclass
class Settings:
    rate: float = 0.1

    def __post_init__(self) -> None:
        self.hidden = 1  # what is no field would be lost


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value, remedy",
    [
        (elsewhere(), "_asdict"),
        (Colour.RED, ".value"),
        (Settings(), "dataclasses.asdict"),
        (Text("x"), "turn it into a str"),
        (Counter("abc"), "turn it into a dict"),
        (nn.Linear(1, 1), "state_dict()"),
        (torch.Generator(), "get_state()"),
        (np.random.default_rng(0), "bit_generator.state"),
        (np.random.RandomState(0), "get_state()"),
        (datetime.now(ZoneInfo("Europe/Paris")), "fixed offset"),
        (lambda: None, "plain values"),
        (1j, "plain values"),
        (np.array(["a"]), "tolist()"),
        (np.array([None]), "tolist()"),
        (np.ones(1, dtype=np.longdouble), "float64"),
        (torch.eye(2).to_sparse(), "to_dense()"),
        (torch.ones(1, device="meta"), "materialise"),
        (torch.ones(1, requires_grad=True) * 2, "detach()"),
        ({torch.ones(1)}, "keys of str"),
        ({Colour.RED: 1}, "keys of str"),
    ],
)
def test_a_value_that_is_not_plain_is_named_with_a_remedy(value: object, remedy: str) -> None:
    tree = {"loops": {"fit": [0, {"batches": (1, value)}]}}
    with pytest.raises(Unwritable) as caught:
        encode(tree)
    assert caught.value.where.startswith("loops.fit[1].batches[1]")
    assert str(caught.value).startswith(caught.value.where)
    assert remedy in str(caught.value)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_nested_tensor_is_named_with_its_place_in_the_model() -> None:
    model = nn.Linear(1, 1)
    model.register_buffer("rows", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))
    with pytest.raises(Unwritable, match=r"weights\.rows: a nested tensor.*unbind\(\)"):
        encode(module_state(model, grads=False))


def test_the_address_names_keys_that_are_not_text() -> None:
    with pytest.raises(Unwritable, match=r"state\[0\]\[\(1, 'a'\)\]\.x: a builtins\.object"):
        encode({"state": {0: {(1, "a"): {"x": object()}}}})


def test_a_tree_that_contains_itself_is_refused() -> None:
    tree: dict[str, object] = {}
    tree["a"] = [tree]
    with pytest.raises(Unwritable, match=r"a\[0\]: it contains itself"):
        encode(tree)


def test_a_tree_deeper_than_any_state_is_refused() -> None:
    tree: object = 0
    for _ in range(5000):
        tree = (tree,)
    with pytest.raises(Unwritable, match="nested deeper than 100 levels"):
        encode(tree)


def test_the_deepest_tree_that_is_written_is_read(tmp_path: Path) -> None:
    tree: object = 0
    for _ in range(100):
        tree = {(1,): tree}
    store = Store(tmp_path)
    store.save(tree, name="deep")
    assert store.load("deep").tree == tree


def test_metadata_holds_no_tensors(tmp_path: Path) -> None:
    with pytest.raises(Unwritable, match=r"metadata\.loss: metadata holds no tensors"):
        Store(tmp_path).save({}, name="x", metadata={"loss": torch.ones(1)})


def test_a_refused_tree_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save({"a": 1}, name="x")
    with pytest.raises(Unwritable):
        store.save({"a": object()}, name="y", metadata={"time": datetime.now(UTC)})
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["000001-x"]
