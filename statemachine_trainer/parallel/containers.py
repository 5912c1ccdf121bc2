"""Walks through nested containers: batches, hidden states, outputs of steps.

A container is a mapping, a list, a tuple (named or not) or an instance of a dataclass. Anything
else is a leaf, a `torch.Size` and a string among them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Final, TypeVar, cast

import torch

from statemachine_trainer.parallel.parallel_errors import CannotRebuild


def detach(tree: Tree) -> Tree:
    """Return the same containers with every tensor detached from the autograd graph (memory is shared).

    Between two splits it is applied to the hidden state: values go on, gradients end here.
    """

    def cut_off(leaf: object) -> object:
        return leaf.detach() if isinstance(leaf, torch.Tensor) else leaf

    return cast(Tree, map_leaves(cut_off, tree))


Tree = TypeVar("Tree")


def parts(tree: object) -> Iterable[object] | None:
    """Return the direct contents of a container, in order; None if `tree` is a leaf."""
    if isinstance(tree, (torch.Tensor, str, torch.Size)):
        return None
    if isinstance(tree, (list, tuple)):
        return tree
    if isinstance(tree, Mapping):
        return tree.values()
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [getattr(tree, field.name) for field in dataclasses.fields(tree)]
    return None


def leaves(tree: object) -> list[object]:
    """Return the leaves of nested containers, in no order. Each container is looked into once."""
    found: list[object] = []
    seen: dict[int, object] = {}  # one that contains itself has an end, too
    left = [tree]
    while left:
        one = left.pop()
        if type(one) in NO_CONTAINERS:
            found.append(one)
            continue
        inside = parts(one)
        if inside is None:
            found.append(one)
        elif id(one) not in seen:
            seen[id(one)] = one
            left += inside
    return found


NO_CONTAINERS: Final = frozenset(
    {str, bytes, int, float, bool, type(None), torch.Tensor, torch.nn.Parameter}
)
"""Types of most leaves."""


def leaves_with_paths(
    tree: object,
    path: str = "",
    is_leaf: Callable[[object], bool] | None = None,
) -> Iterator[tuple[str, object]]:
    """Every leaf with the expression that reaches it, depth first.

    Args:
        tree: Nested containers.
        path: What the expressions begin with, such as "batch".
        is_leaf: When it answers True for a container, that container is a leaf.

    >>> list(leaves_with_paths({"x": [1, 2]}, "batch"))
    [("batch['x'][0]", 1), ("batch['x'][1]", 2)]
    """
    inside = None if is_leaf is not None and is_leaf(tree) else parts(tree)
    if inside is None:
        yield path, tree
        return
    for step, part in zip(_steps(tree), inside, strict=True):
        yield from leaves_with_paths(part, path + step, is_leaf)


def map_leaves(
    function: Callable[[object], object],
    tree: object,
    is_leaf: Callable[[object], bool] | None = None,
) -> object:
    """The same containers around `function(leaf)` for every leaf.

    Containers are made anew and keep their type: named tuples, subclasses of dict and list, and
    dataclasses (frozen ones and fields without `init` too; `__post_init__` does not run again).

    Args:
        function: Called once for every leaf, in order.
        tree: Nested containers.
        is_leaf: When it answers True for a container, that container is handed to `function` whole.

    Raises:
        CannotRebuild: When a container of a type of its own refuses the new contents.
    """
    inside = None if is_leaf is not None and is_leaf(tree) else parts(tree)
    if inside is None:
        return function(tree)
    return _rebuilt(tree, [map_leaves(function, part, is_leaf) for part in inside])


def _steps(tree: object) -> list[str]:
    """How each part of a container is reached from it: `[0]`, `['x']` or `.x`."""
    if isinstance(tree, Mapping):
        return [f"[{key!r}]" for key in tree]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return [f".{name}" for name in tree._fields]
    if isinstance(tree, (list, tuple)):
        return [f"[{index}]" for index in range(len(tree))]
    assert dataclasses.is_dataclass(tree)
    return [f".{field.name}" for field in dataclasses.fields(tree)]


def _rebuilt(tree: object, inside: list[object]) -> object:
    kind = type(tree)
    if kind is list:
        return inside
    if kind is tuple:
        return tuple(inside)
    try:
        if isinstance(tree, Mapping):
            return _rebuilt_mapping(tree, inside)
        if isinstance(tree, tuple) and hasattr(tree, "_make"):
            return tree._make(inside)
        if isinstance(tree, (list, tuple)):
            return kind(inside)  # type: ignore[call-arg]
        return _rebuilt_dataclass(tree, inside)
    except (TypeError, ValueError, AttributeError) as error:
        raise CannotRebuild(
            f"A {kind.__module__}.{kind.__qualname__} cannot be made again around its changed "
            f"contents ({error}). Use a plain dict, list, tuple or dataclass in its place."
        ) from error


def _rebuilt_mapping(tree: Mapping[object, object], inside: list[object]) -> object:
    if type(tree) is dict or not isinstance(tree, MutableMapping):
        return dict(zip(tree, inside, strict=True))
    # A copy keeps what the type adds to a dict: the order, the default, attributes of its own.
    made = copy.copy(tree)
    for key, part in zip(list(tree), inside, strict=True):
        made[key] = part
    return made


def _rebuilt_dataclass(tree: object, inside: list[object]) -> object:
    assert dataclasses.is_dataclass(tree)
    made = copy.copy(tree)
    for field, part in zip(dataclasses.fields(tree), inside, strict=True):
        object.__setattr__(made, field.name, part)
    return made
