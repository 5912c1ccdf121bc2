"""Places: the states of a loop that are loops themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from statemachine_trainer.machine.errors import MissingLoop

if TYPE_CHECKING:
    from statemachine_trainer.machine.loop import Loop

L = TypeVar("L", bound="Loop")


class Place:
    """Where a loop sits inside another one.

    A data descriptor, so that an assignment `outer.place = loop` is seen as a swap, and ordinary
    attributes of a loop cost nothing.
    """

    def __init__(self, factory: Callable[[], Loop] | None = None) -> None:
        self.factory = factory
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, loop: Loop | None, owner: type) -> Any:
        if loop is None:
            return self
        found = loop._loops.get(self.name)
        if found is None:
            found = loop.loops_inside().get(self.name)
        if found is None:
            raise MissingLoop(
                f"{owner.__name__} has a place for a loop named {self.name!r} and nothing in it. "
                f"Give one: `{owner.__name__}({self.name}=...)` or `loop.{self.name} = ...`."
            )
        return found

    def __set__(self, loop: Loop, value: Loop | type[Loop]) -> None:
        loop[self.name] = value


def place(factory: Callable[[], L]) -> L:
    """Declare the loop that stands in a place unless another one is given.

    Example:
        class Outer(Loop):
            inner: Loop = place(Inner)

    Args:
        factory: The loop's class, or any callable without arguments that makes one.
    """
    return cast("L", Place(factory))
