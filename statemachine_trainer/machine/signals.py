"""Signals: blinker signals whose receivers have an order, and the moments they tell of."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import blinker

from statemachine_trainer.machine.errors import BadReceiver

T = TypeVar("T")
Receiver = Callable[..., Any]
Call = Callable[[Any, "Moment"], Any]
"""What is called with the sender and a moment, by position."""

ENTER = "enter"
EXIT = "exit"


class Moment(NamedTuple):
    """What a receiver is told: which signal, and the transition that fired it.

    Attributes:
        path: Path of the state or loop that was entered or left; of a transition, its source.
        kind: "enter", "exit", or the name of the event for the signal of a transition.
        event: The event that was taken; None at the very start.
        source: Path of the state that was left; None at the very start.
        target: Path of the state about to run; "end" when the machine has ended.
    """

    path: str
    kind: str
    event: str | None
    source: str | None
    target: str

    @property
    def signal(self) -> str:
        """Full name of the signal, as `on` takes it."""
        return f"{self.path}:{self.kind}"

    @property
    def state(self) -> str:
        """Last name of the path: the state or loop without the loops around it."""
        return self.path.rpartition(".")[2]


class OrderedSet(set[T]):
    """A set that iterates in the order of insertion, for blinker's books.

    It has what blinker asks of its sets (`Signal.set_class`), and no more.
    """

    def __init__(self, items: Iterable[T] = ()) -> None:
        super().__init__()
        self._order: dict[T, None] = {}
        for item in items:
            self.add(item)

    def add(self, item: T) -> None:
        """Put an item last, unless it is in the set already."""
        super().add(item)
        self._order[item] = None

    def discard(self, item: object) -> None:
        """Take an item out if it is in the set."""
        super().discard(item)
        self._order.pop(item, None)  # type: ignore[arg-type]

    def clear(self) -> None:
        """Take all items out."""
        super().clear()
        self._order.clear()

    def copy(self) -> OrderedSet[T]:
        """Return a set of the same items in the same order."""
        return OrderedSet(self._order)

    def __iter__(self) -> Iterator[T]:
        return iter(self._order)

    def __or__(self, other: Iterable[Any]) -> OrderedSet[Any]:
        return OrderedSet([*self._order, *other])


class Signal(blinker.Signal):
    """A blinker signal that calls its receivers by priority, then in the order of connection.

    Exit signals call them in the reverse order, so that what was set up first is torn down last.
    Whatever blinker can do with a signal works (`connect`, `muted`, senders); `trainer.on` is the
    comfortable way.

    Attributes:
        name: Full name, such as "fit.epoch.fetch:enter".
        same_for_all: Those to call, in order, where they do not depend on the sender; else None.
    """

    set_class = OrderedSet
    _muted = False

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._reverse = name.endswith(f":{EXIT}")
        self.same_for_all: tuple[Receiver, ...] | None = ()
        self._watchers: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Signal {self.name!r}>"

    @property
    def is_muted(self) -> bool:
        """Whether nobody is called; set by blinker's `muted`."""
        return self._muted

    @is_muted.setter
    def is_muted(self, muted: bool) -> None:
        if muted != self._muted:  # blinker sets it before there is anything to bring up to date
            self._muted = muted
            self.changed()

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed()` whenever others are to be called than before."""
        self._watchers.append(changed)

    def forget_watchers(self) -> None:
        """Call nobody any more when a receiver comes or goes."""
        self._watchers.clear()

    def connect(self, receiver: Any, sender: Any = blinker.ANY, weak: bool = True) -> Any:
        """Connect a receiver called as `receiver(trainer, moment=...)`; see blinker for the rest.

        Raises:
            BadReceiver: It is a coroutine function.
        """
        if inspect.iscoroutinefunction(receiver):
            raise BadReceiver(
                f"The receiver {receiver.__qualname__} of {self.name!r} is a coroutine function; "
                "the machine calls plain ones."
            )
        connected = super().connect(receiver, sender, weak)
        self.changed()
        return connected

    def _disconnect(self, receiver_id: Hashable, sender_id: Hashable) -> None:
        super()._disconnect(receiver_id, sender_id)
        self.changed()

    def receivers_for(self, sender: Any) -> Iterator[Receiver]:  # type: ignore[override]
        """Yield the live receivers for a sender in the order in which they are called."""
        found = sorted(super().receivers_for(sender), key=_priority)
        return iter(found[::-1] if self._reverse else found)

    def listeners(self, sender: Any) -> tuple[Receiver, ...]:
        """Return those to call now, in order: none while the signal is muted."""
        same = self.same_for_all
        return tuple(self.receivers_for(sender)) if same is None else same

    def emit(self, sender: Any, moment: Moment) -> None:
        """Call every receiver."""
        for receiver in self.listeners(sender):
            receiver(sender, moment=moment)

    def changed(self) -> None:
        """Find anew whom to call; said by a receiver, too, if it is to be called in another way."""
        held = not any(isinstance(one, weakref.ReferenceType) for one in self.receivers.values())
        for_all = self._by_sender.keys() <= {blinker.base.ANY_ID}
        if self._muted:
            self.same_for_all = ()
        else:
            self.same_for_all = tuple(self.receivers_for(blinker.ANY)) if held and for_all else None
        for changed in self._watchers:
            changed()


def _priority(receiver: Receiver) -> int:
    return -int(getattr(receiver, "priority", 0))
