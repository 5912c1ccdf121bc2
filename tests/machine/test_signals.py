"""Signals: who is called, in what order, how often, and under which names one subscribes."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from statemachine_trainer.machine import Driver, Loop, Moment, SignalBoard, place
from statemachine_trainer.machine.edges import Calls
from statemachine_trainer.machine.errors import AmbiguousSignal, BadReceiver, UnknownSignal
from statemachine_trainer.machine.signals import Call, Part, Subscription
from tests.machine.kit import Batch, Epoch, Fit, fit_driver, path_of

FETCH = "fit.epoch.fetch"


def recorded(driver: Driver) -> list[str]:
    names: list[str] = []
    driver.board.on("*:*", lambda _sender, moment: names.append(moment.signal))
    return names


# -- order -----------------------------------------------------------------------------------------


def test_a_transition_leaves_from_within_and_enters_from_without_then_fires_itself() -> None:
    driver = fit_driver()
    driver.run(until="optimizer_step")
    names = recorded(driver)
    driver.step()
    assert names == [
        "fit.epoch.batch.optimizer.optimizer_step:exit",
        "fit.epoch.batch.optimizer:exit",
        "fit.epoch.batch.batch_end:enter",
        "fit.epoch.batch.optimizer:optimized",
    ]


def test_the_start_and_the_end_fire_signals_too() -> None:
    driver = Driver(Fit(), name="fit")
    names = recorded(driver)
    driver.start()
    assert names == ["fit:enter", "fit.fit_start:enter"]
    driver.run(until="fit_end")
    names.clear()
    driver.run()
    assert names == ["fit.fit_end:exit", "fit:exit", "fit:fit_done"]


def test_a_moment_tells_the_signal_and_the_transition() -> None:
    driver = fit_driver()
    moments: list[Moment] = []
    driver.board.on("batch", lambda _sender, moment: moments.append(moment))
    driver.run()
    assert moments[0] == Moment(
        "fit.epoch.batch", "enter", "fetched", FETCH, "fit.epoch.batch.batch_start"
    )
    assert (moments[0].signal, moments[0].state) == ("fit.epoch.batch:enter", "batch")


@pytest.mark.parametrize(
    "name, expected", [("fetch", "abcd"), ("fetch:exit", "dcba"), ("fetch:fetched", "abcd")]
)
def test_receivers_are_called_by_priority_then_age_and_in_reverse_at_exit(
    name: str, expected: str
) -> None:
    driver = fit_driver()
    calls: list[str] = []
    driver.board.on(name, lambda: calls.append("b"))
    driver.board.on(name, lambda: calls.append("d"), priority=-1)
    driver.board.on(name, lambda: calls.append("c"))
    driver.board.on(name, lambda: calls.append("a"), priority=1)
    driver.run(until="batch_start")
    assert "".join(calls) == expected


def test_many_receivers_keep_their_order() -> None:
    driver = fit_driver()
    calls: list[int] = []
    for i in range(100):
        driver.board.on("fit_end", lambda i=i: calls.append(i))
    driver.run()
    assert calls == list(range(100))


# -- how often -------------------------------------------------------------------------------------


def test_every_counts_firings() -> None:
    driver = fit_driver(Fit(epoch=Epoch(batches=7)))
    calls: list[int] = []
    driver.board.on("fetch", lambda _s: calls.append(driver.root["epoch"].seen), every=3)  # type: ignore[attr-defined]
    driver.run()
    assert calls == [2, 5]


def test_every_takes_an_interval_that_decides_itself() -> None:
    class Odd:
        def due(self, sender: Driver) -> bool:
            return sender.root["epoch"].seen % 2 == 1  # type: ignore[attr-defined,no-any-return]

    driver = fit_driver(Fit(epoch=Epoch(batches=4)))
    calls: list[int] = []
    driver.board.on("batch_end", lambda _s: calls.append(driver.root["epoch"].seen), every=Odd())  # type: ignore[attr-defined]
    driver.run()
    assert calls == [1, 3]


def test_once_is_once() -> None:
    driver = fit_driver()
    calls: list[str] = []
    driver.board.on("*", lambda moment: calls.append(moment.path), once=True)
    driver.run()
    assert calls == ["fit.epoch"]
    assert driver.board.subscriptions == []


def test_when_asks_before_the_call() -> None:
    driver = fit_driver()
    calls: list[str] = []
    driver.board.on(
        "*", lambda _s, m: calls.append(m.state), when=lambda _s, m: m.event == "exhausted"
    )
    driver.run()
    assert calls == ["epoch_end"]


def test_once_with_every_and_when_is_the_first_that_passes() -> None:
    driver = fit_driver(Fit(epoch=Epoch(batches=6)))
    calls: list[int] = []
    driver.board.on(
        "batch_end",
        lambda _s: calls.append(driver.root["epoch"].seen),  # type: ignore[attr-defined]
        every=2,
        once=True,
        when=lambda _s: driver.root["epoch"].seen > 2,  # type: ignore[attr-defined]
    )
    driver.run()
    assert calls == [4]


@pytest.mark.parametrize(
    "options",
    [
        {"every": 0},
        {"every": True},
        {"every": "3"},
        {"every": -1},
        {"priority": 1.5},
        {"evry": 2},
        {"once": "no"},
    ],
)
def test_senseless_options_are_refused(options: dict[str, Any]) -> None:
    driver = fit_driver()
    with pytest.raises(BadReceiver, match="'fetch'"):
        driver.board.on("fetch", lambda: None, **options)
    assert driver.board.subscriptions == []


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fetch", "epoch.fetch", "fit.epoch.fetch", "fetch:enter"])
def test_a_state_goes_by_its_path_or_the_end_of_it(name: str) -> None:
    driver = fit_driver()
    assert [one.name for one in driver.board.resolve(name)] == [f"{FETCH}:enter"]


def test_a_pattern_stands_for_all_that_fit() -> None:
    driver = fit_driver()

    def names(pattern: str) -> list[str]:
        return [one.name.removeprefix("fit.epoch.") for one in driver.board.resolve(pattern)]

    assert names("batch_*") == ["batch.batch_start:enter", "batch.batch_end:enter"]
    assert names("*.optimizer.*:exit") == names("optimizer.*:exit")
    assert len(names("optimizer.*:exit")) == 3
    assert names("fetch:*") == [
        f"fetch:{kind}" for kind in ("enter", "exit", "fetched", "exhausted", "stop")
    ]
    assert len(names("*")) == 14


def test_a_misspelt_name_is_an_error_that_offers_the_nearest() -> None:
    board = fit_driver().board
    with pytest.raises(UnknownSignal, match=r"'fecth'.*Did you mean 'fetch'"):
        board.on("fecth", lambda: None)
    with pytest.raises(UnknownSignal, match=r"Did you mean 'fit\.epoch\.fetch'"):
        board.on("fit.epoch.fecth", lambda: None)
    with pytest.raises(UnknownSignal, match=r"'fetch' has no signal 'exhuasted'.*'exhausted'"):
        board.on("fetch:exhuasted", lambda: None)
    with pytest.raises(
        UnknownSignal, match=r"'batch_done' is an event.*'fit\.epoch\.batch:batch_done'"
    ):
        board.on("batch_done", lambda: None)
    with pytest.raises(UnknownSignal):
        board.on("fecth")
    with pytest.raises(UnknownSignal):
        board.on("*ftch", lambda: None)


def test_a_name_that_several_states_have_is_ambiguous() -> None:
    class Two(Loop):
        initial = "left"
        outcomes = ("batch_done",)
        transitions = [["batch_done", "left", "right"]]
        left: Loop = place(Batch)
        right: Loop = place(Batch)

    board = Driver(Two(), name="two").board
    with pytest.raises(
        AmbiguousSignal, match=r"'two\.left\.batch_end', 'two\.right\.batch_end'.*'\*\.batch_end'"
    ):
        board.on("batch_end", lambda: None)
    assert len(board.resolve("*.batch_end")) == 2
    assert len(board.resolve("left.batch_end")) == 1
    with pytest.raises(AmbiguousSignal):
        board.signal("*.batch_end")


def test_a_method_of_an_object_hears_all_states_of_its_name() -> None:
    class Two(Loop):
        initial = "left"
        outcomes = ("batch_done",)
        transitions = [["batch_done", "left", "right"]]
        left: Loop = place(Batch)
        right: Loop = place(Batch)

    class Listener:
        def __init__(self) -> None:
            self.heard: list[str] = []

        def on_exit_batch_end(self, moment: Moment) -> None:
            self.heard.append(moment.path)

    driver, listener = Driver(Two(), name="two"), Listener()
    driver.board.on(listener)
    driver.start()
    driver.run()
    assert listener.heard == ["two.left.batch_end", "two.right.batch_end"]


# -- receivers -------------------------------------------------------------------------------------


def test_receivers_get_as_much_as_they_take() -> None:
    driver = fit_driver()
    got: list[Any] = []
    driver.board.on("fit_end", lambda: got.append(()))
    driver.board.on("fit_end", lambda trainer: got.append(trainer))
    driver.board.on("fit_end", lambda moment: got.append(moment))
    driver.board.on("fit_end", lambda moment, extra=1: got.append(moment))
    driver.board.on(
        "fit_end", lambda trainer, moment, extra=1: got.append((trainer, moment, extra))
    )
    driver.board.on("fit_end", lambda *args: got.append(args))
    driver.board.on("fit_end", lambda mine=3: got.append(mine))
    driver.board.on("fit_end", lambda trainer=None: got.append(trainer))
    driver.run()
    moment = got[2]
    assert isinstance(moment, Moment)
    assert got == [(), driver, moment, moment, (driver, moment, 1), (driver, moment), 3, driver]


def test_receivers_that_cannot_be_called_so_are_refused() -> None:
    board = fit_driver().board

    async def wait() -> None: ...

    receivers: list[Any] = [lambda a, b, c: None, lambda *, key: None, 3, wait]
    for receiver in receivers:
        with pytest.raises(BadReceiver, match="'fetch'"):
            board.on("fetch", receiver)
    with pytest.raises(BadReceiver, match="when= of fetch"):
        board.on("fetch", lambda: None, when=3)
    with pytest.raises(BadReceiver, match="coroutine"):
        board.signal("fetch").connect(wait)


def test_what_would_never_be_called_is_refused() -> None:
    driver = fit_driver()

    def generator() -> Iterator[None]:
        yield

    with pytest.raises(BadReceiver, match="generator function"):
        driver.board.on("fetch", generator)
    with pytest.raises(BadReceiver, match=r"None\. Was the function called"):
        driver.board.on("fetch", None)  # type: ignore[call-overload]
    assert driver.board.subscriptions == []


def test_the_sender_is_who_was_named() -> None:
    sender = object()
    got: list[object] = []
    driver = fit_driver(sender=sender)
    driver.board.on("fit_end", got.append)
    driver.run()
    assert got == [sender]


def test_a_receiver_is_held_strongly() -> None:
    driver = fit_driver()
    calls: list[str] = []

    class Owner:
        def on_fetch(self) -> None:
            calls.append("method")

    driver.board.on("fetch", lambda: calls.append("lambda"))
    driver.board.on(Owner())
    gc.collect()
    driver.run(until="batch_start")
    assert calls == ["lambda", "method"]


def test_a_decorator_gives_the_function_back() -> None:
    driver = fit_driver()
    calls: list[int] = []

    @driver.board.on("fetch", every=2)
    def receive() -> int:
        calls.append(1)
        return 5

    assert receive() == 5
    driver.run()
    assert calls == [1, 1]


def test_an_object_subscribes_all_its_methods_for_states() -> None:
    class Hooks:
        def __init__(self) -> None:
            self.calls: list[str] = []
            self.on_purpose = "no method"

        def on_fetch(self) -> None:
            self.calls.append("fetch")

        def on_enter_epoch_end(self, trainer: object) -> None:
            self.calls.append("epoch_end")

        def on_exit_batch(self, trainer: object, moment: Moment) -> None:
            self.calls.append(moment.signal)

    driver, hooks = fit_driver(), Hooks()
    assert len(driver.board.on(hooks)) == 3
    driver.run()
    batch = ["fetch", "fit.epoch.batch:exit"]
    assert hooks.calls == [*batch, *batch, "fetch", "epoch_end"]
    driver.board.off(hooks)
    assert driver.board.subscriptions == []


def test_an_object_with_a_misspelt_method_subscribes_nothing() -> None:
    class Hooks:
        def on_epoch_end(self) -> None: ...

        def on_fecth(self) -> None: ...

    class Bare:
        pass

    board = fit_driver().board
    with pytest.raises(UnknownSignal, match=r"on_fecth names no state.*'fetch'"):
        board.on(Hooks())
    with pytest.raises(BadReceiver, match="Bare has no method called on_<state>"):
        board.on(Bare())
    assert board.subscriptions == []


def test_a_subscription_is_removed_by_itself_its_function_or_its_object() -> None:
    driver = fit_driver()
    calls: list[str] = []

    def receive() -> None:
        calls.append("function")

    subscription = driver.board.on("fetch", lambda: calls.append("lambda"))
    driver.board.on("fetch", receive)
    driver.board.on("batch", receive)
    driver.board.off(receive)
    driver.board.off(subscription)
    driver.run()
    assert calls == []
    assert driver.board.describe() == "Nobody listens."


def test_a_receiver_that_removes_itself_or_the_next_takes_effect_at_once() -> None:
    driver = fit_driver()
    calls: list[str] = []

    def remover() -> None:
        calls.append("remover")
        driver.board.off(remover)
        later.cancel()

    driver.board.on("fetch", remover)
    later = driver.board.on("fetch", lambda: calls.append("later"))
    driver.run()
    assert calls == ["remover"]


def test_a_receiver_may_subscribe_others_to_signals_still_to_come() -> None:
    driver = fit_driver()
    calls: list[str] = []

    def subscribe() -> None:
        driver.board.on("fetch:exit", lambda: calls.append("same signal"), once=True)
        driver.board.on("batch_start", lambda: calls.append("same transition"), once=True)
        driver.board.on("batch_end", lambda: calls.append("later"), once=True)

    driver.board.on("fetch:exit", subscribe, once=True)
    driver.run(until="epoch_end")
    assert calls == ["same transition", "later", "same signal"]


def test_who_is_called_changes_in_the_middle_of_a_run_however_it_is_asked_for() -> None:
    driver = fit_driver(Fit(epoch=Epoch(batches=6)))
    calls: list[str] = []
    heard_one = driver.board.on("fetch", lambda: calls.append("heard"))
    signal = driver.board.signal("fetch")
    muted = signal.muted()

    def look(subscription: Subscription, part: Part, call: Call) -> Call:
        def seen(sender: Any, moment: Moment) -> None:
            calls.append("seen")
            call(sender, moment)

        return seen if subscription is heard_one else call

    @driver.board.on("fetch", priority=1)
    def change() -> None:
        calls.append("changed")
        match calls.count("changed"):
            case 2:
                driver.board.instrument(look)
            case 3:
                signal.connect(foreign, weak=False)
            case 4:
                muted.__enter__()

    def foreign(_sender: Any, moment: Moment) -> None:
        calls.append(moment.kind)

    driver.board.on(
        "batch_end", lambda: muted.__exit__(None, None, None), when=lambda: signal.is_muted
    )
    driver.run(until="epoch_end")
    heard = ["changed", "heard"]
    seen = ["changed", "seen", "heard"]
    assert calls == [
        *heard,
        *seen,
        *seen,
        *seen,
        "enter",
        *seen,
        "enter",
        *seen,
        "enter",
        *seen,
        "enter",
    ]


def test_a_receiver_that_changes_who_listens_and_then_raises_is_called_again_with_the_rest() -> (
    None
):
    driver = fit_driver()
    calls: list[str] = []
    gone = driver.board.on("fetch", lambda: calls.append("gone"))

    @driver.board.on("fetch", priority=1)
    def raising() -> None:
        calls.append("raising")
        gone.cancel()
        if len(calls) == 1:
            driver.board.on("fetch:exit", lambda: calls.append("new"), once=True)
            raise ValueError("no")

    driver.board.on("fetch", lambda: calls.append("last"), priority=-1)
    with pytest.raises(ValueError, match="no"):
        driver.run()
    driver.run(until="batch_start")
    assert calls == ["raising", "raising", "last", "new"]


def test_who_is_called_is_found_anew_after_loops_were_swapped_in_the_middle_of_a_transition() -> (
    None
):
    driver = fit_driver()
    calls: list[str] = []
    gone = driver.board.on("fetch", lambda: calls.append("gone"))

    @driver.board.on("epoch_start:exit", once=False)
    def swap() -> None:
        driver.rebuild()
        gone.cancel()
        driver.board.on("fetch", lambda: calls.append("new"))

    driver.run(until="batch_start")
    assert calls == ["new"]


def test_an_interrupt_after_the_last_receiver_is_itself_and_loses_nothing() -> None:
    driver = fit_driver()
    calls: list[str] = []
    driver.board.on("fetch", lambda: calls.append("called"))
    edge = next(e for e in driver.program.nodes["fit.epoch.epoch_start"].edges.values())
    edge.calls = Interrupted.of(edge.emissions())
    with pytest.raises(KeyboardInterrupt):
        driver.run()
    assert calls == ["called"]
    driver.run(until="batch_start")
    assert calls == ["called"]


class Interrupted(Calls):
    """Calls in which a signal of the system arrives after the last one."""

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()
        raise KeyboardInterrupt


def test_describe_prints_receivers_in_the_order_of_their_calls() -> None:
    driver = fit_driver()

    def second() -> None: ...

    def first() -> None: ...

    driver.board.on("fetch", second, every=2)
    driver.board.on("fetch", first, priority=3, once=True, when=lambda: True)
    driver.board.on("fetch:exit", first)
    driver.board.on("fetch:exit", second)
    text = (
        driver.board.describe()
        .replace(__name__ + ".", "")
        .replace("test_describe_prints_receivers_in_the_order_of_their_calls.<locals>.", "")
    )
    assert text.splitlines() == [
        "fit.epoch.fetch:enter",
        "  1. first (once, when=..., priority=3)",
        "  2. second (every=2)",
        "fit.epoch.fetch:exit",
        "  1. second",
        "  2. first",
    ]


# -- blinker's own ways ----------------------------------------------------------------------------


def test_blinkers_own_ways_to_connect_work() -> None:
    sender = Fit()
    driver = fit_driver(sender=sender)
    calls: list[str] = []
    signal = driver.board.signal("fetch")

    def weakly(_sender: object, moment: Moment) -> None:
        calls.append("weak")

    def strongly(_sender: object, moment: Moment) -> None:
        calls.append("strong")

    signal.connect(weakly)
    signal.connect(strongly, sender=sender)
    signal.connect(lambda _s, moment: calls.append("other"), sender=driver, weak=False)
    driver.run(until="batch_start")
    assert calls == ["weak", "strong"]
    calls.clear()
    with signal.muted():
        driver.run(until="batch_start")
    assert calls == []
    del weakly
    gc.collect()
    signal.disconnect(strongly)
    driver.run()
    assert calls == []


def test_a_signal_can_be_sent_by_hand_in_the_same_order() -> None:
    driver = fit_driver()
    calls: list[str] = []
    driver.board.on("fetch", lambda: calls.append("last"), priority=-1)
    driver.board.on("fetch", lambda: calls.append("first"))
    moment = Moment(FETCH, "enter", None, None, FETCH)
    driver.board.signal("fetch").send(driver, moment=moment)
    assert calls == ["first", "last"]


# -- what costs nothing ----------------------------------------------------------------------------


def test_nothing_is_called_or_kept_for_signals_that_nobody_listens_to() -> None:
    driver = fit_driver(Fit(epoch=Epoch(batches=2000)))
    driver.run(until="fetch")
    called: set[str] = set()

    def profile(frame: Any, event: str, _arg: object) -> None:
        if event == "call":
            called.add(frame.f_code.co_filename)

    tracemalloc.start()
    sys.setprofile(profile)
    try:
        driver.run(until=None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        sys.setprofile(None)
        tracemalloc.stop()
    assert not any(
        "blinker" in name or name.endswith(("signals.py", "subscription.py")) for name in called
    )
    assert peak < 20_000


def test_a_listener_that_left_costs_nothing_any_more() -> None:
    driver = fit_driver()
    subscription = driver.board.on("*:*", lambda: None)
    assert any(edge.heard for node in driver.program.nodes.values() for edge in node.edges.values())
    subscription.cancel()
    assert not any(
        edge.heard for node in driver.program.nodes.values() for edge in node.edges.values()
    )


# -- several charts on one board -------------------------------------------------------------------


def test_two_machines_share_a_board() -> None:
    class Other(Loop):
        initial = "fetch"
        outcomes = ("over",)

        def fetch(self) -> Literal["over"]:
            return "over"

    board = SignalBoard()
    first, second = fit_driver(board=board), Driver(Other(), name="other", board=board)
    calls: list[str] = []
    board.on("fetch", lambda moment: calls.append(moment.path))
    first.run()
    second.start()
    second.run()
    assert calls == [FETCH] * 3 + ["other.fetch"]


def test_one_machine_runs_inside_a_receiver_of_another() -> None:
    board = SignalBoard()
    outer, inner = fit_driver(board=board), Driver(Fit(), name="inner", board=board)
    calls: list[str] = []

    def nested() -> None:
        inner.start()
        inner.run()

    board.on("fit.epoch", nested)
    board.on("fetch", lambda moment: calls.append(moment.path), every=2)
    outer.run()
    assert calls == ["inner.epoch.fetch", FETCH, FETCH]


# -- counts that are written down ------------------------------------------------------------------


def test_counts_of_subscriptions_survive_and_those_of_run_until_are_not_among_them() -> None:
    def subscribe(driver: Driver, calls: list[str], *, reverse: bool) -> None:
        def third(moment: Moment) -> None:
            calls.append("third")

        def only_once() -> None:
            calls.append("once")

        pairs: list[tuple[str, Any, Any]] = [
            ("fetch", third, {"every": 3}),
            ("fetch", only_once, {"once": True}),
        ]
        for name, receiver, options in reversed(pairs) if reverse else pairs:
            driver.board.on(name, receiver, **options)

    calls: list[str] = []
    driver = fit_driver(Fit(epoch=Epoch(batches=6)))
    subscribe(driver, calls, reverse=False)
    driver.board.on("batch", lambda: None)
    states = []
    driver.board.on("batch_end", lambda: states.append(driver.state_dict()), once=True)
    driver.run(until=lambda moment: moment.state == "batch_end")
    state = driver.state_dict()
    assert [one["fired"] for one in state["fired"]] == [1, 0, 0]
    assert [one["spent"] for one in state["fired"]] == [False, True, True]
    driver.run()
    assert calls == ["once", "third", "third"]

    again: list[str] = []
    other = Driver(Fit(epoch=Epoch(batches=6)), name="fit")
    other.board.on("fit_end", lambda: None, every=2)
    subscribe(other, again, reverse=True)
    other.load_state_dict(state)
    other.run()
    assert again == ["third", "third"]


def test_the_path_is_the_same_whoever_listens() -> None:
    quiet, loud = fit_driver(), fit_driver()
    loud.board.on("*:*", lambda: None)
    assert path_of(quiet) == path_of(loud)
