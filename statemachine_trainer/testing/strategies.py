"""Hypothesis strategies for random training set-ups.

@given(setups())
def test_my_loop_can_be_resumed(setup):
    assert_resumable(setup.make_trainer, examples=2, seed=0)
"""

from __future__ import annotations

import itertools
from typing import Any

from statemachine_trainer.testing.pairwise import CHANGES, TREES
from statemachine_trainer.testing.setups import (
    Data,
    Optimization,
    Place,
    Schedule,
    Setup,
    Swap,
    Tree,
)
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
def setups(
    draw: st.DrawFn,
    *,
    workers: bool = False,
    compiled: bool = False,
    changed: bool = False,
    trees: bool = False,
) -> Setup:
    """Random training set-ups: models, optimizers, schedulers, data, intervals, limits, callbacks.

    Loops are swapped in some, a callback posts events or sets something, a generator of its own
    lies somewhere. They train small networks for a few epochs of a few batches, in a fraction of a
    second.

    Args:
        draw: Given by hypothesis.
        workers: Whether some have workers, before the stop or after it, which are slow.
        compiled: Whether some have a compiled model, which is slow.
        changed: Whether each has another setting where the run goes on (`Setup.later`). Such a run is not
            the one that was never stopped: compare it to one in which the setting was made on the way.
        trees: Whether each is in a recipe around a fit: k-fold, active learning or phases.
    """
    tree = draw(st.sampled_from(_TREES)) if trees else None
    kinds = ["plain", "plain", "recurrent", "two", "manual", "lbfgs"] if tree is None else ["plain"]
    kind = draw(st.sampled_from(kinds))
    optimization = draw(st.sampled_from(_OPTIMIZATIONS[kind]))
    data: Data = draw(st.sampled_from(_DATA if tree is None else ["map"]))
    sized = data in ("map", "sampler", "list")
    interval = draw(validation_intervals())
    if interval is not None and isinstance(interval[0], float) and not sized and interval[0] < 1.0:
        interval = [1.0, "epoch"]  # a fraction of an epoch needs its length
    counts = [(0, 0)] * 7
    if workers and data in ("map", "sampler"):
        counts += [(2, 2), (0, 2), (2, 0)]
    before, after = draw(st.sampled_from(counts))
    places = _places(kind, data, workers=before + after > 0)
    if tree is not None:
        places = [one for one in places if one in TREES["own_generators"]]
    own = draw(st.sampled_from(places))
    drawn_in_forward = own in ("model", "attribute")
    compiles = compiled and not drawn_in_forward and draw(st.integers(0, 9)) == 9
    loaders = draw(st.sampled_from([1, 1, 0, 2] if tree is None else [1]))
    # An instance does not take over what the usual loop was given.
    swaps = [one for one in _SWAPS if kind != "recurrent" or one != "instance"]
    # Workers read ahead: a pass that is left early has given less than it has drawn.
    amid = before == after
    later: dict[str, Any] = {} if before == after else {"workers": after}
    given: dict[str, Any] = {
        "accumulate": draw(_windows()) if kind in ("plain", "recurrent", "two") else None,
        "clip_norm": draw(st.sampled_from([None, 0.5])) if kind != "manual" else None,
    }
    samples = draw(st.sampled_from([15, 20, 22]))
    posts = _posts(validates=loaders > 0, amid=amid)
    if data == "stateful stream" and samples % 5 == 0:
        # It keeps its place: ended after its last sample, it has none for the next epoch (EmptyLoader).
        posts = posts.filter(lambda drawn: (samples // 5, "end_epoch") not in drawn)
    if changed:
        name = draw(st.sampled_from(_changes(kind)))
        given[name], later[name] = CHANGES[name]
    return Setup(
        tree=tree,
        optimization=optimization,
        schedule=draw(st.sampled_from(_SCHEDULES)) if kind != "manual" else "none",
        split_steps=draw(st.sampled_from([2, 4])) if kind == "recurrent" else None,
        validate_every=interval,
        validation_loaders=loaders,
        sanity_batches=draw(st.sampled_from([0, 0, 1, 2])),
        data=data,
        samples=samples,
        augment=draw(st.booleans()),
        workers=before,
        later=later or None,
        norm=draw(st.booleans()),
        dropout=draw(st.booleans()),
        precision=draw(st.sampled_from(["32", "32", "bf16", *_SCALED.get(kind, ())])),
        compiled=compiles,
        swap=draw(st.sampled_from([*[None] * len(swaps), *swaps])),
        own_generators=own,
        posts=draw(st.one_of(st.none(), posts)),
        sets=draw(st.one_of(st.none(), _sets())),
        nan_at=draw(st.sampled_from([None, None, 1])) if kind in ("plain", "two") else None,
        gather_outputs=draw(st.booleans()),
        stateful_callback=draw(st.booleans()),
        stop_at=draw(st.sampled_from([None, None, 2, 5])) if amid else None,
        max_epochs=draw(st.sampled_from([2, 3])),
        max_steps=draw(st.sampled_from([None, None, 3, 5])) if amid else None,
        seed=draw(st.sampled_from([None, 0, 3])),
        seed_samples=True if before or after else draw(st.sampled_from([None, None, True])),
        **given,
    )


_TREES: list[Tree] = ["kfold", "active", "phases"]
_DATA: list[Data] = ["map", "map", "sampler", "list", "stream", "stateful stream"]
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


def _changes(kind: str) -> list[str]:
    """Settings that can be changed: a loop by hand has none for steps, and LBFGS takes whole batches."""
    without = {"manual": ("accumulate", "clip_norm"), "lbfgs": ("accumulate",)}.get(kind, ())
    without = (*without, "patience")  # needs a validation in the first epoch; `pairwise` has it
    return [one for one in CHANGES if one not in without]


_SCALED: dict[str, tuple[str]] = dict.fromkeys(("plain", "recurrent", "two"), ("fp16",))
_SWAPS: list[Swap] = ["class", "instance", "twice", "nested", "nested twice"]
_EVENTS = ("validate", "end_epoch", "stop")
_SEQUENCES = [one for length in (1, 2, 3) for one in itertools.permutations(_EVENTS, length)]


def _places(kind: str, data: str, *, workers: bool) -> list[Place | None]:
    """Places of a generator that go with data; half of the draws have none."""
    found: list[Place] = ["model", "loss", "attribute", "callback", "receiver"]
    if kind != "manual":  # which steps its schedulers by hand
        found.append("scheduler")
    if data != "list":  # batches that are made already
        found += ["data", "transform"]
        # With workers it is made where they read: the same draws, but the state of another one.
        found += [] if workers else ["collate"]
    if data == "map":  # streams have no sampler, and "sampler" is one already
        found.append("sampler")
    return [*[None] * len(found), *found]


def _posts(*, validates: bool, amid: bool) -> st.SearchStrategy[Any]:
    """One, two or three different events at one batch, in any order.

    Args:
        validates: Whether there are data for `validate`.
        amid: Whether they may end a pass.
    """
    allowed = {"validate": validates, "end_epoch": amid, "stop": amid}
    sequences = [one for one in _SEQUENCES if all(allowed[event] for event in one)]
    if not sequences:
        return st.none()
    return st.tuples(st.integers(0, 6), st.sampled_from(sequences)).map(
        lambda drawn: [(drawn[0], event) for event in drawn[1]]
    )


def _sets() -> st.SearchStrategy[Any]:
    what = st.sampled_from(["rate", "decay", "weights", "frozen"])
    return st.tuples(st.integers(0, 6), what).map(lambda drawn: [drawn])
