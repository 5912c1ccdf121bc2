"""The board of all signals of one or more charts, and the subscriptions to them."""

from __future__ import annotations

import fnmatch
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar, overload

from statemachine_trainer.machine.chart import Chart
from statemachine_trainer.machine.declaration import plain_text
from statemachine_trainer.machine.errors import (
    AmbiguousSignal,
    BadReceiver,
    UnknownSignal,
    level_of_caller,
    suggest,
)
from statemachine_trainer.machine.loop import SEPARATOR
from statemachine_trainer.machine.signals import (
    ENTER,
    ERROR,
    EXIT,
    CallProbe,
    Signal,
    Subscription,
    label_of,
)

F = TypeVar("F", bound=Callable[..., Any])


NOT_GIVEN: Final = object()
"""Stands for a missing receiver: `on` is used as a decorator, or with an object."""

_OPTIONS: Final = ("every", "once", "when", "priority")

_SPECIAL: Final = re.compile(r"[*?[]")
"""What makes a pattern of a name."""

LAST = -(2**31)
"""A priority below all others."""


class Signals(dict[str, Signal]):
    """The signals of one chart by full name, and by the path of their state."""

    def __init__(self, signals: Mapping[str, Signal]) -> None:
        super().__init__(signals)
        # Names are looked up again and again, and there are several signals of each path.
        self.by_path: dict[str, dict[str, Signal]] = {}
        for name, signal in signals.items():
            path, _, kind = name.partition(":")
            self.by_path.setdefault(path, {})[kind] = signal

    def of(self, paths: Iterable[str], kind: str) -> list[Signal]:
        """Return the signals of some paths whose kind fits a name or pattern."""
        if not _SPECIAL.search(kind):
            return [own[kind] for path in paths if kind in (own := self.by_path[path])]
        kinds = ((one, s) for path in paths for one, s in self.by_path[path].items())
        return [s for one, s in kinds if fnmatch.fnmatchcase(one, kind)]


class LostSubscription(UserWarning):
    """After a swap of loops, the name of a subscription matches no state any more, or several."""


