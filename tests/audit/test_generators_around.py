"""Generators that lie beside the objects of a fit: in hooks, context variables, threads, sequences of seeds."""

from __future__ import annotations

import contextvars
import itertools
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from statemachine_trainer import Trainer
from statemachine_trainer.audit.report import NotHeld
from statemachine_trainer.snapshot.generators import make, put, state_of
from statemachine_trainer.snapshot.search import Search

VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("VARIABLE")
LOCAL = threading.local()
BATCHES = [(torch.ones(2, 2), torch.ones(2, 1))] * 2


def paths(thing: object) -> list[str]:
    return [*Search({"model": thing}).places]


def test_of_a_context_variable() -> None:
    VARIABLE.set(random.Random(0))
    assert paths(lambda: VARIABLE.get().random()) == [f"global {__name__}.VARIABLE.get()"]


DEFAULT = contextvars.ContextVar("DEFAULT", default=random.Random(0))  # noqa: B039


def test_of_the_default_of_a_context_variable() -> None:
    assert paths(lambda: DEFAULT.get().random()) == [f"global {__name__}.DEFAULT.get()"]


def test_under_the_identity_of_an_object_which_is_another_in_each_process() -> None:
    module = nn.Linear(1, 1)
    module.by_owner = {id(module): random.Random(0)}  # type: ignore[assignment]
    assert paths(module) == ["model.by_owner[#0]"]


def test_of_this_thread() -> None:
    LOCAL.rng = random.Random(0)
    assert paths(lambda: LOCAL.rng.random()) == [f"global {__name__}.LOCAL.rng"]


def test_of_hooks_on_parameters() -> None:
    rng, other, module = random.Random(0), random.Random(1), nn.Linear(1, 1)
    module.weight.register_hook(lambda grad: grad * rng.random())
    module.bias.register_post_accumulate_grad_hook(lambda _: setattr(module, "x", other.random()))
    assert paths(module) == [
        "model.weight._backward_hooks[0](rng)",
        "model.bias._post_accumulate_grad_hooks[0](other)",
    ]


def test_of_attributes_of_parameters() -> None:
    module = nn.Linear(1, 1)
    module.weight.noise = random.Random(0)  # type: ignore[attr-defined]
    assert paths(module) == ["model.weight.noise"]


def test_of_hooks_on_all_modules() -> None:
    rng = random.Random(0)

    def draw(*_: object) -> None:
        rng.random()

    hook = nn.modules.module.register_module_forward_hook(draw)
    try:
        trainer = Trainer(max_epochs=1, progress=False)
        held = trainer.audit(nn.Linear(2, 1), BATCHES, loss=nn.MSELoss(), optimizer=_sgd).of("held")
    finally:
        hook.remove()
    assert [one.path for one in held] == ["torch.nn.modules.module._global_forward_hooks[0](rng)"]


def test_what_a_sequence_of_seeds_has_spawned_is_counted() -> None:
    seeds, again = np.random.SeedSequence(3), np.random.SeedSequence(3)
    seeds.spawn(2)
    put(again, state_of(seeds))
    made = make("numpy.SeedSequence", state_of(seeds))
    assert isinstance(made, np.random.SeedSequence)
    after = seeds.spawn(1)[0].generate_state(2).tolist()
    assert again.spawn(1)[0].generate_state(2).tolist() == after
    assert made.spawn(1)[0].generate_state(2).tolist() == after
    assert paths([seeds]) == ["model[0]"]


def test_what_a_generator_has_spawned_is_counted() -> None:
    generator, again = np.random.default_rng(3), np.random.default_rng(3)
    generator.spawn(2)
    put(again, state_of(generator))
    assert again.spawn(1)[0].random() == generator.spawn(1)[0].random()


def test_states_of_earlier_versions_leave_what_was_spawned_alone() -> None:
    generator = np.random.default_rng(3)
    state = dict(generator.bit_generator.state)
    generator.spawn(2)
    put(generator, state)
    assert generator.bit_generator.seed_seq.n_children_spawned == 2  # type: ignore[attr-defined]


class Scheduled(nn.Module):
    """The learning rate follows from how often its function was called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.layer(batch[0]).sum()
        return loss

    def configure_optimizers(self) -> Any:
        calls = itertools.count(1)
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        scheduler = LambdaLR(optimizer, lambda _: 1 / next(calls))
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def test_an_iterator_in_the_function_of_a_scheduler_is_told(tmp_path: Path) -> None:
    trainer = Trainer(max_epochs=1, progress=False, checkpoints=tmp_path)
    with pytest.warns(
        NotHeld, match=r"scheduler LambdaLR\.lr_lambdas\[0\]\(calls\) is an iterator"
    ):
        trainer.fit(Scheduled(), BATCHES)


def test_an_iterator_in_a_hook_of_an_optimizer_is_told(tmp_path: Path) -> None:
    model, calls = nn.Linear(2, 1), itertools.count(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def count(*_: object) -> None:
        next(calls)

    optimizer.register_step_pre_hook(count)
    trainer = Trainer(max_epochs=1, progress=False, checkpoints=tmp_path)
    with pytest.warns(NotHeld, match=r"\(calls\) is an iterator"):
        trainer.fit(model, BATCHES, loss=nn.MSELoss(), optimizer=optimizer)


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.01)


class Jittering:
    """A schedule that draws from a generator of its own."""

    def __init__(self) -> None:
        self.rng = random.Random(0)

    def __call__(self, epoch: int) -> float:
        return self.rng.random()


def test_in_the_object_that_is_the_function_of_a_schedule(tmp_path: Path) -> None:
    def rates(epochs: int, resume: str | None) -> list[float]:
        trainer = Trainer(max_epochs=epochs, progress=False, checkpoints=tmp_path / "run")
        trainer.fit(
            nn.Linear(2, 1), BATCHES, loss=nn.MSELoss(), optimizer=_sgd,
            scheduler=lambda own: LambdaLR(own, Jittering()), resume=resume,
        )  # fmt: skip
        return [group["lr"] for group in trainer.context.optimizers[0].param_groups]

    rates(1, None)
    expected = Jittering()
    drawn = [expected(epoch) for epoch in range(4)]
    assert rates(3, "auto") == [0.01 * drawn[3]]
