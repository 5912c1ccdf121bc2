"""Small runs drawn at random, each done twice: by the optimizer loop, and by the compiled step.

A `Plan` says what is trained and what is changed meanwhile; it is data, so that one that fails can
be made smaller (`shrink`) and kept as a test. All is computed with 64 bits: rounding is far below
`TOLERANCE`, and whatever is above it is another computation.

    python -m tests.compiled.differential 0 200     # draw 200 plans, from seed 0
"""

from __future__ import annotations

import math
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from statemachine_trainer.loops.compiled import CompiledStep, NotCompiled
from statemachine_trainer.loops.compiled.compiling import Backend
from statemachine_trainer.trainer import Trainer
from tests.compiled.subjects import CHANGES, HABITS, OPTIMIZERS, Block, Plan, Subject, restore

TOLERANCE = 1e-9
"""Of all that is compared, relative and absolute, with 64 bits."""

BATCHES = 9


def draw(seed: int) -> Plan:
    """Draw a plan."""
    rng = random.Random(seed)
    changes = [
        (rng.randint(1, 6), rng.choice(sorted(CHANGES))) for _ in range(rng.choice([0, 1, 1, 2, 3]))
    ]
    return Plan(
        habits=tuple(rng.sample(sorted(HABITS), rng.choice([0, 1, 1, 2, 2, 3]))),
        optimizer=rng.choice(sorted(OPTIMIZERS)),
        changes=tuple(sorted(changes)),
        accumulate=rng.choice([1, 1, 1, 2, 3]),
        clip_norm=rng.choice([None, None, 0.05]),
        clip_value=rng.choice([None, None, None, 0.01]),
        scheduled=rng.random() < 0.3,
    )


# -- comparing ------------------------------------------------------------------------------------


@dataclass
class Result:
    """What a run came to."""

    values: dict[str, Any]
    error: str | None
    warned: list[str]
    loop: Any


def run(plan: Plan, *, compiled: bool, backend: Backend = "eager") -> Result:
    """Carry out a plan."""
    work = Block.work
    random.seed(0)
    np.random.seed(0)
    trainer = Trainer(
        max_epochs=1, device="cpu", progress=False, accumulate=plan.accumulate,
        clip_norm=plan.clip_norm, clip_value=plan.clip_value,
    )  # fmt: skip
    if compiled:
        loop = trainer.loop["optimizer"]
        trainer.loop["optimizer"] = CompiledStep(
            accumulate=plan.accumulate,
            clip_norm=loop.clip_norm,
            clip_value=loop.clip_value,
            backend=backend,
        )
    model = Subject(plan)
    done: set[int] = set()

    def change(trainer: Trainer) -> None:
        for number, (step, name) in enumerate(plan.changes):
            if step <= trainer.steps and number not in done:
                done.add(number)
                CHANGES[name](trainer, model, trainer.context.slots[0].optimizer)

    change.reads_gradients = False  # type: ignore[attr-defined]  # its changes may name them
    trainer.on("batch_end", change)
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator))
        for _ in range(BATCHES * plan.accumulate)
    ]
    torch.manual_seed(1)
    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.fit(model, batches)
        except Exception as raised:
            error = type(raised).__name__
        finally:
            Block.work = work  # type: ignore[method-assign]
            restore()
    values = {
        **{f"weight {k}": v.detach().clone() for k, v in model.state_dict().items()},
        **{f"metric {k}": v for k, v in trainer.metrics.items()},
        **_state(model),
        "steps": trainer.steps,
        "calls": model.calls,
        "history": str(model.history),
        "kept": None if model.kept is None else model.kept.clone(),
        "random": (random.random(), np.random.rand(), float(torch.rand(()))),
        "own random": (model.dice.random(), float(torch.rand((), generator=model.generator))),
        "batches": torch.cat([one.flatten() for batch in batches for one in batch]),
    }
    told = [str(one.message) for one in caught if one.category is NotCompiled]
    return Result(values, error, told, trainer.loop["optimizer"])


def _state(model: Subject) -> dict[str, Any]:
    found = {}
    for optimizer in getattr(model, "optimizers", []):
        for number, state in enumerate(optimizer.state.values()):
            for key, value in state.items():
                found[f"state {number} {key}"] = value
    return found


def mistakes(plan: Plan, backend: Backend = "eager", tolerance: float = TOLERANCE) -> list[str]:
    """Carry out a plan in both ways, and return what differs."""
    return compare(plan, backend, tolerance)[0]


def compare(plan: Plan, backend: Backend, tolerance: float) -> tuple[list[str], str]:
    """Carry out a plan in both ways; return what differs, and how far the step was compiled."""
    eager, compiled = run(plan, compiled=False), run(plan, compiled=True, backend=backend)
    if eager.error != compiled.error:
        return [f"error: {eager.error} without, {compiled.error} with"], "wrong"
    if eager.error is not None:
        return [], "an error in both"
    found = []
    for name in sorted(eager.values.keys() | compiled.values.keys()):
        one, other = eager.values.get(name), compiled.values.get(name)
        if not _alike(one, other, tolerance):
            found.append(f"{name}: {_short(one)} without, {_short(other)} with")
    return found, "wrong" if found else _how_far(compiled)


def _how_far(compiled: Result) -> str:
    if compiled.loop.eager is not None:
        return "given up, told" if compiled.warned else "given up, untold"
    if compiled.loop.apart:
        return "compiled but for the optimizer"
    return "compiled" if compiled.loop.graphs else "not compiled"


def _alike(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.allclose(
            one.double(), other.double(), rtol=tolerance, atol=tolerance, equal_nan=True
        )
    if isinstance(one, float) and isinstance(other, float):
        are_nan = math.isnan(one) and math.isnan(other)
        return are_nan or math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    return bool(one == other)


def _short(value: Any) -> str:
    return " ".join(str(value).split())[:60]


# -- making smaller -------------------------------------------------------------------------------


def shrink(plan: Plan, fails: Callable[[Plan], bool]) -> Plan:
    """Return the smallest plan that still fails, by leaving out one thing after the other."""
    while True:
        for smaller in _smaller(plan):
            if fails(smaller):
                plan = smaller
                break
        else:
            return plan


def _smaller(plan: Plan) -> Iterator[Plan]:
    for name in ("changes", "habits"):
        many = getattr(plan, name)
        for place in range(len(many)):
            yield replace(plan, **{name: many[:place] + many[place + 1 :]})
    plain = Plan()
    for one in fields(plan):
        if one.name not in ("changes", "habits") and getattr(plan, one.name) != getattr(
            plain, one.name
        ):
            yield replace(plan, **{one.name: getattr(plain, one.name)})


def main(first: int, count: int, backend: Backend = "eager") -> None:
    """Draw plans, and print what was found."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    kinds: Counter[str] = Counter()
    for seed in range(first, first + count):
        plan = draw(seed)
        found, kind = compare(plan, backend, TOLERANCE)
        kinds[kind] += 1
        if found:
            least = shrink(plan, lambda one: bool(mistakes(one, backend)))
            print(seed, least, mistakes(least, backend)[:3], flush=True)
        if not (seed + 1) % 100:
            print(seed + 1, dict(kinds), flush=True)
    print(dict(kinds))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])  # type: ignore[arg-type]
