"""Walking through nested containers keeps types, order and whatever else a container has."""

from __future__ import annotations

import types
from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statemachine_trainer import parallel
from statemachine_trainer.parallel import CannotRebuild, leaves_with_paths, map_leaves, parts


class Pair(NamedTuple):
    left: object
    right: object


@dataclass
class Sample:
    image: object
    label: object = 0
    size: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.size += 1


@dataclass(frozen=True, slots=True)
class Frozen:
    value: object


leaves = st.integers() | st.text(max_size=3) | st.none()
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.builds(Pair, inner, inner)
        | st.builds(Frozen, inner)
    ),
    max_leaves=12,
)


@given(tree=trees)
def test_mapping_the_identity_gives_an_equal_tree(tree: object) -> None:
    assert map_leaves(lambda leaf: leaf, tree) == tree


@given(tree=trees)
def test_leaves_are_visited_in_the_order_in_which_their_paths_are_listed(tree: object) -> None:
    seen: list[object] = []
    map_leaves(seen.append, tree)
    assert seen == [leaf for _, leaf in leaves_with_paths(tree)]


@given(tree=trees)
def test_a_path_is_the_expression_that_reaches_its_leaf(tree: object) -> None:
    for path, leaf in leaves_with_paths(tree, "tree"):
        assert eval(path, {"tree": tree}) is leaf


def test_a_named_tuple_stays_one() -> None:
    assert map_leaves(str, Pair(1, [2])) == Pair("1", ["2"])


def test_a_dataclass_is_rebuilt_without_running_its_post_init() -> None:
    made = map_leaves(lambda leaf: leaf, Sample(image=5))
    assert isinstance(made, Sample)
    assert (made.image, made.size) == (5, 1)


def test_the_original_container_is_not_changed() -> None:
    tree = {"x": [1, Sample(2)], "y": Frozen(3)}
    map_leaves(lambda leaf: None, tree)
    assert tree == {"x": [1, Sample(2)], "y": Frozen(3)}


def test_a_default_dict_keeps_its_default_and_an_ordered_dict_its_order() -> None:
    tree: defaultdict[str, object] = defaultdict(list, {"a": 1})
    made = map_leaves(str, tree)
    assert isinstance(made, defaultdict)
    assert made["a"] == "1"
    assert made["new"] == []
    ordered = map_leaves(str, OrderedDict([("b", 1), ("a", 2)]))
    assert ordered == OrderedDict([("b", "1"), ("a", "2")])


def test_a_user_dict_stays_one_and_a_read_only_mapping_becomes_a_dict() -> None:
    made = map_leaves(str, UserDict({"a": 1}))
    assert isinstance(made, UserDict)
    assert made["a"] == "1"
    assert map_leaves(str, types.MappingProxyType({"a": 1})) == {"a": "1"}


@pytest.mark.parametrize("leaf", ["text", b"bytes", torch.Size([2, 3]), torch.zeros(2), 5, Sample])
def test_a_leaf_has_no_parts(leaf: object) -> None:
    assert parts(leaf) is None


def test_a_container_can_be_declared_a_leaf() -> None:
    made = map_leaves(str, {"a": (1, 2)}, is_leaf=lambda tree: isinstance(tree, tuple))
    assert made == {"a": "(1, 2)"}


def test_a_container_that_refuses_new_contents_is_named() -> None:
    class Stubborn(list[int]):
        def __init__(self, first: int, second: int) -> None:
            super().__init__([first, second])

    with pytest.raises(CannotRebuild, match=r"Stubborn cannot be made again"):
        map_leaves(str, Stubborn(1, 2))


def test_the_leaves_are_those_that_are_found_with_their_paths() -> None:
    tensor = torch.ones(2)
    tree = {"a": [1, (tensor, "x")], "b": UserDict(c=Pair(2, Sample(None))), "d": {}, "e": tensor}
    by_path = [id(leaf) for _, leaf in leaves_with_paths(tree)]

    assert sorted(id(leaf) for leaf in parallel.leaves(tree)) == sorted(by_path)


def test_a_container_that_contains_itself_has_leaves_all_the_same() -> None:
    tree: dict[str, object] = {"a": 1}
    tree["b"] = [tree, 2]

    assert sorted(map(str, parallel.leaves(tree))) == ["1", "2"]
