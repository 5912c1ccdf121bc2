"""Whatever a model and its optimizer come to hold in the middle of a run is looked at under its name."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer.observe.fingerprint_file import KINDS, Kind
from statemachine_trainer.observe.state_leaves import StateLeaves


class Inner(nn.Module):
    """Has everything that is looked at: weights, a buffer, a tied weight, and a name for nothing."""

    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3, bias=False)
        self.third = nn.Linear(3, 3)
        self.third.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)
        self.register_parameter("nothing", None)
        self.register_buffer("count", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.norm(self.third(self.second(self.first(x))))
        return found


class Renaming(Inner):
    """Names its parameters in a way of its own, as wrappers do."""

    prefix_of_names = "a"

    def named_parameters(self, *given: Any, **named: Any) -> Iterator[tuple[str, nn.Parameter]]:
        for name, one in super().named_parameters(*given, **named):
            yield f"{self.prefix_of_names}.{name}", one


class State:
    """As much of a context as is looked at."""

    def __init__(self, model: nn.Module, make: Callable[[Any], torch.optim.Optimizer]) -> None:
        self.model = model
        self.optimizer = make(model.parameters())
        self.slots = [SimpleNamespace(optimizer=self.optimizer)]
        self.precision = SimpleNamespace(scaler=None)
        self.batch: object = (torch.ones(4, 3), torch.zeros(4))
        self.loss: torch.Tensor | None = None

    def step(self) -> None:
        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            self.loss = self.model(torch.ones(4, 3)).square().mean()
            self.loss.backward()
            return self.loss

        self.optimizer.step(closure)  # type: ignore[arg-type]


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.1)


def lbfgs(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(parameters, max_iter=2)


def seen(leaves: StateLeaves) -> dict[Kind, list[tuple[str, object]]]:
    leaves.begin()
    return {kind: [*zip(*leaves.of(kind), strict=True)] for kind in KINDS}


def assert_as_if_seen_first(state: Any, leaves: StateLeaves) -> None:
    """What is found again is what is found at the first look."""
    found, first = seen(leaves), seen(StateLeaves(state))
    for kind in KINDS:
        assert [name for name, _ in found[kind]] == [name for name, _ in first[kind]], kind
        for (name, one), (_, other) in zip(found[kind], first[kind], strict=True):
            assert one is other or one == other, name
    named = [name for name, one in state.model.named_parameters() if not nn.parameter.is_lazy(one)]
    assert [name for name, _ in found["weights"]] == named
    assert [name for name, _ in found["buffers"]] == [
        name for name, _ in state.model.named_buffers()
    ]


def replace(state: Any) -> None:
    state.model.second = nn.Linear(3, 3)


def replace_weight(state: Any) -> None:
    state.model.second.weight = nn.Parameter(torch.ones(3, 3))


def rename(state: Any) -> None:
    state.model.other = state.model._modules.pop("second")


def swap_names(state: Any) -> None:
    held = state.model._modules
    held["first"], held["second"] = held["second"], held["first"]


def untie(state: Any) -> None:
    state.model.third.weight = nn.Parameter(torch.ones(3, 3))


def tie(state: Any) -> None:
    state.model.second.weight = state.model.first.weight


def replace_buffer(state: Any) -> None:
    state.model.count = torch.ones(2)


def buffer_instead_of_parameter(state: Any) -> None:
    weight = state.model.second._parameters.pop("weight")
    state.model.second.register_buffer("weight", weight.detach())


def other_dict(state: Any) -> None:
    inner = state.model.second
    vars(inner)["_parameters"] = {"weight": nn.Parameter(torch.ones(3, 3))}


def freeze(state: Any) -> None:
    state.model.first.requires_grad_(False)
    state.model.first.weight.grad = None


def add_group(state: Any) -> None:
    state.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 0.5})


def set_rate(state: Any) -> None:
    state.optimizer.param_groups[0]["lr"] = 0.01


def lose_state(state: Any) -> None:
    state.optimizer.state.clear()


def load_state(state: Any) -> None:
    state.optimizer.load_state_dict(state.optimizer.state_dict())


def plain_state(state: Any) -> None:
    for one in state.optimizer.state.values():
        one["note"] = 3


def other_optimizer(state: Any) -> None:
    state.slots.append(SimpleNamespace(optimizer=torch.optim.SGD(state.model.parameters(), lr=0.1)))


def other_model(state: Any) -> None:
    state.model = Inner()


def parametrize(state: Any) -> None:
    nn.utils.parametrizations.weight_norm(state.model.second)


def make_lazy(state: Any) -> None:
    state.model.second = nn.LazyLinear(3)


def rename_itself(state: Any) -> None:
    state.model.prefix_of_names = "b"


def add_scale(state: Any) -> None:
    state.precision.scaler = SimpleNamespace(_scale=torch.ones(()))


def batch_of_names(state: Any) -> None:
    state.batch = {"x": torch.ones(2), "y": torch.zeros(2)}


def longer_batch(state: Any) -> None:
    state.batch = [torch.ones(2)] * 3


def nested_batch(state: Any) -> None:
    state.batch = {"x": [torch.ones(2), 3], 4: "text"}


def draw(state: Any) -> None:
    torch.rand(1)


CHANGES = [
    replace, replace_weight, rename, swap_names, untie, tie, replace_buffer,
    buffer_instead_of_parameter, other_dict, freeze, add_group, set_rate, lose_state, load_state,
    plain_state, other_optimizer, other_model, parametrize, make_lazy, rename_itself, add_scale,
    batch_of_names, longer_batch, nested_batch, draw,
]  # fmt: skip


@pytest.mark.parametrize("make", [adam, lbfgs])
@pytest.mark.parametrize("model", [Inner, Renaming])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_the_middle_is_seen(
    change: Callable[[Any], None], model: type[nn.Module], make: Any
) -> None:
    state: Any = State(model(), make)
    leaves = StateLeaves(state)
    assert_as_if_seen_first(state, leaves)
    state.step()
    for _ in range(2):
        assert_as_if_seen_first(state, leaves)
    change(state)
    for _ in range(2):
        assert_as_if_seen_first(state, leaves)


def test_a_lazy_weight_is_looked_at_once_it_has_a_shape() -> None:
    state: Any = State(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3)), adam)
    leaves = StateLeaves(state)
    assert_as_if_seen_first(state, leaves)
    state.model(torch.ones(4, 2))
    assert_as_if_seen_first(state, leaves)
    assert dict(seen(leaves)["weights"])["0.weight"] is state.model[0].weight


def test_what_a_run_lets_go_of_is_freed() -> None:
    state: Any = State(Inner(), adam)
    leaves = StateLeaves(state)
    state.step()
    for _ in range(2):
        seen(leaves)
    leaves.end()
    held = state.model.second.weight, state.optimizer.state[state.model.second.weight]["exp_avg"]
    freed = [weakref.ref(one) for one in held]
    del held
    state.model, state.optimizer, state.slots, state.loss = None, None, [], None
    gc.collect()
    assert [one() for one in freed] == [None, None]