class SignalBoard:
    """Finds signals by name and keeps who listens to them.

    A name is a path (`"fit.epoch.fetch"`), the end of one (`"fetch"`, `"epoch.fetch"`) where only
    one state of a chart has it, or a pattern with `*`. A plain name means the moment when the state
    is entered, before its work. `":exit"` after the name means the moment when the state is left,
    and `":EVENT"` the transition on that event. `"error"` means an exception that stops a machine of
    the board, `"fit:error"` that of one machine. Names are looked up in every chart of the board.
    """

    def __init__(self) -> None:
        self._charts: dict[str, Signals] = {}
        self._subscriptions: list[Subscription] = []
        self._watches: list[Subscription] = []
        self._probes: list[CallProbe] = []

    def attach(self, chart: Chart) -> dict[str, Signal]:
        """Add the signals of a chart to the board, in place of an older chart of the same root.

        Signals that were there before are kept with their receivers.

        Returns:
            The chart's signals by full name (`"fit.epoch:enter"`).
        """
        root = chart.plan.path
        old: Mapping[str, Signal] = self._charts.get(root, {})
        signals = Signals({name: old.get(name) or Signal(name) for name in _signal_names(chart)})
        known: Mapping[str, Signal] = self._charts.get("", {})
        stopped = f"{root}:{ERROR}"
        # The signals of errors stand apart, under a name that no root has.
        errors = Signals({**known, stopped: known.get(stopped) or Signal(stopped)})
        charts = {**self._charts, root: signals, "": errors}
        self._watches = [one for one in self._watches if one.active]
        everyone = [*self.subscriptions, *self._watches]
        found = [(one, _found_again(one, charts)) for one in everyone]
        for one, left in found:
            if one.signals and not left:  # before anything changes: a warning may be an error
                _warn_of_lost(one, charts)
        self._charts = charts
        for one, left in found:
            one.connect_to(left)
        return signals

    @overload
    def on(self, name: str, /, **options: Any) -> Callable[[F], F]: ...
    @overload
    def on(self, name: str, receiver: Callable[..., Any], /, **options: Any) -> Subscription: ...
    @overload
    def on(self, name: object, /, **options: Any) -> list[Subscription]: ...
    def on(self, name: Any, receiver: Any = NOT_GIVEN, /, **options: Any) -> Any:
        """Subscribe: `on(name, function)`, `@on(name)`, or `on(thing)` for its `on_...` methods.

        Args:
            name: Name or pattern of signals; or an object with methods called `on_<state>`,
                `on_enter_<state>` or `on_exit_<state>`. A method receives the signals of all states
                of that name, because its author cannot know in which loops it will be used.
            receiver: Called with `(trainer, moment)`, or with fewer arguments if it takes fewer.
                The board keeps a strong reference to it.
            **options: `every=` (n: every n-th firing; or an interval), `once=True`, `when=` (a
                condition, called like the receiver), `priority=` (higher is earlier).

        Returns:
            The subscription (its `cancel()` removes it), a list of them for an object, or a
            decorator.

        Raises:
            UnknownSignal: Nothing has this name; the message offers the nearest ones.
            AmbiguousSignal: The name was given for a function, and several states of one chart end
                with it.
            BadReceiver: The receiver cannot be called with these arguments, an option is invalid,
                or the object is already subscribed.
        """
        if not isinstance(name, str):
            return self._subscribe(_methods_of(name), options, _owner=name)
        if receiver is None:
            raise BadReceiver(
                f"The receiver for {name!r} is None. Was the function called instead of handed over? "
                f"on({name!r}, function), without parentheses."
            )
        if receiver is not NOT_GIVEN:
            return self._subscribe([(name, receiver)], options)[0]
        self.resolve(name)

        def decorate(function: F) -> F:
            self._subscribe([(name, function)], options)
            return function

        return decorate

    def off(self, receiver: Any) -> None:
        """Cancel every subscription of a function, of an object, or one `Subscription`."""
        for one in list(self._subscriptions):
            owner = getattr(one.receiver, "__self__", None)
            mine = owner is not None and owner is receiver
            if one is receiver or one.receiver == receiver or mine:
                one.cancel()
                self._subscriptions.remove(one)

    def watch(self, name: str, receiver: Callable[..., Any], **options: Any) -> Subscription:
        """Subscribe for internal use: called last, not listed, not saved in snapshots."""
        subscription = Subscription(name, receiver, priority=LAST, **options)
        subscription.equip(self._probes)
        subscription.connect_to(self.resolve(name))
        self._watches = [*(one for one in self._watches if one.active), subscription]
        return subscription

    def instrument(self, probe: CallProbe) -> Callable[[], None]:
        """Wrap every receiver and condition, also those that are subscribed later.

        Without a probe, calls cost nothing extra. Functions connected to a signal through blinker's
        own `connect` are not wrapped.

        Args:
            probe: Called for each receiver and condition. Returns the function to call instead.

        Returns:
            A function that removes the probe.
        """
        self._probes.append(probe)
        self._equip()

        def remove() -> None:
            if probe in self._probes:
                self._probes.remove(probe)
                self._equip()

        return remove

    def _equip(self) -> None:
        for one in [*self._subscriptions, *self._watches]:
            one.equip(self._probes)

    def has(self, name: str) -> bool:
        """Whether a name or pattern matches a signal; cheaper than `resolve` where none does.

        Raises:
            AmbiguousSignal: Several states of one chart end with it.
        """
        return bool(_lookup(plain_text(name), self._charts))

    def resolve(self, name: str) -> list[Signal]:
        """Return the signals that match a name or pattern, at least one."""
        name = plain_text(name)
        found = _lookup(name, self._charts)
        if found:
            return found
        path, _, kind = name.partition(":")
        names = [n for signals in self._charts.values() for n in signals]
        events = [n for n in names if n.endswith(f":{path}")]
        if not kind and events:
            shown = " or ".join(repr(event) for event in events[:3])
            raise UnknownSignal(
                f"{name!r} is an event, not a state. Subscribe to its transition: {shown}."
            )
        if kind and _lookup(path, self._charts):
            _refuse_inner(name, names)
            kinds = {n.rpartition(":")[2] for n in names if _ends_with(n.partition(":")[0], path)}
            raise UnknownSignal(f"{path!r} has no signal {kind!r}. {suggest(kind, kinds)}")
        raise UnknownSignal(f"Nothing is called {name!r}. {_suggest_state(name, self._charts)}")

    @property
    def subscriptions(self) -> list[Subscription]:
        """The living subscriptions, in the order in which they were made."""
        self._subscriptions = [one for one in self._subscriptions if one.active or one.spent]
        return [one for one in self._subscriptions if one.active]

    def describe(self) -> str:
        """Return a listing of every signal that has receivers, each with its receivers in call order."""
        lines = []
        for signals in self._charts.values():
            for name, signal in signals.items():
                receivers = [r for r in signal.receivers_for(None) if r not in self._watches]
                if receivers:
                    lines.append(name)
                    lines += [f"  {i}. {_label(r)}" for i, r in enumerate(receivers, 1)]
        return "\n".join(lines) or "Nobody listens."

    def signal(self, name: str) -> Signal:
        """Return the one signal of this name, a `blinker` signal."""
        found = self.resolve(name)
        if len(found) > 1:
            raise AmbiguousSignal(f"{name!r} stands for {', '.join(s.name for s in found)}.")
        return found[0]

    def error_signal(self, root: str) -> Signal | None:
        """Return the signal of exceptions that stop the machine of this name."""
        errors = self._charts.get("")
        return None if errors is None else errors.get(f"{root}:{ERROR}")

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the counters of the subscriptions that use `every=` or `once=`."""
        return [
            {
                **_identity(one),
                "fired": one.fired,
                "spent": one.spent,
                "interval": one.interval_state(),
            }
            for one in self._subscriptions
            if (one.active or one.spent) and (one.once or one.every is not None)
        ]

    def load_state_dict(self, state: Iterable[Mapping[str, Any]]) -> None:
        """Restore the counters of subscriptions; those that the state does not know begin at zero.

        A subscription with `once` that has been called since then is active again.

        A subscription is identified by the name of its signal, the name of its receiver and its
        options. If several are alike, their order decides.
        """
        saved = list(state)
        for one in [each for each in self._subscriptions if each.active or each.spent]:
            mine = _identity(one)
            found = next((s for s in saved if mine.items() <= s.items()), None)
            if found is None:
                one.fired = 0
                continue
            saved.remove(found)
            one.fired = found["fired"]
            one.load_interval_state(found["interval"])
            if one.spent and not found["spent"]:
                one.revive(self.resolve(one.name))
            elif found["spent"]:
                one.spent = True
                one.cancel()

    def _subscribe(
        self, pairs: list[tuple[str, Any]], options: dict[str, Any], _owner: object = None
    ) -> list[Subscription]:
        """Make all of these subscriptions, or none if one of them fails."""
        for option in options:
            if option not in _OPTIONS:
                raise BadReceiver(
                    f"on({pairs[0][0]!r}, ...) has no option {option!r}. {suggest(option, _OPTIONS)}"
                )
        made = []
        for name, receiver in pairs:
            try:
                if _owner is not None and self._is_ambiguous(name):
                    name = f"*{SEPARATOR}{name}"
                signals = self.resolve(name)
                made.append((Subscription(name, receiver, **options), signals))
            except UnknownSignal as error:
                if _owner is None:
                    raise
                raise UnknownSignal(f"{receiver.__qualname__} names no state: {error}") from None
            except TypeError as error:
                raise BadReceiver(
                    f"on({name!r}, ...): {error}. Options are every, once, when, priority."
                ) from None
        if _owner is not None:
            self._refuse_twice([one for one, _ in made], _owner)
        for subscription, signals in made:
            subscription.equip(self._probes)
            subscription.connect_to(signals)
            self._subscriptions.append(subscription)
        return [subscription for subscription, _ in made]

    def _refuse_twice(self, made: Iterable[Subscription], owner: object) -> None:
        """Refuse an object that is already subscribed: its methods would be called twice."""
        known = [(one.name, one.receiver) for one in self.subscriptions]
        if any((one.name, one.receiver) in known for one in made):
            kind = type(owner).__name__
            raise BadReceiver(
                f"This {kind} is subscribed already, and would be told all things twice. Cancel that "
                f"first, off(...), or make another {kind}."
            )

    def _is_ambiguous(self, name: str) -> bool:
        try:
            self.has(name)
        except AmbiguousSignal:
            return True
        return False


def _refuse_inner(name: str, names: Iterable[str]) -> None:
    """Refuse a state's event that leaves its loop; name the signal of the loop that has the transition."""
    path, _, event = name.partition(":")
    paths = {p for n in names if _ends_with(p := n.partition(":")[0], path)}
    around = sorted(
        n for n in names
        if n.endswith(f":{event}") and any(p.startswith(f"{n.partition(':')[0]}.") for p in paths)
    )  # fmt: skip
    if around:
        raise UnknownSignal(
            f"{path!r} has no transition on {event!r}: the event leaves its loop, and the transition is "
            f"that of the loop. Subscribe to {around[-1]!r}."
        )


