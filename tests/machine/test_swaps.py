"""Loops of a tree can be replaced, before a run and while it goes on, wholly or not at all."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from statemachine_trainer.machine import Driver, Loop, LostSubscription, field, place
from statemachine_trainer.machine.errors import (
    CannotBuild,
    ImpossibleEvent,
    LoopDefinitionError,
    LoopInUse,
    LoopUsedTwice,
    UnhandledEvent,
    UnknownLoop,
)
from tests.machine.kit import Batch, Epoch, Fit, Step, fit_driver, path_of


class ManualStep(Loop):
    """One state in place of forward, backward and step."""

    initial = "manual_step"

    def manual_step(self) -> Literal["optimized"]:
        return "optimized"


class Unfit(Loop):
    """Ends in a way that no loop around it knows."""

    initial = "work"

    def work(self) -> Literal["crashed"]:
        return "crashed"


MANUAL = "fit.epoch.batch.optimizer.manual_step"


def test_a_loop_is_replaced_by_its_name() -> None:
    driver = fit_driver()
    driver.root.replace(optimizer=ManualStep())
    assert path_of(driver).count(MANUAL) == 2


def test_a_loop_is_replaced_by_its_path() -> None:
    driver = fit_driver()
    driver.root["epoch.batch.optimizer"] = ManualStep()
    assert isinstance(driver.root["optimizer"], ManualStep)
    driver.root.replace(**{"epoch.batch.optimizer": Step()})  # type: ignore[arg-type]
    assert isinstance(driver.root["batch.optimizer"], Step)


def test_a_loop_is_replaced_by_assignment_to_its_place() -> None:
    driver = fit_driver()
    batch: Any = driver.root["batch"]
    batch.optimizer = ManualStep
    assert path_of(driver).count(MANUAL) == 2


def test_a_class_is_built_with_the_settings_of_the_replaced_loop() -> None:
    class Longer(Epoch):
        def __init__(self, extra: int = 1, **others: Any) -> None:
            super().__init__(**others)
            self.batches += extra

    driver = fit_driver(Fit(epoch=Epoch(batches=4)))
    driver.root.replace(epoch=Longer)
    assert driver.root.epoch.batches == 5  # type: ignore[attr-defined]


def test_a_class_that_needs_an_unknown_setting_is_refused() -> None:
    class Needy(Epoch):
        def __init__(self, rate: float) -> None:
            super().__init__()
            self.rate = rate

    driver = fit_driver()
    with pytest.raises(CannotBuild, match=r"'rate'.*'epoch' \(Epoch\).*epoch=Needy\(rate=\.\.\.\)"):
        driver.root.replace(epoch=Needy)
    assert type(driver.root["epoch"]) is Epoch


def test_states_fields_and_places_are_no_settings() -> None:
    class Curious(Epoch):
        def __init__(self, seen: int = -1, fetch: int = -1, batch: Any = None) -> None:
            super().__init__()
            self.got = (seen, fetch, batch)

    root = Fit()
    root.replace(epoch=Curious)
    assert root.epoch.got == (-1, -1, None)  # type: ignore[attr-defined]


def test_loops_inside_are_carried_over_where_none_was_given() -> None:
    manual = ManualStep()
    root = Fit(epoch=Epoch(batch=Batch(optimizer=manual)))
    root.replace(batch=Batch())
    assert root["optimizer"] is manual
    root.replace(batch=Batch(optimizer=Step()))
    assert isinstance(root["optimizer"], Step)


def test_a_default_that_the_new_class_declares_is_kept_over_a_mere_default() -> None:
    class ManualBatch(Batch):
        optimizer: Loop = place(ManualStep)

    root = Fit()
    root.replace(batch=ManualBatch)
    assert type(root["optimizer"]) is ManualStep
    chosen = Step()
    root = Fit(epoch=Epoch(batch=Batch(optimizer=chosen)))
    root.replace(batch=ManualBatch)
    assert root["optimizer"] is chosen


class Counting(Step):
    count: int = 0
    kept: int = field(0, scope="run")
    own: int = 0


class CountingToo(Step):
    count: int = 0
    kept: int = field(0, scope="run")


def counted() -> Counting:
    loop = Counting()
    loop.count, loop.kept, loop.own = 3, 4, 5
    return loop


def test_fields_of_a_new_loop_begin_anew() -> None:
    root, new = Batch(optimizer=counted()), CountingToo()
    root.replace(optimizer=new)
    assert (new.count, new.kept) == (0, 0)


def test_fields_of_the_same_name_are_kept_if_asked_for() -> None:
    root, new = Batch(optimizer=counted()), CountingToo()
    root.replace(optimizer=new, state="keep")
    assert (new.count, new.kept) == (3, 4)
    assert not hasattr(new, "own")


def test_a_function_says_what_becomes_of_the_fields() -> None:
    root, new = Batch(optimizer=counted()), CountingToo()

    def add(old: Any, fresh: Any) -> None:
        fresh.count = old.count + old.own

    root.replace(optimizer=new, state=add)
    assert (new.count, new.kept) == (8, 0)


def test_a_misspelt_policy_is_refused() -> None:
    with pytest.raises(LoopDefinitionError, match=r"'kep'.*'keep'"):
        Batch().replace(optimizer=Step(), state="kep")  # type: ignore[arg-type]


def test_a_place_that_nobody_has_is_refused() -> None:
    with pytest.raises(UnknownLoop, match=r"'optimiser'.*Did you mean 'optimizer'"):
        Batch().replace(optimiser=Step())


def test_a_name_that_two_loops_have_is_refused() -> None:
    class Two(Loop):
        initial = "left"
        transitions = [["batch_done", "left", "right"]]
        left: Loop = place(Batch)
        right: Loop = place(Batch)

    with pytest.raises(UnknownLoop, match=r"left\.optimizer, right\.optimizer"):
        Two().replace(optimizer=ManualStep)


def test_an_empty_place_deep_inside_is_filled_by_its_path() -> None:
    class Hollow(Batch):
        optimizer: Loop = place(None)  # type: ignore[arg-type]

    root = Fit(epoch=Epoch(batch=Hollow()))
    root["epoch.batch.optimizer"] = ManualStep()
    assert type(root["optimizer"]) is ManualStep


def snapshot(root: Loop) -> list[tuple[str, int, str]]:
    return [(path, id(loop), str(loop.outwards)) for path, loop in root.walk()]


def test_a_swap_that_does_not_hold_together_changes_nothing() -> None:
    driver = fit_driver()
    calls: list[str] = []
    driver.board.on("forward", lambda _s, moment: calls.append(moment.path))
    before, machine = snapshot(driver.root), driver.machine
    new = Batch(optimizer=Unfit())
    with pytest.raises(ImpossibleEvent):
        driver.root.replace(batch=new)
    assert snapshot(driver.root) == before
    assert driver.machine is machine
    assert type(new["optimizer"]) is Unfit
    assert len(path_of(driver)) == 17
    assert len(calls) == 2


def test_of_several_swaps_all_are_made_or_none() -> None:
    driver = fit_driver()
    before = snapshot(driver.root)
    with pytest.raises((ImpossibleEvent, UnhandledEvent)):
        driver.root.replace(batch=Batch(), epoch=Epoch(batch=Batch(optimizer=Unfit())))
    assert snapshot(driver.root) == before


def test_swaps_that_hold_together_only_together_are_made() -> None:
    class CrashingBatch(Batch):
        transitions = [*Batch.transitions, ["crashed", "optimizer", "batch_end"]]

    driver = fit_driver()
    with pytest.raises(ImpossibleEvent):
        driver.root.replace(batch=CrashingBatch)

    class CrashingStep(Step):
        def optimizer_step(self) -> Literal["optimized", "crashed"]:  # type: ignore[override]
            return "crashed"

    driver.root.replace(batch=CrashingBatch, optimizer=CrashingStep)
    assert driver.run() == "fit_done"


def test_a_policy_that_raises_undoes_the_swap() -> None:
    driver = fit_driver()
    before = snapshot(driver.root)

    def fail(_old: Loop, _new: Loop) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        driver.root.replace(batch=Batch(), state=fail)
    assert snapshot(driver.root) == before


def test_a_replaced_loop_is_free_and_can_be_put_back() -> None:
    driver = fit_driver()
    old, inner = driver.root["batch"], driver.root["optimizer"]
    new = Batch()
    driver.root.replace(batch=new)
    assert list(old.outwards()) == [old]
    assert driver.root["optimizer"] is inner
    driver.root.replace(batch=old)
    assert driver.root["optimizer"] is inner
    assert list(new.outwards()) == [new]
    new.replace(optimizer=Unfit())  # no machine refuses that any more
    assert driver.run() == "fit_done"


def test_two_loops_change_places_in_one_swap() -> None:
    class Two(Loop):
        initial = "left"
        outcomes = ("batch_done",)
        transitions = [["batch_done", "left", "right"]]
        left: Loop = place(Batch)
        right: Loop = place(Batch)

    driver = fit_driver(Two())
    left, right = driver.root["left"], driver.root["right"]
    inner = [left["optimizer"], right["optimizer"]]
    driver.outcome = "batch_done"
    driver.run()
    driver.root.replace(left=right, right=left)
    assert (driver.root["left"], driver.root["right"]) == (right, left)
    assert [left["optimizer"], right["optimizer"]] == inner
    assert list(left.outwards()) == [left, driver.root]


def test_a_loop_that_stands_in_the_tree_already_is_refused() -> None:
    driver = fit_driver()
    before = snapshot(driver.root)
    with pytest.raises((LoopUsedTwice, LoopDefinitionError)):
        driver.root.replace(epoch=driver.root)
    assert snapshot(driver.root) == before


def test_the_loop_that_runs_cannot_be_replaced_by_a_receiver_in_it() -> None:
    driver = fit_driver()
    driver.board.on("forward", lambda _s: driver.root.replace(batch=Batch()))
    with pytest.raises(
        LoopInUse, match=r"'fit\.epoch\.batch'.*'fit\.epoch\.batch\.optimizer\.forward'"
    ):
        driver.run()
    assert driver.path == "fit.epoch.batch.optimizer.forward"


def test_a_receiver_replaces_another_loop_and_it_takes_effect() -> None:
    driver = fit_driver()
    driver.board.on("fetch", lambda _s: driver.root.replace(optimizer=ManualStep), once=True)
    assert path_of(driver).count(MANUAL) == 2


def test_a_state_replaces_another_loop_and_it_takes_effect() -> None:
    class Swapping(Epoch):
        def fetch(self) -> Literal["fetched", "exhausted"]:
            self.replace(batch=Batch(optimizer=ManualStep()))
            return super().fetch()

    driver = fit_driver(Fit(epoch=Swapping()))
    heard: list[str] = []
    driver.board.on("fetch:exit", lambda _s, moment: heard.append(moment.target))
    assert driver.run() == "fit_done"
    assert len(heard) == 3


def test_a_swap_between_two_runs_takes_effect() -> None:
    driver = fit_driver()
    driver.run(until="fetch")
    driver.root.replace(optimizer=ManualStep)
    assert path_of(driver).count(MANUAL) == 2


def test_new_loops_share_the_context() -> None:
    context = object()
    driver = fit_driver(context=context)
    driver.root.replace(optimizer=ManualStep)
    assert driver.root["optimizer"].context is context


def test_a_subscription_follows_the_name_into_the_new_loop() -> None:
    driver = fit_driver()
    calls: list[str] = []
    driver.board.on("forward", lambda _s, moment: calls.append(moment.path))
    driver.root.replace(optimizer=Step())
    driver.run()
    assert len(calls) == 2


def test_a_subscription_that_names_nothing_any_more_is_reported_at_the_line_of_the_swap() -> None:
    driver = fit_driver()
    driver.board.on("forward", lambda: None)
    swaps: list[Callable[[], None]] = [
        lambda: driver.root.replace(optimizer=ManualStep),
        lambda: driver.root.__setitem__("optimizer", ManualStep),
        lambda: setattr(driver.root["batch"], "optimizer", ManualStep),
    ]
    for swap in swaps:
        with pytest.warns(LostSubscription, match="'forward'") as caught:
            swap()
        assert [Path(one.filename) for one in caught] == [Path(__file__)]
        driver.root.replace(optimizer=Step)


def test_a_warning_that_is_an_error_leaves_the_old_loops_at_work() -> None:
    driver = fit_driver()
    calls: list[str] = []
    driver.board.on("forward", calls.append)
    with pytest.raises(LostSubscription):  # warnings are errors in these tests
        driver.root.replace(optimizer=ManualStep)
    driver.run()
    assert len(calls) == 2


def test_a_name_that_becomes_ambiguous_keeps_what_it_meant() -> None:
    class Forward(ManualStep):
        initial = "forward"

        def forward(self) -> Literal["optimized"]:
            return "optimized"

    class Twice(Batch):
        transitions = [
            ["started", "batch_start", "optimizer"],
            ["optimized", "optimizer", "second"],
            ["optimized", "second", "batch_end"],
        ]
        second: Loop = place(Forward)

    driver = fit_driver()
    calls: list[str] = []
    driver.board.on("forward", lambda _s, moment: calls.append(moment.path))
    driver.root.replace(batch=Twice)
    driver.run()
    assert calls == ["fit.epoch.batch.optimizer.forward"] * 2


def test_copies_and_pickles_of_a_loop_leave_the_machine_behind() -> None:
    driver = fit_driver(context=lambda: None)
    batch = driver.root["batch"]
    for twin in (copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert list(twin.outwards()) == [twin]
        assert not hasattr(twin, "context")
        assert list(twin["optimizer"].outwards()) == [twin["optimizer"], twin]
        driver.root.replace(batch=twin)
    assert driver.run() == "fit_done"


def test_a_shallow_copy_leaves_the_original_in_order() -> None:
    driver = fit_driver()
    batch = driver.root["batch"]
    twin = copy.copy(batch)
    twin.replace(optimizer=ManualStep)
    assert type(batch["optimizer"]) is Step
    assert list(batch["optimizer"].outwards())[1] is batch


def test_a_replaced_loop_can_be_forgotten() -> None:
    driver = fit_driver()
    old = weakref.ref(driver.root["optimizer"])
    driver.root.replace(optimizer=ManualStep)
    gc.collect()
    assert old() is None


def test_many_swaps_leave_nothing_behind() -> None:
    driver = fit_driver()
    driver.board.on("*", lambda: None)
    signal = driver.board.signal("fetch")
    for _ in range(3):
        driver.root.replace(batch=Batch)
    watchers = len(signal._watchers)
    for _ in range(5):
        driver.root.replace(batch=Batch)
    assert len(signal._watchers) == watchers


def test_a_path_may_begin_with_the_root_as_it_does_where_paths_are_printed() -> None:
    driver = fit_driver()
    assert driver.root["fit.epoch.batch.optimizer"] is driver.root["epoch.batch.optimizer"]
    driver.root["fit.epoch.batch.optimizer"] = ManualStep()
    assert isinstance(driver.root["optimizer"], ManualStep)
    driver.root.replace(**{"fit.epoch.batch.optimizer": Step})  # type: ignore[arg-type]
    assert isinstance(driver.root["optimizer"], Step)
    with pytest.raises(UnknownLoop, match=r"'fit\.optimizer'"):
        driver.root["fit.optimizer"]


def test_a_place_that_is_called_like_the_root_comes_first() -> None:
    class Around(Loop):
        initial = "fit"
        outcomes = ("fit_done",)
        fit: Loop = place(Fit)

    driver = Driver(Around(), name="fit")
    assert driver.root["fit.epoch"] is driver.root["fit.fit.epoch"]
    assert isinstance(driver.root["fit"], Fit)


def test_a_loop_that_does_not_fit_is_named_first_with_what_it_may_end_with() -> None:
    driver = fit_driver()
    with pytest.raises(ImpossibleEvent) as caught:
        driver.root.replace(optimizer=Unfit())
    assert str(caught.value).startswith("Unfit may end with 'crashed', and Batch (loop ")
    assert "in which it stands as 'optimizer', expects 'optimized'" in str(caught.value)
