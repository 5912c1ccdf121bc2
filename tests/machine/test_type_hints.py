"""The type hints of public classes can be resolved, as tools for documentation do."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator

import pytest

import statemachine_trainer
from statemachine_trainer import graph, loops, machine
from statemachine_trainer.machine import Loop


def public_classes() -> Iterator[type]:
    """All of the machine and of graphs, and all loops."""
    for module in (machine, graph, loops, statemachine_trainer):
        for name in module.__all__:
            one = getattr(module, name)
            if isinstance(one, type) and (module in (machine, graph) or issubclass(one, Loop)):
                yield one


@pytest.mark.parametrize("cls", dict.fromkeys(public_classes()), ids=lambda cls: cls.__qualname__)
def test_the_hints_of_a_class_and_its_methods_can_be_resolved(cls: type) -> None:
    typing.get_type_hints(cls)
    if cls.__module__.startswith(("statemachine_trainer.machine", "statemachine_trainer.graph")):
        for method in vars(cls).values():
            if inspect.isfunction(method):
                typing.get_type_hints(method)
