"""What a step that is compiled costs in calls of Python, and what is left of one whose turn is cut short."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from statemachine_trainer.loops.batch import BatchLoop
from statemachine_trainer.loops.compiled import CompiledStep
from statemachine_trainer.trainer import Trainer
from tests.compiled.test_coverage import OF_THE_TABLE
from tests.compiled.test_given_up import calls_of_ten_steps
from tests.performance.test_call_counts import Batch, Classifier

MOST_CALLS = 22
"""Python calls of this library in a step, those that look whether all is as it was when it was compiled included."""


@pytest.mark.skipif(not OF_THE_TABLE, reason="older versions of torch tell less in C")
def test_a_compiled_step_makes_few_python_calls() -> None:
    loop = CompiledStep(backend="eager")
    calls = calls_of_ten_steps(loop, Classifier())
    assert loop.eager is None
    assert calls <= 10 * MOST_CALLS


class Skipping(BatchLoop):
    """Leaves the optimizer loop where that is asked for from outside."""

    transitions = (  # type: ignore[assignment]
        *BatchLoop.transitions,
        ["skip", "optimizer", "batch_end"],
    )
    posted = ("skip",)


def test_a_turn_that_is_cut_short_after_the_call_leaves_nothing_to_the_next_one() -> None:
    """The next one is not compiled, and has to step the optimizer itself."""
    loop = CompiledStep(backend="eager")
    trainer = Trainer(max_epochs=1, device="cpu", progress=False)
    trainer.loop.replace(batch=Skipping)
    trainer.loop["optimizer"] = loop
    model = Classifier()
    weights: list[torch.Tensor] = []
    cut_short = []

    @trainer.on("compiled_step:exit")
    def skip(*_: Any, **__: Any) -> None:
        if loop.stepped and len(weights) == 3:
            trainer.post("skip")
            loop.eager = "as this test asks for"
            cut_short.append(len(weights))

    @trainer.on("batch_end")
    def keep(*_: Any, **__: Any) -> None:
        weights.append(next(model.parameters()).detach().clone())

    batch: Batch = (torch.ones(8, 32), torch.ones(8, dtype=torch.long))
    trainer.fit(model, [batch] * 6)
    assert cut_short == [3]
    assert trainer.steps == 5  # the step that was cut short is not counted
    assert not any(torch.equal(one, other) for one, other in pairwise(weights))
