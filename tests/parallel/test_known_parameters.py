"""The parameters of a model, as who asks in every batch gets them, are those that it has now."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from statemachine_trainer.parallel.wrappers import KnownParameters, PlainNames


def replaced(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(torch.zeros(2, 2))


def taken_out(model: nn.Sequential) -> None:
    model[0].register_parameter("bias", None)


def put_in(model: nn.Sequential) -> None:
    model.scale = nn.Parameter(torch.ones(1))


def other_module(model: nn.Sequential) -> None:
    model[2] = nn.Linear(2, 2)


def one_module_more(model: nn.Sequential) -> None:
    model.append(nn.Linear(2, 2))


def exchanged(model: nn.Sequential) -> None:
    model[0], model[2] = model[2], model[0]


def named_otherwise(model: nn.Sequential) -> None:
    model.last = model[2]
    del model[2]


def shared(model: nn.Sequential) -> None:
    model[2].weight = model[0].weight


def exchanged_within_a_module(model: nn.Sequential) -> None:
    model[0].weight, model[0].bias = model[0].bias, model[0].weight


@pytest.mark.parametrize(
    "change",
    [
        replaced, taken_out, put_in, other_module, one_module_more, exchanged, named_otherwise,
        shared, exchanged_within_a_module,
    ],
)  # fmt: skip
def test_a_change_of_the_model_is_followed(change: Callable[[nn.Sequential], None]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    known = KnownParameters()
    known.of(model)

    change(model)

    found, expected = known.of(model), [*PlainNames(model).parameters()]
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert all(ours is theirs for (_, ours), (_, theirs) in zip(found, expected, strict=True))


def test_a_module_that_is_in_itself_is_looked_at_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.__dict__["_modules"]["around"] = model

    assert [name for name, _ in KnownParameters().of(model)] == ["0.weight", "0.bias"]


def test_a_copy_knows_no_model() -> None:
    known = KnownParameters()
    known.of(nn.Linear(2, 2))

    assert vars(copy.deepcopy(known)) == vars(KnownParameters())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_those_of_a_scripted_model_are_known_too() -> None:
    model = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    known = KnownParameters()

    assert [name for name, _ in known.of(model)] == ["0.weight", "0.bias"]
    assert [name for name, _ in known.of(model)] == ["0.weight", "0.bias"]
