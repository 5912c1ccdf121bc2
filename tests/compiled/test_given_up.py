"""What the loop costs once it has given up: one call more than the optimizer loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch

from statemachine_trainer.loops.compiled import CompiledStep
from statemachine_trainer.loops.optimizer import OptimizerLoop
from statemachine_trainer.trainer import Trainer
from tests.counting import counting_calls
from tests.performance.test_call_counts import Batch, Classifier

_PACKAGE = "statemachine_trainer."


class Deciding(Classifier):
    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss if loss.item() > -1 else -loss


class Counted:
    """Batches; counts the calls that are made from one of the later ones to another."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Batch]:
        with ExitStack() as counting:
            for number in range(20):
                if number == 5:
                    counting.enter_context(counting_calls(self.seen))
                if number == 15:
                    counting.close()
                yield torch.ones(8, 32), torch.ones(8, dtype=torch.long)


def calls_of_ten_steps(loop: OptimizerLoop, model: Classifier) -> int:
    trainer = Trainer(max_epochs=1, device="cpu", progress=False)
    trainer.loop["optimizer"] = loop
    batches = Counted()
    trainer.fit(model, batches)
    # Torch wraps methods of optimizers in a process that has compiled something.
    ours = (number for name, number in batches.seen.items() if name.startswith(_PACKAGE))
    return sum(ours)


@pytest.mark.filterwarnings("ignore:CompiledStep does as OptimizerLoop")
def test_a_step_that_is_not_compiled_makes_one_call_more() -> None:
    loop = CompiledStep(backend="eager")
    calls = calls_of_ten_steps(loop, Deciding())
    assert loop.eager is not None
    # The state `compiled_step`.
    assert calls == calls_of_ten_steps(OptimizerLoop(), Deciding()) + 10