def _lookup(name: str, charts: Mapping[str, Signals]) -> list[Signal]:
    path, _, kind = name.partition(":")
    kind = kind or ENTER
    found = [s for root, own in charts.items() if root for s in _match(own, path, kind)]
    if found:
        return found
    # No state or event is called so. Patterns for states never match the signals of errors.
    errors = charts.get("")
    return [s for n, s in errors.items() if name in (n, ERROR, f"*:{ERROR}")] if errors else []


def _match(signals: Signals, path: str, kind: str) -> list[Signal]:
    if "*" in path:
        return signals.of([one for one in signals.by_path if _fits(one, path)], kind)
    if f"{path}:{kind}" in signals:
        return [signals[f"{path}:{kind}"]]
    if path in signals.by_path:
        return signals.of([path], kind)
    found = signals.of([one for one in signals.by_path if _ends_with(one, path)], kind)
    paths = {s.name.partition(":")[0] for s in found}
    if len(paths) > 1:
        names = ", ".join(repr(p) for p in sorted(paths))
        raise AmbiguousSignal(
            f"{path!r} is the name of several states: {names}. Use one of these, or '*.{path}'."
        )
    return found


def _found_again(one: Subscription, charts: Mapping[str, Signals]) -> list[Signal]:
    """Look up the name of a subscription again. If it has become ambiguous, keep its old signals."""
    try:
        return _lookup(one.name, charts)
    except AmbiguousSignal:
        living = {id(signal) for signals in charts.values() for signal in signals.values()}
        return [signal for signal in one.signals if id(signal) in living]


