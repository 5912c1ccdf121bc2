"""The machine is one of the `transitions` library, and what that can do works."""

from __future__ import annotations

import pytest
from transitions import MachineError
from transitions.extensions import HierarchicalMachine
from transitions.extensions.diagrams import HierarchicalGraphMachine
from transitions.extensions.nesting import NestedState

from statemachine_trainer.machine import Driver
from tests.machine.kit import WHOLE_RUN, Fit, fit_driver, path_of


def test_the_machine_stands_where_the_driver_stands() -> None:
    driver = fit_driver()
    assert isinstance(driver.machine, HierarchicalMachine)
    assert driver.machine.state == "fit.fit_start"
    for moment in driver.moments():
        assert driver.machine.state == moment.target
    assert driver.machine.state == "end"
    driver.start()
    assert driver.machine.state == "fit.fit_start"


def test_the_machine_tells_which_events_a_state_takes() -> None:
    driver = fit_driver()
    assert set(driver.machine.get_triggers("fit.epoch.fetch")) == {
        "fetched",
        "exhausted",
        "stop",
        "epoch_done",
        "fit_done",
    }
    assert driver.machine.may_started()
    assert not driver.machine.may_fetched()


def test_a_trigger_moves_the_driver_and_fires_the_signals_but_runs_no_work() -> None:
    driver = fit_driver()
    names: list[str] = []
    driver.board.on("*:*", lambda _s, moment: names.append(moment.signal))
    assert driver.machine.started()
    assert driver.machine.trigger("started")
    assert driver.path == "fit.epoch.fetch"
    assert names == [
        "fit.fit_start:exit",
        "fit.epoch:enter",
        "fit.epoch.epoch_start:enter",
        "fit.fit_start:started",
        "fit.epoch.epoch_start:exit",
        "fit.epoch.fetch:enter",
        "fit.epoch.epoch_start:started",
    ]
    assert driver.root["epoch"].seen == 0  # type: ignore[attr-defined]
    assert path_of(driver) == WHOLE_RUN[2:]


def test_triggers_lead_to_the_end() -> None:
    driver = fit_driver()
    driver.machine.trigger("fit_done")
    assert (driver.machine.state, driver.path, driver.outcome) == ("end", None, "fit_done")


def test_an_event_out_of_place_is_the_librarys_own_error() -> None:
    driver = fit_driver()
    with pytest.raises(MachineError, match="fetched"):
        driver.machine.fetched()
    assert driver.path == "fit.fit_start"


def test_the_library_draws_the_machine_with_the_running_state() -> None:
    driver = fit_driver()
    driver.run(until="backward")
    source = driver.machine.get_graph().source
    assert "stateDiagram-v2" in source
    for path in WHOLE_RUN:
        assert path.rpartition(".")[2] in source
    assert "s_active" in source


def test_no_global_of_the_library_changes() -> None:
    fit_driver().machine.get_graph()
    assert NestedState.separator == "_"
    assert HierarchicalMachine.state_cls.separator == "_"
    assert HierarchicalGraphMachine.state_cls.separator == "_"
    other = HierarchicalMachine(states=[{"name": "a", "children": ["b"]}], initial="a_b")
    assert other.state == "a_b"


def test_a_machine_of_thirty_states_is_built_in_an_instant() -> None:
    import time

    class Wide(Fit):
        pass

    times = []
    for _ in range(5):
        begin = time.perf_counter()
        Driver(Wide(), name="fit")
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.1
