"""Hypothesis strategies for random training set-ups.

@given(setups())
def test_my_loop_can_be_resumed(setup):
    assert_resumable(setup.make_trainer, examples=2, seed=0)
"""

from __future__ import annotations

from statemachine_trainer.testing.setups import Data, Optimization, Schedule, Setup
from statemachine_trainer.testing.testing_errors import HypothesisMissing

try:
    from hypothesis import strategies as st
except ImportError:
    raise HypothesisMissing(
        "statemachine_trainer.testing.strategies are strategies for hypothesis, which is not "
        "installed: `pip install hypothesis`."
    ) from None

__all__ = ["Setup", "setups", "validation_intervals"]


def validation_intervals() -> st.SearchStrategy[list[object] | None]:
    """Intervals of every unit that does not follow the clock, as `Setup` has them."""
    return st.one_of(
        st.none(),
        st.tuples(st.integers(1, 5), st.just("batch")).map(list),
        st.tuples(st.integers(1, 4), st.just("step")).map(list),
        st.tuples(st.integers(1, 2), st.just("epoch")).map(list),
        st.tuples(st.sampled_from([0.25, 0.3, 0.5, 1.0]), st.just("epoch")).map(list),
    )


@st.composite
def setups(draw: st.DrawFn, *, workers: bool = False) -> Setup:
    """Random training set-ups: models, optimizers, schedulers, data, intervals, limits, callbacks.

    They train small networks for a few epochs of a few batches, in a fraction of a second.

    Args:
        draw: Given by hypothesis.
        workers: Whether some have workers, which are slow.
    """
    kind = draw(st.sampled_from(["plain", "plain", "recurrent", "two", "manual", "lbfgs"]))
    optimization = draw(st.sampled_from(_OPTIMIZATIONS[kind]))
    data: Data = draw(
        st.sampled_from(["map", "map", "sampler", "list", "stream", "stateful stream"])
    )
    sized = data in ("map", "sampler", "list")
    interval = draw(validation_intervals())
    if interval is not None and isinstance(interval[0], float) and not sized and interval[0] < 1.0:
        interval = [1.0, "epoch"]  # a fraction of an epoch needs its length
    some_workers = workers and data in ("map", "sampler") and draw(st.integers(0, 9)) == 9
    return Setup(
        optimization=optimization,
        schedule=draw(st.sampled_from(_SCHEDULES)) if kind != "manual" else "none",
        accumulate=draw(_windows()) if kind in ("plain", "recurrent", "two") else None,
        split_steps=draw(st.sampled_from([2, 4])) if kind == "recurrent" else None,
        validate_every=interval,
        validation_loaders=draw(st.sampled_from([1, 1, 0, 2])),
        sanity_batches=draw(st.sampled_from([0, 0, 1, 2])),
        data=data,
        samples=draw(st.sampled_from([15, 20, 22])),
        augment=draw(st.booleans()),
        workers=2 if some_workers else 0,
        norm=draw(st.booleans()),
        dropout=draw(st.booleans()),
        precision=draw(st.sampled_from(["32", "32", "bf16"])),
        clip_norm=draw(st.sampled_from([None, 0.5])) if kind != "manual" else None,
        nan_at=draw(st.sampled_from([None, None, 1])) if kind in ("plain", "two") else None,
        gather_outputs=draw(st.booleans()),
        stateful_callback=draw(st.booleans()),
        stop_at=draw(st.sampled_from([None, None, 2, 5])),
        max_epochs=draw(st.sampled_from([2, 3])),
        max_steps=draw(st.sampled_from([None, None, 3, 5])),
        seed=draw(st.sampled_from([None, 0, 3])),
        seed_samples=draw(st.sampled_from([None, None, True])),
    )


_OPTIMIZATIONS: dict[str, list[Optimization]] = {
    "plain": ["sgd", "momentum", "adam"],
    "recurrent": ["sgd", "adam"],
    "two": ["two", "frequencies"],
    "manual": ["manual"],
    "lbfgs": ["lbfgs"],
}
_SCHEDULES: list[Schedule] = [
    "none", "step", "multistep", "epoch", "plateau", "onecycle", "restarts", "lambda", "sequential",
]  # fmt: skip


def _windows() -> st.SearchStrategy[list[tuple[int, int]] | None]:
    return st.sampled_from([None, None, [(0, 2)], [(0, 3)], [(0, 1), (1, 3)]])