def _warn_of_lost(one: Subscription, charts: Mapping[str, Signals]) -> None:
    warnings.warn(
        f"With the new loops nothing is called {one.name!r} any more, or more than one thing is; "
        f"{one.label()} will not be called. {_suggest_state(one.name, charts)}",
        LostSubscription,
        stacklevel=level_of_caller(),
    )


def _suggest_state(name: str, charts: Mapping[str, Signals]) -> str:
    paths = {n.partition(":")[0] for signals in charts.values() for n in signals}
    path = name.partition(":")[0]
    if SEPARATOR in path and "*" not in path:
        return suggest(path, paths)
    last = path.rpartition(SEPARATOR)[2].strip("*")  # of a pattern: what follows the last dot
    return suggest(last or path, {path.rpartition(SEPARATOR)[2] for path in paths})


def _fits(path: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"*{SEPARATOR}{pattern}")


def _ends_with(path: str, end: str) -> bool:
    return path == end or path.endswith(SEPARATOR + end)


def _signal_names(chart: Chart) -> Iterator[str]:
    for path in chart.paths():
        yield f"{path}:{ENTER}"
        yield f"{path}:{EXIT}"
        for event in chart.events.values():
            if path in event.transitions:
                yield f"{path}:{event.name}"


def _methods_of(thing: object) -> list[tuple[str, Any]]:
    """Return the signal and the method for each `on_<state>` method of an object."""
    pairs = [
        (_signal_of_method(name), getattr(thing, name))
        for name in dir(thing)
        if name.startswith("on_") and callable(getattr(thing, name))
    ]
    if not pairs and isinstance(thing, list | tuple | set):
        raise BadReceiver(
            f"on() takes one name, and was given a {type(thing).__name__}. Subscribe once for each; or by a pattern, "
            "such as on('*_end', function)."
        )
    if not pairs and (thing is None or inspect.isroutine(thing)):
        name = getattr(thing, "__name__", None)
        raise BadReceiver(
            f"on() was given {name or 'None'} and no name of a signal. The name comes first: on('epoch_end', "
            f"{name or 'function'})."
        )
    if not pairs:
        raise BadReceiver(
            f"{type(thing).__name__} has no method called on_<state>. Name one after a state, such as on_epoch_end; "
            "or subscribe a function: on('epoch_end', function)."
        )
    return pairs


def _signal_of_method(method: str) -> str:
    name = method.removeprefix("on_")
    if name.startswith("exit_"):
        return f"{name.removeprefix('exit_')}:{EXIT}"
    return name.removeprefix("enter_")


def _identity(one: Subscription) -> dict[str, Any]:
    return {
        "signal": one.name,
        "receiver": label_of(one.receiver),
        "every": one.every if one.every is None or isinstance(one.every, int) else str(one.every),
        "once": one.once,
    }


def _label(receiver: Any) -> str:
    if isinstance(receiver, Subscription):
        return receiver.label()
    return str(getattr(receiver, "__qualname__", repr(receiver)))
