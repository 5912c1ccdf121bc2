"""Signals (blinker signals whose receivers are ordered), moments and subscriptions."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import blinker

from statemachine_trainer.machine.errors import BadReceiver

T = TypeVar("T")
Receiver = Callable[..., Any]
Call = Callable[[Any, "Moment"], Any]
"""A function of the sender and a moment, both positional."""

ENTER = "enter"
EXIT = "exit"
ERROR = "error"
"""The signal of a machine that an exception stops: `"fit:error"`, or `"error"` for every machine."""


class Moment(NamedTuple):
    """Passed to each receiver: which signal fired, and on which transition.

    Attributes:
        path: Path of the state or loop that was entered or left. For a transition: its source.
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


class ErrorMoment(Moment):
    """The moment of the signal `error`: an exception stops the machine.

    Attributes:
        error: The exception. It surfaces when all receivers were called.
    """

    error: Exception


class OrderedSet(set[T]):
    """A set that iterates in the order of insertion, for blinker's internal tables.

    It implements only what blinker needs (`Signal.set_class`).
    """

    def __init__(self, items: Iterable[T] = ()) -> None:
        super().__init__()
        self._order: dict[T, None] = {}
        for item in items:
            self.add(item)

    def add(self, item: T) -> None:
        """Append an item, unless the set has it."""
        super().add(item)
        self._order[item] = None

    def discard(self, item: object) -> None:
        """Remove an item if the set has it."""
        super().discard(item)
        self._order.pop(item, None)  # type: ignore[arg-type]

    def clear(self) -> None:
        """Remove all items."""
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

    Exit signals call them in reverse order, so that what was set up first is torn down last. All of
    blinker's interface works (`connect`, `muted`, senders). `trainer.on` is more convenient.

    Attributes:
        name: Full name, such as "fit.epoch.fetch:enter".
        same_for_all: The receivers to call, in order, if they do not depend on the sender; else None.
        changes: How often the receivers of any signal of this process have changed.
    """

    set_class = OrderedSet
    changes: ClassVar[int] = 0
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
        """Whether the signal calls no receivers; set by blinker's `muted`."""
        return self._muted

    @is_muted.setter
    def is_muted(self, muted: bool) -> None:
        if muted != self._muted:  # blinker sets it before there is anything to update
            self._muted = muted
            self.changed()

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed()` whenever the receivers of this signal change."""
        self._watchers.append(changed)

    def forget_watchers(self) -> None:
        """Remove all functions that `watch` added."""
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
        """Yield the live receivers for a sender, in call order."""
        found = sorted(super().receivers_for(sender), key=_priority)
        return iter(found[::-1] if self._reverse else found)

    def listeners(self, sender: Any) -> tuple[Receiver, ...]:
        """Return the receivers to call now, in order; none while the signal is muted."""
        same = self.same_for_all
        return tuple(self.receivers_for(sender)) if same is None else same

    def emit(self, sender: Any, moment: Moment) -> None:
        """Call every receiver."""
        for receiver in self.listeners(sender):
            receiver(sender, moment=moment)

    def changed(self) -> None:
        """Recompute the receivers to call. A receiver calls this, too, when its way of being called changes."""
        held = not any(isinstance(one, weakref.ReferenceType) for one in self.receivers.values())
        for_all = self._by_sender.keys() <= {blinker.base.ANY_ID}
        if self._muted:
            self.same_for_all = ()
        else:
            self.same_for_all = tuple(self.receivers_for(blinker.ANY)) if held and for_all else None
        Signal.changes += 1
        for changed in self._watchers:
            changed()


def _priority(receiver: Receiver) -> int:
    return -int(getattr(receiver, "priority", 0))


# -- Subscriptions --------------------------------------------------------------------------------


Part = Literal["receiver", "condition"]


class CallProbe(Protocol):
    """Wraps the calls of subscriptions."""

    def __call__(self, subscription: Subscription, part: Part, call: Call) -> Call:
        """Return the function to call instead of `call`, which must call it once and return the result.

        Args:
            subscription: The subscription.
            part: Whether `call` is its receiver or its condition (`when=`).
            call: A function of the sender and the moment.
        """
        ...


@runtime_checkable
class Due(Protocol):
    """An interval that reads the counters of the run instead of counting how often a signal fired."""

    def due(self, sender: Any) -> bool:
        """Return whether to call the receiver now."""
        ...


class Subscription:
    """A receiver connected to one or more signals. Made by `on`.

    Attributes:
        name: The name or pattern that `on` was given.
        receiver: The function as given.
        every: Call it only every n-th time the signal fires, or whenever an interval is due.
        once: Cancel after the first call.
        when: Condition, called like the receiver.
        priority: Receivers of higher priority are called earlier (later at exit signals).
        fired: How often the signal has fired so far, for `every=`; part of the snapshot.
        spent: Whether a subscription with `once` has been called; part of the snapshot.
        active: False once it was cancelled.
    """

    def __init__(
        self,
        name: str,
        receiver: Callable[..., Any],
        *,
        every: int | Due | None = None,
        once: bool = False,
        when: Callable[..., Any] | None = None,
        priority: int = 0,
    ) -> None:
        if every is not None and not _is_interval(every):
            raise BadReceiver(
                f"every={every!r} for {name!r}: use a whole number from 1, or an interval with a "
                "method `due`."
            )
        if not isinstance(once, bool):
            raise BadReceiver(f"once={once!r} for {name!r}: use True or False.")
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise BadReceiver(f"priority={priority!r} for {name!r}: use a whole number.")
        self.name = name
        self.receiver = receiver
        self.every = every
        self.once = once
        self.when = when
        self.priority = priority
        self.fired = 0
        self.spent = False
        self.active = True
        self._receive = self._call = adapt(receiver, name)
        self._ask = self._when = None if when is None else adapt(when, f"when= of {name}")
        self._signals: list[Signal] = []
        self._filters = every is not None or when is not None
        self._passed = False

    def __call__(self, sender: Any, moment: Moment) -> None:
        """Called when the signal fires: check `every` and `when`, then call the receiver."""
        self._passed = False
        if not self.active or (self._filters and not self._is_due(sender, moment)):
            return
        self._passed = True
        self._call(sender, moment)
        if self.once:
            self._spend()

    @property
    def direct(self) -> Call:
        """Return what to call when the signal fires: the receiver itself if nothing must be checked first."""
        return self if self._filters or self.once else self._call

    def deliver(self, sender: Any, moment: Moment) -> None:
        """Call the receiver without asking `every` and `when`."""
        if self.active:
            self._call(sender, moment)
            if self.once:
                self._spend()

    @property
    def again(self) -> Receiver:
        """Return what to call again after this subscription has raised.

        If the receiver raised, that is the receiver alone: `every` has been counted, and `when` was
        true.
        """
        return self.deliver if self._passed else self

    def equip(self, probes: Iterable[CallProbe]) -> None:
        """Wrap receiver and condition in probes, the first one innermost."""
        self._call, self._when = self._receive, self._ask
        for probe in probes:
            self._call = probe(self, "receiver", self._call)
            if self._when is not None:
                self._when = probe(self, "condition", self._when)
        for signal in self._signals:
            signal.changed()

    def revive(self, signals: list[Signal]) -> None:
        """Make a subscription with `once` active again after its call."""
        self.active, self.spent = True, False
        self.connect_to(signals)

    def cancel(self) -> None:
        """Remove the receiver from all its signals."""
        self.active = False
        self.connect_to([])

    def connect_to(self, signals: list[Signal]) -> None:
        """Connect to these signals instead of the previous ones. A cancelled subscription connects to none."""
        if not self.active:
            signals = []
        for signal in self._signals:
            if signal not in signals:
                signal.disconnect(self)
        for signal in signals:
            if signal not in self._signals:
                signal.connect(self, weak=False)
        self._signals = list(signals)

    @property
    def signals(self) -> list[Signal]:
        """The signals it is connected to now."""
        return list(self._signals)

    def interval_state(self) -> Any:
        """Return the state of an interval given as `every`, if it has one."""
        remembered = getattr(self.every, "state_dict", None)
        return None if remembered is None else remembered()

    def load_interval_state(self, state: Any) -> None:
        """Restore the state of the interval."""
        load = getattr(self.every, "load_state_dict", None)
        if load is not None and state is not None:
            load(state)

    def label(self) -> str:
        """Return how `describe` prints the receiver."""
        options = [f"every={self.every}"] if self.every is not None else []
        options += ["once"] if self.once else []
        options += ["when=..."] if self.when is not None else []
        options += [f"priority={self.priority}"] if self.priority else []
        where = label_of(self.receiver)
        return f"{where} ({', '.join(options)})" if options else where

    def _spend(self) -> None:
        self.spent = True
        self.cancel()

    def _is_due(self, sender: Any, moment: Moment) -> bool:
        before = self.fired
        try:
            if isinstance(self.every, int):
                self.fired += 1
                if self.fired % self.every:
                    return False
            elif self.every is not None and not self.every.due(sender):
                return False
            return self._when is None or bool(self._when(sender, moment))
        except BaseException:
            self.fired = before  # `when` will be asked again for the same moment
            raise


def label_of(receiver: Any) -> str:
    """Return a name for a receiver that is the same in every process."""
    name = getattr(receiver, "__qualname__", None) or type(receiver).__qualname__
    module = getattr(receiver, "__module__", None)
    return f"{module}.{name}" if module and module != "__main__" else str(name)


def adapt(function: Callable[..., Any], name: str) -> Callable[[Any, Moment], Any]:
    """Return a function of `(trainer, moment)` that calls `function` with the arguments it takes.

    A function of one argument gets the trainer, or the moment if its argument is named `moment`.
    Arguments with a default are not filled (`lambda i=i: ...`), unless they have one of these
    names.

    Raises:
        BadReceiver: `function` is not callable, or needs other arguments.
    """
    if not callable(function):
        raise BadReceiver(f"The receiver for {name!r} is {function!r}, which cannot be called.")
    if inspect.iscoroutinefunction(function):
        raise BadReceiver(
            f"The receiver for {name!r} is a coroutine function; the machine calls plain ones."
        )
    if inspect.isgeneratorfunction(function):
        raise BadReceiver(
            f"The receiver for {name!r} is a generator function: it has a `yield`, and nothing of it "
            "would run when it is called."
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none, and methods without `self`
        if inspect.ismethod(function):
            raise BadReceiver(
                f"The receiver {function.__qualname__} for {name!r} takes no `self`. Write `def "
                f"{function.__name__}(self)`."
            ) from None
        return function
    taken = [one.name for one in signature.parameters.values() if _is_wanted(one)]
    given = (
        2 if any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()) else len(taken)
    )
    try:
        signature.bind(*[None] * given)
    except TypeError:
        given = 3
    if given > 2:
        label = getattr(function, "__qualname__", repr(function))
        raise BadReceiver(
            f"The receiver {label}{signature} for {name!r} cannot be called with `(trainer, moment)`, "
            "`(trainer)` or nothing. Give the other parameters a default."
        )
    if given == 2:
        return function
    if given == 0:
        return lambda _sender, _moment: function()
    if taken == ["moment"]:
        return lambda _sender, moment: function(moment)
    return lambda sender, _moment: function(sender)


def _is_wanted(one: inspect.Parameter) -> bool:
    if one.kind not in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD):
        return False
    return one.default is one.empty or one.name in ("trainer", "sender", "moment")


def _is_interval(every: object) -> bool:
    if isinstance(every, int):
        return not isinstance(every, bool) and every >= 1
    return isinstance(every, Due)
