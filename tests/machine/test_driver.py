"""Running: whole, up to a place, by steps; pausing, posting, and going on after errors."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Literal

import pytest

from statemachine_trainer.machine import Driver, Loop, field, place
from statemachine_trainer.machine.errors import (
    AlreadyRunning,
    BadReceiver,
    NotStarted,
    StrayStopIteration,
    UnexpectedEvent,
    UnknownEvent,
    UnknownSignal,
)
from tests.machine.kit import WHOLE_RUN, Batch, Epoch, Fit, fit_driver, path_of

FETCH = "fit.epoch.fetch"


class Mend(Exception):
    """Raised until mended."""


# -- running ---------------------------------------------------------------------------------------


def test_a_run_goes_through_the_states_in_order_to_its_outcome() -> None:
    driver = fit_driver()
    assert path_of(driver) == WHOLE_RUN
    assert (driver.outcome, driver.path) == ("fit_done", None)
    driver.start()
    assert driver.run() == "fit_done"


def test_a_run_until_a_state_stops_before_its_work() -> None:
    driver = fit_driver()
    assert driver.run(until="fetch") is None
    assert driver.path == FETCH
    assert driver.root["epoch"].seen == 0  # type: ignore[attr-defined]
    assert driver.run(until="fetch") is None
    assert driver.root["epoch"].seen == 1  # type: ignore[attr-defined]
    assert driver.run() == "fit_done"


def test_a_run_until_a_condition_stops_where_it_holds() -> None:
    driver = fit_driver()
    driver.run(until=lambda _sender, moment: moment.event == "batch_done")
    assert (driver.path, driver.root["epoch"].seen) == (FETCH, 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("until", ["fetch:exit", "fetch:fetched", "batch"])
def test_a_run_until_a_transition_stops_after_it(until: str) -> None:
    driver = fit_driver()
    driver.run(until=until)
    assert driver.path == "fit.epoch.batch.batch_start"


def test_a_run_until_an_unknown_name_does_not_begin() -> None:
    driver = fit_driver()
    with pytest.raises(UnknownSignal, match="Did you mean 'fetch'"):
        driver.run(until="fecth")
    with pytest.raises(UnknownSignal):
        driver.moments(until="fecth")
    assert driver.path == "fit.fit_start"


def test_a_step_makes_one_transition() -> None:
    driver = fit_driver()
    moment = driver.step()
    assert moment is not None
    assert (moment.source, moment.event, moment.target) == (
        "fit.fit_start",
        "started",
        "fit.epoch.epoch_start",
    )
    assert driver.path == "fit.epoch.epoch_start"


def test_moments_stand_still_between_items_and_end_where_asked() -> None:
    driver = fit_driver()
    seen = [(moment.target, driver.path) for moment in driver.moments(until="fetch")]
    assert seen == [("fit.epoch.epoch_start",) * 2, (FETCH,) * 2]
    assert [m.event for m in driver.moments(until=lambda _s, m: m.state == "batch_end")][
        -1
    ] == "optimized"
    assert driver.run() == "fit_done"


def test_moments_broken_off_leave_no_listener_behind() -> None:
    driver = fit_driver()
    for _ in driver.moments(until=lambda: False):
        break
    assert not any(s.receivers for s in driver.board.resolve("*:*"))
    driver.run(until="fetch")
    driver.run(until=lambda moment: moment.state == "batch_end")
    assert not any(s.receivers for s in driver.board.resolve("*:*"))


def test_what_has_not_started_or_has_ended_cannot_run() -> None:
    driver = Driver(Fit(), name="fit")
    for act in (driver.run, driver.step, driver.moments):
        with pytest.raises(NotStarted, match=r"was not started.*start\(\)"):
            act()
    driver.start()
    driver.run()
    with pytest.raises(NotStarted, match="ended with 'fit_done'"):
        driver.run()


def test_a_quiet_transition_costs_one_python_call_that_of_the_state() -> None:
    driver = fit_driver(Fit(epoch=Epoch(batches=50)))
    calls: list[str] = []

    def profile(frame: Any, event: str, _arg: object) -> None:
        if event == "call":
            calls.append(frame.f_code.co_name)

    driver.run(until="fetch")
    sys.setprofile(profile)
    try:
        driver.run()
    finally:
        sys.setprofile(None)
    work = [name for name in calls if name in {path.rpartition(".")[2] for path in WHOLE_RUN}]
    assert len(work) == 50 * 6 + 3
    assert len(calls) - len(work) < 30  # once for each answer that a state has, not for each batch


# -- pausing ---------------------------------------------------------------------------------------


def test_a_receiver_pauses_and_the_run_goes_on() -> None:
    driver = fit_driver()
    driver.board.on("backward", lambda _s: driver.pause())
    assert driver.run() is None
    assert driver.path == "fit.epoch.batch.optimizer.backward"
    assert driver.run() is None
    assert driver.run() == "fit_done"


def test_a_pause_ends_an_iteration_with_the_present_item() -> None:
    driver = fit_driver()
    driver.board.on("fetch", lambda _s: driver.pause(), once=True)
    assert len(list(driver.moments())) == 2
    assert driver.run() == "fit_done"


def test_what_a_run_stops_at_does_not_stop_the_next_one_after_an_error() -> None:
    driver = fit_driver()
    subscription = driver.board.on("epoch_start:started", fail)
    with pytest.raises(Mend):
        driver.run(until="fetch")
    subscription.cancel()
    assert driver.run() == "fit_done"


def fail() -> None:
    raise Mend


# -- posting ---------------------------------------------------------------------------------------


def stopped_in_first_batch(post: Callable[[Driver], None]) -> None:
    """Whatever posts `stop` in the first batch, the epoch ends when the batch is done."""
    driver = fit_driver()
    driver.board.on("backward", lambda _s: post(driver), once=True)
    path = path_of(driver)
    assert path == [*WHOLE_RUN[:8], FETCH, *WHOLE_RUN[-2:]]
    assert driver.root["epoch"].seen == 1  # type: ignore[attr-defined]


def test_an_event_posted_by_a_receiver_waits_for_an_edge() -> None:
    stopped_in_first_batch(lambda driver: driver.post("stop"))


def test_an_event_posted_by_another_thread_waits_for_an_edge() -> None:
    def post(driver: Driver) -> None:
        thread = threading.Thread(target=driver.post, args=["stop"])
        thread.start()
        thread.join()

    stopped_in_first_batch(post)


def test_an_event_posted_by_the_handler_of_a_system_signal_waits_for_an_edge() -> None:
    def post(driver: Driver) -> None:
        before = signal.signal(signal.SIGUSR1, lambda *_: driver.post("stop"))
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
        finally:
            signal.signal(signal.SIGUSR1, before)

    stopped_in_first_batch(post)


def test_events_go_to_who_keeps_several_machines_together_until_that_hands_them_on() -> None:
    driver = fit_driver()

    class Together:
        events: list[str] = []
        held = None
        asked_to_hold = False

        def post(self, event: str) -> None:
            self.events.append(event)

        def waiting(self) -> list[str]:
            return self.events

        def pause(self) -> None:
            raise NotImplementedError

        hold = let_go = pause

    driver.post_to = together = Together()
    driver.post("stop")
    driver.run(until="batch_start")
    assert driver.posted == ["stop"]
    assert not any(e == "stop" for e in driver.state_dict()["posted"])
    driver.post_here(together.events.pop())
    assert driver.posted == driver.state_dict()["posted"] == ["stop"]


def test_posted_events_wait_in_order_and_once_each() -> None:
    driver = fit_driver()
    for _ in range(2):
        driver.post("stop")
    assert (driver.posted, driver.accepts("stop")) == (["stop"], False)
    driver.run(until="fetch")
    assert driver.accepts("stop")
    assert driver.path == FETCH
    moment = driver.step()
    assert moment is not None
    assert (moment.event, driver.posted) == ("stop", [])


def test_a_withdrawn_event_is_not_taken() -> None:
    driver = fit_driver()
    driver.post("stop")
    driver.withdraw("stop")
    driver.withdraw("stop")
    assert path_of(driver) == WHOLE_RUN


def test_an_event_that_no_loop_takes_is_refused() -> None:
    driver = fit_driver()
    with pytest.raises(UnknownEvent, match=r"'stopp'.*Did you mean 'stop'"):
        driver.post("stopp")
    with pytest.raises(UnknownEvent):
        driver.post("fetched")
    with pytest.raises(UnknownEvent):
        driver.post(None)  # type: ignore[arg-type]


def test_a_condition_holds_a_posted_event_back() -> None:
    class Patient(Epoch):
        transitions = [
            *(t for t in Epoch.transitions if "stop" not in t),
            ["stop", "fetch", "epoch_end", "may_stop"],
        ]

        def may_stop(self) -> bool:
            return self.seen >= 2

    driver = fit_driver(Fit(epoch=Patient(batches=5)))
    driver.post("stop")
    driver.run()
    assert driver.root["epoch"].seen == 2  # type: ignore[attr-defined]


def test_an_event_posted_for_a_loop_around_leaves_the_loops_inside() -> None:
    class Impatient(Fit):
        transitions = [*Fit.transitions, ["stop", "epoch", "fit_end"]]

    class Plain(Epoch):
        transitions = [t for t in Epoch.transitions if "stop" not in t]

    driver = fit_driver(Impatient(epoch=Plain()))
    left: list[str] = []
    driver.board.on("*:exit", lambda _s, moment: left.append(moment.path))
    driver.run(until="backward")
    left.clear()
    driver.post("stop")
    assert path_of(driver) == ["fit.epoch.batch.optimizer.backward", "fit.fit_end"]
    assert left[:4] == [
        "fit.epoch.batch.optimizer.backward",
        "fit.epoch.batch.optimizer",
        "fit.epoch.batch",
        "fit.epoch",
    ]


def test_an_event_posted_all_the_time_by_another_thread_is_never_lost() -> None:
    class Ticking(Loop):
        initial = "turn"
        outcomes = ("over",)
        posted = ("tick",)
        transitions = [
            ["turned", "turn", "turn"],
            ["tick", "turn", None],
            ["last", "turn", "end_it"],
        ]
        turns: int = 0

        def turn(self) -> Literal["turned", "last"]:
            self.turns += 1
            return "last" if finished.is_set() else "turned"

        def end_it(self) -> Literal["over"]:
            return "over"

    finished, taken = threading.Event(), threading.Semaphore(0)
    ticks: list[int] = []
    driver = Driver(Ticking())
    driver.start()

    def take() -> None:
        ticks.append(len(ticks))
        taken.release()

    driver.board.on("turn:tick", take)

    def tick() -> None:
        for _ in range(200):
            driver.post("tick")
            assert taken.acquire(timeout=20)
        finished.set()

    thread = threading.Thread(target=tick)
    thread.start()
    driver.run()
    thread.join()
    assert len(ticks) == 200


# -- requests at boundaries ------------------------------------------------------------------------


def test_a_request_is_served_at_the_next_boundary_that_is_not_transient() -> None:
    driver = fit_driver()
    served: list[str | None] = []
    driver.board.on("backward", lambda _s: driver.at_boundary(lambda: served.append(driver.path)))
    driver.run(until="backward")
    assert driver.transient
    driver.at_boundary(lambda: served.append(driver.path))
    assert served == []
    driver.step()
    driver.run(until="batch_end")
    assert served == ["fit.epoch.batch.optimizer.optimizer_step"] * 2


def test_a_request_at_rest_is_served_at_once() -> None:
    driver = fit_driver()
    served: list[str | None] = []
    driver.at_boundary(lambda: served.append(driver.path))
    assert served == ["fit.fit_start"]


def test_the_end_is_a_boundary_too() -> None:
    driver = fit_driver()
    served: list[str | None] = []
    driver.board.on(
        "fit_end:exit", lambda _s: driver.at_boundary(lambda: served.append(driver.outcome))
    )
    driver.run()
    driver.at_boundary(lambda: served.append(driver.outcome))
    assert served == ["fit_done", "fit_done"]


def test_a_request_that_asks_again_is_served_at_the_next_boundary() -> None:
    driver = fit_driver()
    served: list[str | None] = []

    def serve() -> None:
        served.append(driver.path)
        if driver.path is not None:
            driver.at_boundary(serve)

    driver.board.on("fetch", lambda _s: driver.at_boundary(serve), once=True)
    driver.run()
    writable = [path for path in WHOLE_RUN[2:] if not path.endswith("backward")]
    assert served == [*writable, None]


def test_a_request_that_raises_is_gone_and_the_others_are_served() -> None:
    driver = fit_driver()
    served: list[str | None] = []
    driver.board.on("fetch", lambda _s: driver.at_boundary(fail), once=True)
    driver.board.on(
        "fetch", lambda _s: driver.at_boundary(lambda: served.append(driver.path)), once=True
    )
    with pytest.raises(Mend):
        driver.run()
    assert (driver.path, served) == (FETCH, [])
    driver.run()
    assert served == [FETCH]


# -- errors ----------------------------------------------------------------------------------------


class Fragile(Epoch):
    error: BaseException | None = None

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.trouble: BaseException | None = error

    def fetch(self) -> Literal["fetched", "exhausted"]:
        if self.trouble is not None:
            raise self.trouble
        return super().fetch()


def test_a_state_that_raises_works_again_when_mended() -> None:
    driver = fit_driver(Fit(epoch=Fragile(Mend())))
    heard: list[str] = []
    driver.board.on("fetch", lambda _s, moment: heard.append(moment.path))
    with pytest.raises(Mend) as caught:
        driver.run()
    assert f"in state '{FETCH}'" in caught.value.__notes__[0]
    assert driver.path == FETCH
    assert heard == [FETCH]
    driver.root["epoch"].trouble = None  # type: ignore[attr-defined]
    assert path_of(driver) == WHOLE_RUN[2:]


@pytest.mark.parametrize("again", ["run", "step", "moments"])
@pytest.mark.parametrize("name", ["fetch", "fetch:exit", "batch:exit", "fetch:fetched"])
def test_after_a_receiver_raised_the_rest_is_delivered_exactly_once(name: str, again: str) -> None:
    def run(mended: bool) -> list[tuple[str, str]]:
        calls: list[tuple[str, str]] = []
        driver = fit_driver()
        trouble = [] if mended else [Mend()]

        def middle(_sender: Any, moment: Any) -> None:
            if trouble:
                raise trouble.pop()
            calls.append(("middle", moment.signal))

        driver.board.on("*:*", lambda _s, m: calls.append(("first", m.signal)), priority=1)
        driver.board.on(name, middle)
        driver.board.on("*:*", lambda _s, m: calls.append(("last", m.signal)), priority=-1)
        if not mended:
            with pytest.raises(Mend) as caught:
                driver.run()
            assert "Raised by a receiver of the signal" in caught.value.__notes__[0]
            assert driver.transient
        if again == "step":
            while driver.path is not None:
                driver.step()
        elif again == "moments":
            list(driver.moments())
        else:
            driver.run()
        return calls

    assert run(mended=False) == run(mended=True)


def test_a_receiver_may_raise_again_and_again() -> None:
    driver = fit_driver()
    calls: list[str] = []

    def middle() -> None:
        calls.append("middle")
        if len(calls) < 6:
            raise Mend

    driver.board.on("fetch", lambda: calls.append("first"), once=True)
    driver.board.on("fetch", middle, once=True)
    driver.board.on("fetch", lambda: calls.append("last"), once=True)
    for _ in range(4):
        with pytest.raises(Mend):
            driver.run()
    driver.run()
    assert calls == ["first", *["middle"] * 5, "last"]


def test_intervals_and_conditions_count_on_after_an_error() -> None:
    def run(mended: bool) -> list[str]:
        calls: list[str] = []
        driver = fit_driver(Fit(epoch=Epoch(batches=8)))
        trouble = [] if mended else [Mend(), Mend()]

        def third() -> None:
            if trouble:
                raise trouble.pop()
            calls.append("third")

        def fourth(moment: Any) -> bool:
            if trouble:
                raise trouble.pop()
            return bool(moment.event == "batch_done")

        driver.board.on("fetch", third, every=3)
        driver.board.on("fetch", lambda: calls.append("second"), every=2)
        driver.board.on("fetch", lambda: calls.append("conditional"), when=fourth, every=3)
        while driver.outcome is None:
            try:
                driver.run()
            except Mend:
                continue
        return calls

    assert run(mended=False) == run(mended=True)


def test_an_error_on_the_way_to_the_end_does_not_lose_the_end() -> None:
    for again in ("run", "step", "moments"):
        driver = fit_driver()
        once = driver.board.on("fit:exit", fail)
        with pytest.raises(Mend):
            driver.run()
        assert (driver.path, driver.outcome) == (None, None)
        once.cancel()
        result = getattr(driver, again)()
        if again == "moments":
            assert list(result) == []
        assert driver.outcome == "fit_done"


def test_an_error_at_the_start_does_not_lose_the_start() -> None:
    driver = Driver(Fit(), name="fit")
    once = driver.board.on("fit", fail)
    with pytest.raises(Mend):
        driver.start()
    once.cancel()
    assert path_of(driver) == WHOLE_RUN


def test_a_cancelled_receiver_is_not_called_for_what_it_missed() -> None:
    driver = fit_driver()
    calls: list[str] = []
    driver.board.on("fetch", fail, once=True)
    later = driver.board.on("fetch", lambda: calls.append("later"))
    with pytest.raises(Mend):
        driver.run()
    driver.board.off(fail)
    later.cancel()
    assert driver.run() == "fit_done"
    assert calls == []


def test_a_new_start_forgets_what_was_not_delivered() -> None:
    driver = fit_driver()
    driver.board.on("fetch", fail)
    with pytest.raises(Mend):
        driver.run()
    driver.board.off(fail)
    driver.start()
    assert path_of(driver) == WHOLE_RUN


def test_a_factory_that_raises_leaves_the_machine_at_a_boundary() -> None:
    trouble: list[Exception] = []

    def make() -> int:
        if trouble:
            raise trouble.pop()
        return 7

    class Made(Epoch):
        value: int = field(factory=make)

    driver = fit_driver(Fit(epoch=Made()))
    driver.root["epoch"].value = 0  # type: ignore[attr-defined]
    trouble.append(Mend())
    with pytest.raises(Mend):
        driver.run()
    assert driver.path == "fit.epoch.epoch_start"
    driver.run(until="fetch")
    assert driver.root["epoch"].value == 7  # type: ignore[attr-defined]


def test_a_stray_stop_iteration_surfaces_with_the_path() -> None:
    driver = fit_driver(Fit(epoch=Fragile(StopIteration())))
    for act in (driver.run, driver.step, lambda: list(driver.moments())):
        with pytest.raises(StrayStopIteration, match=FETCH):
            act()
    assert driver.path == FETCH


def test_a_stray_stop_iteration_of_a_receiver_surfaces_every_time() -> None:
    def stray() -> None:
        raise StopIteration

    driver = fit_driver()
    driver.board.on("fetch", stray)
    for act in (driver.run, driver.run, driver.step, lambda: list(driver.moments())):
        with pytest.raises(StrayStopIteration, match=FETCH):
            act()
    driver.board.off(stray)
    assert driver.run() == "fit_done"


def test_a_keyboard_interrupt_leaves_a_known_boundary() -> None:
    driver = fit_driver(Fit(epoch=Fragile(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        driver.run()
    assert driver.path == FETCH
    driver.root["epoch"].trouble = None  # type: ignore[attr-defined]
    assert path_of(driver) == WHOLE_RUN[2:]


@pytest.mark.parametrize("answer", ["fetchd", "stop", "fit_done", None, 3, ["fetched"], {}])
def test_an_answer_that_no_transition_waits_for_is_an_error(answer: object) -> None:
    class Wrong(Epoch):
        def fetch(self) -> Literal["fetched", "exhausted"]:
            return answer  # type: ignore[return-value]

    driver = fit_driver(Fit(epoch=Wrong()))
    for act in (driver.run, driver.step):
        with pytest.raises(
            UnexpectedEvent, match=rf"'{FETCH}' answered .*'exhausted', 'fetched'\."
        ):
            act()
    assert driver.path == FETCH


def test_running_from_inside_is_an_error() -> None:
    driver = fit_driver()
    acts: list[Callable[[], object]] = [
        driver.run,
        driver.step,
        driver.start,
        driver.moments,
        lambda: driver.load_state_dict({}),
        lambda: driver.machine.trigger("stop"),
    ]
    errors: list[str] = []

    def meddle() -> None:
        for act in acts:
            with pytest.raises(AlreadyRunning, match=FETCH) as caught:
                act()
            errors.append(str(caught.value))

    driver.board.on("fetch", meddle, once=True)
    assert driver.run() == "fit_done"
    assert len(errors) == len(acts)


def test_running_from_another_thread_meanwhile_is_an_error() -> None:
    driver = fit_driver()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            driver.run()
        except AlreadyRunning as error:
            errors.append(error)

    def meddle() -> None:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    driver.board.on("fetch", meddle, once=True)
    driver.run()
    assert "another thread" in str(errors[0])


# -- resting ---------------------------------------------------------------------------------------


class Waiting(Loop):
    initial = "wait"
    outcomes = ("over",)
    transitions = [["stop", "wait", "last"], ["woken", "wait", "last"]]

    def __init__(self) -> None:
        super().__init__()
        self.awake = False

    def wait(self) -> Literal["woken"] | None:
        return "woken" if self.awake else None

    def last(self) -> Literal["over"]:
        return "over"


def test_a_state_that_answers_none_rests_until_something_comes_from_outside() -> None:
    driver = Driver(Waiting())
    driver.start()
    assert driver.run() is None
    assert (driver.resting, driver.path, driver.step()) == (True, "loop.wait", None)
    assert list(driver.moments()) == []
    driver.post("stop")
    assert driver.run() == "over"
    assert not driver.resting


def test_a_resting_state_may_find_out_by_itself_that_it_is_to_go_on() -> None:
    loop = Waiting()
    driver = Driver(loop)
    driver.start()
    driver.run()
    loop.awake = True
    driver.run(until="last")
    assert (driver.path, driver.resting) == ("loop.last", False)


def test_what_the_loops_share_is_given_to_all_and_can_be_changed() -> None:
    driver = fit_driver(context=1)
    driver.share(2)
    assert {loop.context for _, loop in driver.root.walk()} == {2}
    assert driver.context == 2


def test_a_place_may_be_filled_by_a_loop_with_a_length() -> None:
    class Sized(Epoch):
        def __len__(self) -> int:
            return 0

    class SizedFit(Fit):
        epoch: Loop = place(Sized)

    assert fit_driver(SizedFit()).run() == "fit_done"


def test_what_a_run_is_to_stop_at_must_be_a_name_or_a_condition() -> None:
    driver = fit_driver()
    driver.start()
    until: Any = 3
    with pytest.raises(BadReceiver, match="until=3"):
        driver.run(until)
    with pytest.raises(BadReceiver, match="until=3"):
        driver.moments(until)


@pytest.mark.parametrize("until", ["fetch", lambda _s, moment: moment.state == "fetch"])
def test_a_goal_that_was_met_stops_no_later_run_after_a_swap(until: Any) -> None:
    driver = fit_driver()
    driver.run(until=until)
    driver.root["batch"] = Batch()
    assert driver.run() == "fit_done"


def test_a_subscription_that_was_cancelled_stays_so_after_a_swap() -> None:
    driver = fit_driver()
    heard: list[Any] = []
    listening = driver.board.on("fetch", heard.append)
    watching = driver.board.watch("fetch", heard.append)
    listening.cancel()
    watching.cancel()
    driver.root["batch"] = Batch()
    assert driver.run() == "fit_done"
    assert heard == []
    watching.connect_to([driver.board.signal("fetch")])
    assert watching.signals == []
