"""The states of an evaluation loop are made from what its class declares."""

from __future__ import annotations

from typing import Literal, get_type_hints

from statemachine_trainer.loops import EvaluationLoop, PredictionLoop, ValidationLoop
from statemachine_trainer.machine.driver import Driver


class Probe(EvaluationLoop, states="probe", answer="probed", outcome="probing_done"):
    """Looks at every batch."""

    def evaluate(self) -> None:
        """Look at the batch.

        Nothing is kept.
        """


def test_a_class_that_names_its_states_is_a_loop_that_holds_together() -> None:
    assert Driver(Probe(), name="probe").machine is not None
    assert Probe.initial == "probe_start"
    assert [list(row) for row in Probe.transitions] == [
        ["probe_started", "probe_start", "probe_fetch"],
        ["fetched", "probe_fetch", "probe_step"],
        ["probed", "probe_step", "probe_fetch"],
        ["exhausted", "probe_fetch", "probe_end"],
    ]


def test_states_declare_their_answers_and_say_what_they_do() -> None:
    state = vars(Probe)["probe_step"]
    assert get_type_hints(state) == {"return": Literal["probed"]}
    assert state.__doc__ == "Look at the batch."
    ending = vars(Probe)["probe_end"]
    assert get_type_hints(ending) == {"return": Literal["probing_done"]}
    assert state.__qualname__ == "Probe.probe_step"


def test_a_state_that_the_class_writes_itself_stays() -> None:
    class Own(EvaluationLoop, states="own"):
        def own_end(self) -> Literal["own_done"]:
            """Do it differently."""
            return "own_done"

    assert vars(Own)["own_end"].__doc__ == "Do it differently."
    assert Driver(Own(), name="own").machine is not None


def test_subclasses_share_the_states_of_the_class_that_named_them() -> None:
    class Less(ValidationLoop):
        pass

    assert "validation_step" not in vars(Less)
    assert Less.transitions is ValidationLoop.transitions
    assert PredictionLoop.outcomes == ("predict_done",)
