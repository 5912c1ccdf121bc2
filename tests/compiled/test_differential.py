"""Runs drawn at random come to the same with the compiled step as with the optimizer loop."""

from __future__ import annotations

import pytest

from tests.compiled.differential import draw, mistakes, shrink
from tests.compiled.subjects import Plan

CORPUS = {
    "a generator of Python that the step has for itself": Plan(("draws_dice",)),
    "layers exchanged": Plan(optimizer="adam", changes=((4, "exchange"),)),
    "a layer replaced, and the optimizer told": Plan(
        optimizer="adam", changes=((4, "replace_head"),)
    ),
    "a parameter of one element replaced by an equal one": Plan(
        optimizer="momentum", changes=((4, "replace_single"),)
    ),
    "parameters tied": Plan(changes=((4, "tie"),)),
    "a hook on a gradient": Plan(changes=((4, "hook"),)),
    "a hook on a module": Plan(changes=((4, "hook_module"),)),
    "a gradient set between two windows": Plan(changes=((3, "single_gradient"),), accumulate=2),
    "a method of a class replaced": Plan(changes=((4, "patch_class"),)),
    "a function of torch replaced": Plan(changes=((4, "patch_torch"),)),
    "what a function of torch calls replaced": Plan(changes=((4, "patch_below"),)),
    "a method of tensors replaced": Plan(("adds_two",), changes=((4, "patch_tensor"),)),
    "how a layer is called replaced": Plan(("drops",), changes=((4, "patch_call"),)),
    "a part of a parameter kept": Plan(("keeps_view",)),
    "a part of a parameter logged": Plan(("logs_parts",)),
    "a learning rate logged": Plan(("logs_rate",), scheduled=True),
    "a sum, clipped": Plan(("sums", "adds_two"), clip_norm=0.05),
    "numbers of numpy": Plan(("draws_numpy",)),
    "an optimizer that counts": Plan(optimizer="counting"),
    "an optimizer that gives parameters other memory": Plan(optimizer="replacing"),
    "a step of an optimizer replaced": Plan(changes=((4, "patch_step"),)),
    "a method that it calls replaced": Plan(optimizer="adam", changes=((4, "patch_method"),)),
    "a function that it calls replaced": Plan(changes=((4, "patch_optim"),)),
    "a receiver that halves gradients, subscribed later": Plan(changes=((4, "subscribe"),)),
}
"""What was found once."""

CHUNK = 50


pytestmark = pytest.mark.usefixtures("exact")


@pytest.mark.parametrize("plan", CORPUS.values(), ids=CORPUS.keys())
def test_what_was_found_once_stays_right(plan: Plan) -> None:
    assert mistakes(plan) == []


def _check(seeds: range) -> None:
    for seed in seeds:
        plan = draw(seed)
        if mistakes(plan):
            least = shrink(plan, lambda one: bool(mistakes(one)))
            pytest.fail(f"seed {seed}: {least}: {mistakes(least)}")


@pytest.mark.parametrize("first", [0, 12, 24])
def test_some_runs_come_to_the_same(first: int) -> None:
    _check(range(first, first + 3))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(2000 // CHUNK))
def test_two_thousand_runs_come_to_the_same(chunk: int) -> None:
    _check(range(chunk * CHUNK, (chunk + 1) * CHUNK))


def test_a_plan_is_made_smaller_as_long_as_it_fails() -> None:
    plan = Plan(("counts", "sums"), "adam", ((1, "factor"), (2, "hook")), accumulate=2)
    least = shrink(plan, lambda one: "sums" in one.habits and (2, "hook") in one.changes)
    assert least == Plan(("sums",), "sgd", ((2, "hook"),))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a sum, clipped", "layers exchanged"])
def test_so_it_is_with_the_compiler(name: str) -> None:
    assert mistakes(CORPUS[name], "inductor") == []
