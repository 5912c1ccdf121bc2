"""The black box: what is known of a run that was killed, that hangs, or that goes on."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any, Literal

import pytest

from statemachine_trainer import Loop, RunFolder
from statemachine_trainer.control.ownership import FolderInUse
from statemachine_trainer.files import read_regular
from statemachine_trainer.machine import Driver
from statemachine_trainer.observe import read_blackbox
from statemachine_trainer.observe import ring as ring_module
from statemachine_trainer.observe.blackbox import BlackBox, Ring, find_parting
from statemachine_trainer.observe.ring import ENTRY, BadRing, RingWriter, read_ring
from tests.observe.recorded import Net, batches, trainer
from tests.observe.running import train, training, wait_until


def only(folder: Path) -> Ring:
    (ring,) = read_blackbox(folder)
    return ring


def names(ring: Ring, last: int | None = None) -> list[tuple[str, str]]:
    return [(one.event, one.state.rpartition(".")[2]) for one in ring.entries(last)]


# -- a run of this process -------------------------------------------------------------------------


def test_the_transitions_of_a_run_are_those_that_its_moments_tell(tmp_path: Path) -> None:
    one, other = trainer(max_epochs=1), trainer(max_epochs=1, run=tmp_path)
    told = [(m.event, m.target) for m in one.moments(Net(), batches(), batches(1))]
    other.fit(Net(), batches(), batches(1))
    ring = only(tmp_path)
    assert ring.entries()[0][2:4] == ("(start)", "fit.fit_start")
    assert [(e.event, e.state) for e in ring.entries()[1:-1]] == told[:-1]
    assert ring.entries()[-1][2:] == ("fit_done", "(ended)", 8)
    assert [e.number for e in ring.entries()] == [*range(1, len(told) + 2)]
    assert ring.status == "ended"
    assert ring.state == "fit.fit_end"


def test_a_posted_event_is_told_by_its_name(tmp_path: Path) -> None:
    mine = trainer(max_epochs=1, run=tmp_path)
    mine.on("batch_end", lambda: mine.post("validate"), once=True)
    mine.fit(Net(), batches(), batches(1))
    found = names(only(tmp_path))
    # It is taken before the state that was to come, `fetch`, does its work.
    assert found[found.index(("batch_complete", "batch_end")) + 1] == (
        "validate",
        "validation_start",
    )


def test_an_evaluation_called_by_a_receiver_is_in_it_and_the_fit_comes_back(tmp_path: Path) -> None:
    mine = trainer(max_epochs=1, run=tmp_path)
    mine.on("epoch_end", lambda: mine.validate(data=batches(1)))
    mine.fit(Net(), batches(2), batches(1))
    states = [one.state for one in only(tmp_path).entries()]
    begun = states.index("validate.validation_start")
    back = states.index("fit.epoch.epoch_end", begun)
    assert states[back - 1] == "validate.validation_end"
    assert only(tmp_path).entries()[back].event == "(back)"


@pytest.mark.parametrize(
    "error, status", [(ValueError("no"), "failed"), (KeyboardInterrupt(), "stopped")]
)
def test_how_a_run_ends_is_in_it(tmp_path: Path, error: BaseException, status: str) -> None:
    def fail() -> None:
        raise error

    mine = trainer(run=tmp_path)
    mine.on("epoch_end", fail)
    with pytest.raises(type(error)):
        mine.fit(Net(), batches(2))
    assert only(tmp_path).status == status
    assert only(tmp_path).entries()[-1].event == type(error).__name__


def test_a_pause_is_told_and_so_is_going_on(tmp_path: Path) -> None:
    mine = trainer(max_epochs=1, run=tmp_path)
    mine.fit(Net(), batches(3), until="batch_end")
    assert only(tmp_path).status == "paused"
    mine.run()
    assert only(tmp_path).status == "ended"


def test_going_back_by_hand_is_no_event(tmp_path: Path) -> None:
    mine = trainer(max_epochs=1, run=tmp_path)
    mine.start(Net(), batches(4))
    mine.remember(at="batch_start")
    mine.run(until="batch_end")
    mine.rewind(3)
    mine.step()
    assert names(only(tmp_path))[-2:] == [("(moved)", "batch_start"), ("(no event)", "(paused)")]
    mine.run()
    assert only(tmp_path).entries()[-1].step == 4


def test_a_fit_that_begins_anew_in_the_same_process_begins_a_new_black_box(tmp_path: Path) -> None:
    mine = trainer(max_epochs=1, run=tmp_path)
    mine.fit(Net(), batches(3), until="batch_end")
    mine.fit(Net(), batches(2), restart=True)
    ring = only(tmp_path)
    assert ring.entries()[0].event == "(start)"
    assert ring.entries()[-1].step == 2
    (earlier,) = read_blackbox(tmp_path, earlier=True)
    assert earlier.status == "paused"


def test_a_new_run_keeps_the_black_box_of_the_one_before(tmp_path: Path) -> None:
    for steps in (2, 3):
        trainer(max_epochs=1, run=tmp_path).fit(Net(), batches(steps))
    assert only(tmp_path).entries()[-1].step == 3
    (earlier,) = read_blackbox(tmp_path, earlier=True)
    assert earlier.entries()[-1].step == 2


def test_only_as_many_transitions_are_kept_as_there_is_room_for(tmp_path: Path) -> None:
    mine = trainer(max_epochs=1)
    mine.start(Net(), batches(50))
    BlackBox(tmp_path, [mine.driver], capacity=16)
    mine.run()
    ring = only(tmp_path)
    assert len(ring) == 15  # all but the oldest, which the next one may be writing over
    assert (ring.path.stat().st_size - 65536) == 16 * ENTRY.size
    assert [one.number for one in ring.entries(3)] == [e.number for e in ring.entries()][-3:]


def test_states_that_a_swap_brings_in_have_their_names(tmp_path: Path) -> None:
    from statemachine_trainer.loops import ValidationLoop

    class Twice(ValidationLoop):
        def validation_extra(self) -> Literal["extra_done"]:
            return "extra_done"

        transitions = (
            *(row for row in ValidationLoop.transitions if "validation_end" not in row),
            ["exhausted", "validation_fetch", "validation_extra"],
            ["extra_done", "validation_extra", "validation_end"],
        )

    mine = trainer(max_epochs=2, run=tmp_path)
    mine.on("epoch_end:exit", lambda: mine.loop.epoch.replace(validation=Twice()), once=True)
    mine.fit(Net(), batches(2), batches(1))
    assert ("exhausted", "validation_extra") in names(only(tmp_path))


class Odd(Loop):
    """Answers with something that is no event."""

    initial = "odd"
    transitions = ()
    outcomes = ("done",)

    def odd(self) -> Literal["done"]:
        return []  # type: ignore[return-value]


def test_an_answer_that_is_no_event_stays_the_error_of_the_state(tmp_path: Path) -> None:
    from statemachine_trainer.machine.errors import UnexpectedEvent

    driver = Driver(Odd())
    BlackBox(tmp_path, [driver])
    driver.start()
    with pytest.raises(UnexpectedEvent):
        driver.run()
    assert len(only(tmp_path)) == 1


def test_without_a_folder_or_if_it_is_not_wanted_there_is_none(tmp_path: Path) -> None:
    trainer(max_epochs=1, run=RunFolder(tmp_path, blackbox=False)).fit(Net(), batches(1))
    trainer(max_epochs=1, checkpoints=tmp_path / "c", run=False).fit(Net(), batches(1))
    assert read_blackbox(tmp_path) == read_blackbox(tmp_path / "c") == []


def test_a_folder_that_cannot_hold_one_does_not_harm_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "blackbox-0.ring.new").mkdir()
    with caplog.at_level(logging.WARNING):
        trainer(max_epochs=1, run=tmp_path).fit(Net(), batches(1))
    assert "There is no black box of this run" in caplog.text


# -- the file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [3, 4, 7])
def test_whatever_was_stored_of_an_entry_at_the_death_of_its_process_the_others_are_whole(
    tmp_path: Path, capacity: int
) -> None:
    path = tmp_path / "blackbox-0.ring"
    ring = RingWriter(path, {}, capacity=capacity)
    state = ring.name("state")
    for number in range(1, 4 * capacity):
        before = bytes(ring.memory)
        ring.write(number, state, state)
        after = bytes(ring.memory)
        changed = [
            at for at in range(0, len(after), 4) if before[at : at + 4] != after[at : at + 4]
        ]
        for killed_at in changed:  # the laps lie before the entries, as they are stored
            path.write_bytes(after[:killed_at] + before[killed_at:])
            found = [(one.number, one.step) for one in read_ring(path).entries]
            kept = range(max(1, number - capacity + 1), number)
            assert found == [(each, each) for each in kept], (number, killed_at)
        path.write_bytes(after)
        assert read_ring(path).entries[-1].number == number


def test_times_of_entries_are_those_of_the_day_in_every_lap(tmp_path: Path) -> None:
    path = tmp_path / "blackbox-0.ring"
    ring = RingWriter(path, {}, capacity=4)
    begun = time.time_ns()
    for step in range(30):
        ring.write(step, 0, 0)
    times = [one.time for one in read_ring(path).entries]
    assert times == sorted(times)
    assert begun - 1_000_000 <= times[0] <= times[-1] <= time.time_ns() + 1_000_000


def test_what_changes_while_a_ring_is_read_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "blackbox-0.ring"
    ring = RingWriter(path, {}, capacity=8)
    for step in range(1, 21):
        ring.write(step, 0, 0)

    def read_and_write_on(path: Path, longest: int) -> bytes:
        found = read_regular(path, longest)
        ring.write(21, 0, 0)
        ring.write(22, 0, 0)
        return found

    monkeypatch.setattr(ring_module, "read_regular", read_and_write_on)
    assert [one.step for one in read_ring(path).entries] == [15, 16, 17, 18, 19, 20]


def test_a_file_that_is_something_else_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "blackbox-0.ring"
    RingWriter(path, {"pid": 1})
    whole = path.read_bytes()
    for damaged in (b"", b"text", whole[:5000], whole.replace(b'"capacity"', b'"cap"')):
        path.write_bytes(damaged)
        with pytest.raises(BadRing, match=r"blackbox-0\.ring is not a black box"):
            read_blackbox(tmp_path)


def test_names_beyond_the_room_for_them_cost_their_name_only(tmp_path: Path) -> None:
    path = tmp_path / "blackbox-0.ring"
    ring = RingWriter(path, {}, capacity=4)
    long = [ring.name(f"{number}" * 5000) for number in range(30)]
    ring.write(1, long[-1], ring.name("odd\nname"))
    found = read_ring(path)
    assert found.names[found.entries[0].state] == "(no room for its name)"
    assert len(set(long)) > 3


# -- other processes -------------------------------------------------------------------------------


def test_after_sigkill_the_last_transitions_are_there(tmp_path: Path) -> None:
    assert train(tmp_path, "kill", step=12) == -9
    ring = only(tmp_path)
    assert (ring.alive, ring.status) == (False, "killed")
    # It was killed by a receiver of `batch_end`, before that state began its work.
    assert ring.state == "fit.epoch.batch.batch_split"
    assert names(ring, 2) == [("backward_done", "optimizer_step"), ("optimized", "batch_split")]
    assert ring.entries()[-1].step == 12


def test_a_run_that_hangs_is_read_from_outside_while_it_hangs(tmp_path: Path) -> None:
    def hangs() -> bool:
        ring = only(tmp_path) if (tmp_path / "reached-0").exists() else None
        forward = ring is not None and ring.state == "fit.epoch.batch.optimizer.forward"
        return ring is not None and forward and (ring.seconds or 0) > 0.3

    with training(tmp_path, "hang", step=12) as process:
        wait_until(hangs)
        ring = only(tmp_path)
        assert (ring.alive, ring.status, ring.pid) == (True, "running", process.pid)
        assert ring.entries()[-1].step == 12
        again = only(tmp_path)
        assert again.since == ring.since
        assert (again.seconds or math.inf) > (ring.seconds or 0) > 0.3
    assert only(tmp_path).status == "killed"


def test_a_run_that_hangs_in_a_receiver_is_told_by_the_name_of_that(tmp_path: Path) -> None:
    def hangs() -> bool:
        return (tmp_path / "reached-0").exists() and only(tmp_path).receiver is not None

    with training(tmp_path, "hang in a receiver", step=12) as process:
        wait_until(hangs)
        ring = only(tmp_path)
        assert (ring.status, ring.pid) == ("running", process.pid)
        assert ring.receiver is not None
        assert ring.receiver.name.endswith("happen")
        assert ring.receiver.since >= (ring.since or ring.receiver.since)
        assert ring.state == "fit.epoch.batch.batch_split"  # it was left for `batch_end`
    killed = only(tmp_path)
    assert killed.status == "killed"
    assert killed.receiver == ring.receiver


def test_a_receiver_that_has_returned_or_raised_is_in_it_no_more(tmp_path: Path) -> None:
    mine = trainer(run=tmp_path, max_epochs=1)
    inside: list[str | None] = []

    def name_of_receiver() -> str | None:
        receiver = only(tmp_path).receiver
        return None if receiver is None else receiver.name.rpartition(".")[2]

    @mine.on("epoch_start")
    def outer(one: Any) -> None:
        one.validate(data=batches(1))
        inside.append(name_of_receiver())

    @mine.on("validate.validation_start")
    def inner() -> None:
        inside.append(name_of_receiver())

    @mine.on("epoch_end")
    def raising() -> None:
        inside.append(name_of_receiver())
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        mine.fit(Net(), batches(2), batches(1))
    assert inside == ["inner", "outer", "raising"]
    assert only(tmp_path).receiver is None


def test_a_folder_in_which_another_process_is_running_is_refused(tmp_path: Path) -> None:
    with training(tmp_path, "hang", step=12) as process:
        wait_until((tmp_path / "reached-0").exists)
        before = (tmp_path / "blackbox-0.ring").read_bytes()[:2000]
        with pytest.raises(FolderInUse, match=rf"Process {process.pid} is running in .*smt post"):
            trainer(run=tmp_path).fit(Net(), batches())
        assert (tmp_path / "blackbox-0.ring").read_bytes()[:2000] == before
    trainer(run=tmp_path).fit(Net(), batches())  # it is gone


def test_ranks_that_part_are_found_at_the_first_transition_that_differs(tmp_path: Path) -> None:
    with training(tmp_path, "go", rank=0) as one, training(tmp_path, "part", rank=1) as other:
        assert one.wait(100) == other.wait(100) == 0
    rings = read_blackbox(tmp_path)
    assert [ring.rank for ring in rings] == [0, 1]
    parting = find_parting(rings)
    assert parting is not None
    assert parting.entries[0].state == "fit.epoch.fetch"
    assert parting.entries[1].state == "fit.epoch.validation.validation_start"
    assert {one.step for one in parting.entries.values()} == {12}


def test_ranks_that_do_the_same_have_not_parted_even_if_one_is_behind(tmp_path: Path) -> None:
    with training(tmp_path, "go", rank=0) as one, training(tmp_path, "kill", rank=1) as other:
        assert (one.wait(100), other.wait(100)) == (0, -9)
    rings = read_blackbox(tmp_path)
    assert [ring.status for ring in rings] == ["ended", "killed"]
    assert len(rings[0]) > len(rings[1]) + 20
    assert find_parting(rings) is None


def test_a_later_run_with_fewer_processes_shows_no_black_box_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(**environment: Any) -> None:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            trainer(max_epochs=1, run=tmp_path).fit(Net(), batches(1))

    run(RANK="0", WORLD_SIZE="2")
    run(RANK="1", WORLD_SIZE="2")
    assert [ring.rank for ring in read_blackbox(tmp_path)] == [0, 1]
    run()
    assert [ring.rank for ring in read_blackbox(tmp_path)] == [0]
