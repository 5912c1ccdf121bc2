"""What torch does around `zero_grad`, `backward` and `step` is left out only where nobody would notice."""

from __future__ import annotations

import copy
import functools
import gc
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from statemachine_trainer.loops.bare_calls import clear_gradients, run_backward, take_step
from statemachine_trainer.trainer import Trainer
from tests.counting import counting_calls

AROUND = (
    "torch.autograd.profiler.record_function.__enter__",
    "torch.optim.optimizer.Optimizer.zero_grad",
    "torch._tensor.Tensor.backward",
)
"""Functions of torch that are called only when it is asked as usual."""

OPTIMIZERS: list[Callable[[Any], torch.optim.Optimizer]] = [
    functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    functools.partial(torch.optim.Adam, lr=0.01),
    functools.partial(torch.optim.AdamW, lr=0.01, foreach=True),
    functools.partial(torch.optim.AdamW, lr=0.01, fused=True),
    functools.partial(torch.optim.Adagrad, lr=0.1),
    functools.partial(torch.optim.RMSprop, lr=0.01, centered=True),
    functools.partial(torch.optim.Rprop, lr=0.01),
    functools.partial(torch.optim.NAdam, lr=0.01, capturable=False),
]


class Notes(list[str]):
    """What was called, in order."""

    def noting(self, name: str, answer: Any = None) -> Callable[..., Any]:
        def note(*args: Any, **kwargs: Any) -> Any:
            self.append(name)
            return answer

        return note


def make_pair(
    make: Callable[[Any], torch.optim.Optimizer] = OPTIMIZERS[0],
) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    return net, make(net.parameters())


def loss_of(net: nn.Module) -> Tensor:
    loss: Tensor = net(torch.linspace(-1, 1, 12).reshape(3, 4)).square().mean()
    return loss


def ours(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    loss = loss_of(net)
    clear_gradients(optimizer)
    run_backward(loss)
    take_step(optimizer)


def calls_around(net: nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    seen: Counter[str] = Counter()
    with counting_calls(seen):
        ours(net, optimizer)
    return {name for name in AROUND if seen[name]}


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_the_weights_are_those_of_the_usual_calls(
    make: Callable[[Any], torch.optim.Optimizer],
) -> None:
    net, optimizer = make_pair(make)
    twin, of_twin = make_pair(make)
    for _ in range(4):
        ours(net, optimizer)
        loss = loss_of(twin)
        of_twin.zero_grad()
        loss.backward()
        of_twin.step()
    assert all(map(torch.equal, net.parameters(), twin.parameters()))
    assert str(optimizer.state_dict()) == str(of_twin.state_dict())


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_this_version_of_torch_is_known_and_nothing_is_done_around_the_calls(
    make: Callable[[Any], torch.optim.Optimizer],
) -> None:
    assert calls_around(*make_pair(make)) == set()


def test_a_profile_has_the_labels_of_torch() -> None:
    net, optimizer = make_pair()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        ours(net, optimizer)
    names = {event.key for event in found.key_averages()}
    assert {"Optimizer.zero_grad#SGD.zero_grad", "Optimizer.step#SGD.step"} <= names
    assert calls_around(net, optimizer) == set()  # and not after it


def test_a_fit_has_the_labels_of_torch_in_its_profile() -> None:
    with profile(activities=[ProfilerActivity.CPU]) as found:
        Trainer(max_epochs=1, progress=False).fit(
            nn.Linear(2, 1),
            [(torch.ones(2, 2), torch.ones(2, 1))] * 2,
            loss=nn.functional.mse_loss,
            optimizer=functools.partial(torch.optim.SGD, lr=0.1),
        )
    labels = {event.key: event.count for event in found.key_averages()}
    assert labels["Optimizer.step#SGD.step"] == labels["Optimizer.zero_grad#SGD.zero_grad"] == 2


def test_hooks_of_one_optimizer_are_called() -> None:
    net, optimizer = make_pair()
    notes = Notes()
    before = optimizer.register_step_pre_hook(notes.noting("before"))
    ours(net, optimizer)
    optimizer.register_step_post_hook(notes.noting("after"))
    ours(net, optimizer)
    before.remove()
    ours(net, optimizer)
    assert notes == ["before", "before", "after", "after"]


@pytest.mark.parametrize(
    "register", [register_optimizer_step_pre_hook, register_optimizer_step_post_hook]
)
def test_hooks_of_all_optimizers_are_called(register: Callable[..., Any]) -> None:
    net, optimizer = make_pair()
    notes = Notes()
    hook = register(notes.noting("hook"))
    try:
        ours(net, optimizer)
    finally:
        hook.remove()
    ours(net, optimizer)
    assert notes == ["hook"]


def test_a_hook_may_change_the_arguments_of_the_step() -> None:
    net, optimizer = make_pair()
    loss = Notes()
    optimizer.register_step_pre_hook(lambda *_: ((optimizer, loss.noting("closure")), {}))
    ours(net, optimizer)
    assert loss == ["closure"]


@pytest.mark.parametrize("name", ["step", "zero_grad", "_optimizer_step_code"])
def test_what_was_replaced_in_one_optimizer_is_called(name: str) -> None:
    net, optimizer = make_pair()
    notes = Notes()
    setattr(optimizer, name, notes.noting(name))
    ours(net, optimizer)
    assert notes == [name]


@pytest.mark.parametrize("name", ["step", "zero_grad", "_optimizer_step_code"])
def test_what_a_class_overrides_is_called(name: str) -> None:
    notes = Notes()
    kind = type("Own", (torch.optim.SGD,), {name: notes.noting(name)})
    net, optimizer = make_pair(functools.partial(kind, lr=0.1))
    ours(net, optimizer)
    ours(net, optimizer)
    assert notes == [name, name]


def test_a_step_that_a_class_defines_keeps_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    net, optimizer = make_pair()
    notes = Notes()
    usual = torch.optim.SGD.step

    @functools.wraps(usual)  # it looks as if torch had made it
    def noted(*args: Any, **kwargs: Any) -> Any:
        notes.append("step")
        return usual(*args, **kwargs)

    ours(net, optimizer)
    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    ours(net, optimizer)
    assert notes == ["step"]


def test_a_step_that_cannot_be_a_key_is_called() -> None:
    class Unhashable:
        calls = 0
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, *args: Any) -> None:
            Unhashable.calls += 1

    net, optimizer = make_pair()
    optimizer.step = Unhashable()  # type: ignore[method-assign, assignment]
    ours(net, optimizer)
    kind = type("Own", (torch.optim.SGD,), {})
    net, optimizer = make_pair(functools.partial(kind, lr=0.1))
    kind.step = Unhashable()  # type: ignore[attr-defined]
    ours(net, optimizer)
    assert Unhashable.calls == 2


def test_a_scheduler_sees_that_its_optimizer_has_stepped() -> None:
    net, optimizer = make_pair()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert calls_around(net, optimizer) == set()
        scheduler.step()
    assert optimizer._opt_called is True  # type: ignore[attr-defined]


def test_a_copied_optimizer_steps_as_torch_lets_it() -> None:
    """The wrapper of a scheduler holds on to the first one, which is what steps in torch's own loop."""
    net, optimizer = make_pair()
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    ours(net, optimizer)
    copied = copy.deepcopy(optimizer)
    before = [one.clone() for group in copied.param_groups for one in group["params"]]
    loss_of(net).backward()
    take_step(copied)
    after = [one for group in copied.param_groups for one in group["params"]]
    assert all(map(torch.equal, before, after))


def test_a_second_wrapper_around_that_of_a_scheduler_is_called() -> None:
    net, optimizer = make_pair()
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    notes = Notes()
    inner = optimizer.step

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        notes.append("outer")
        return inner(*args, **kwargs)

    optimizer.step = outer  # type: ignore[method-assign]
    ours(net, optimizer)
    assert notes == ["outer"]


@pytest.mark.parametrize("owner", [Tensor, torch.autograd])
def test_a_backward_that_was_replaced_is_called(
    owner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, optimizer = make_pair()
    notes = Notes()
    usual = owner.backward

    def noted(*args: Any, **kwargs: Any) -> Any:
        notes.append("backward")
        return usual(*args, **kwargs)

    monkeypatch.setattr(owner, "backward", noted)
    ours(net, optimizer)
    assert notes == ["backward"]


def test_a_mode_that_handles_functions_of_torch_sees_the_backward_pass() -> None:
    class Mode(TorchFunctionMode):
        seen: list[Any] = []

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.seen.append(func)
            return func(*args, **(kwargs or {}))

    net, _ = make_pair()
    loss = loss_of(net)
    with Mode():
        run_backward(loss)
    assert Tensor.backward in Mode.seen


def test_a_loss_of_a_class_of_its_own_runs_its_own_backward() -> None:
    class Loss(Tensor):
        calls = 0

        def backward(self, *args: Any, **kwargs: Any) -> None:
            Loss.calls += 1
            super().backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    net, _ = make_pair()
    run_backward(loss_of(net).as_subclass(Loss))
    assert Loss.calls == 1
    assert all(one.grad is not None for one in net.parameters())


@pytest.mark.parametrize(
    "loss, words",
    [
        (torch.ones(2, requires_grad=True) * 2, "only for scalar outputs"),
        (torch.ones((), requires_grad=True) * 1j, "only for real scalar outputs"),
        (torch.ones(()), "does not require grad"),
    ],
)
def test_a_loss_that_has_no_backward_pass_is_refused_in_the_words_of_torch(
    loss: Tensor, words: str
) -> None:
    with pytest.raises(RuntimeError, match=words):
        run_backward(loss)


def test_hooks_on_the_loss_and_on_parameters_are_called() -> None:
    net, _ = make_pair()
    notes = Notes()
    loss = loss_of(net)
    loss.register_hook(notes.noting("loss"))
    for one in net.parameters():
        one.register_hook(notes.noting("gradient"))
        one.register_post_accumulate_grad_hook(notes.noting("accumulated"))
    run_backward(loss)
    assert Counter(notes) == {"loss": 1, "gradient": 4, "accumulated": 4}


@contextmanager
def without_profile_name(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    name = vars(optimizer).pop("_zero_grad_profile_name")
    yield
    assert vars(optimizer)["_zero_grad_profile_name"] == name


def test_an_optimizer_that_was_not_set_up_is_set_up_by_torch() -> None:
    net, optimizer = make_pair()
    with without_profile_name(optimizer):
        ours(net, optimizer)


def test_parameters_without_memory_yet_have_no_gradient_to_clear() -> None:
    lazy = nn.LazyLinear(2)
    optimizer = torch.optim.SGD(lazy.parameters(), lr=0.1)
    clear_gradients(optimizer)
    lazy(torch.ones(1, 3)).sum().backward()
    clear_gradients(optimizer)
    assert lazy.weight.grad is None


def test_a_backward_that_was_replaced_in_one_loss_is_called() -> None:
    net, _ = make_pair()
    notes = Notes()
    loss = loss_of(net)
    loss.backward = notes.noting("backward")  # type: ignore[method-assign]
    run_backward(loss)
    assert notes == ["backward"]


def test_what_torch_puts_in_the_way_of_its_engine_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `torch.compiler` does while it traces."""
    net, _ = make_pair()
    notes = Notes()
    monkeypatch.setattr(torch.autograd, "_engine_run_backward", notes.noting("engine"))
    run_backward(loss_of(net))
    assert notes == ["engine"]


def test_what_an_optimizer_finds_by_itself_is_called() -> None:
    class Wrapper(torch.optim.SGD):
        def __init__(self, wrapped: torch.optim.Optimizer) -> None:
            vars(self).update(vars(wrapped), wrapped=wrapped)

        def __getattribute__(self, name: str) -> Any:
            if name in ("step", "zero_grad"):
                return notes.noting(name)
            return super().__getattribute__(name)

    notes = Notes()
    net, optimizer = make_pair()
    ours(net, Wrapper(optimizer))
    assert notes == ["zero_grad", "step"]


@pytest.mark.parametrize("name", ["step", "zero_grad"])
def test_the_method_of_another_optimizer_is_called_for_that_one(name: str) -> None:
    net, optimizer = make_pair()
    twin, of_twin = make_pair()
    loss_of(twin).backward()
    setattr(optimizer, name, getattr(of_twin, name))
    ours(net, optimizer)
    changed = [one.grad is None for one in twin.parameters()]
    if name == "step":
        _, unchanged = make_pair()
        weights = unchanged.param_groups[0]["params"]
        changed = [not torch.equal(*pair) for pair in zip(twin.parameters(), weights, strict=True)]
        assert all(map(torch.equal, net.parameters(), weights))
    assert all(changed)


def test_a_step_that_was_replaced_in_one_optimizer_is_not_kept() -> None:
    def stepped() -> weakref.ref[Any]:
        net, optimizer = make_pair()
        usual, model = optimizer.step, nn.Linear(1, 1)

        def step(*args: Any, held: nn.Module = model, **kwargs: Any) -> Any:
            return usual(*args, **kwargs)

        optimizer.step = step  # type: ignore[method-assign]
        ours(net, optimizer)
        return weakref.ref(model)

    model = stepped()
    gc.collect()
    assert model() is None


def test_a_label_that_was_replaced_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    net, optimizer = make_pair()
    notes = Notes()

    @contextmanager
    def label(name: str) -> Iterator[None]:
        notes.append(name)
        yield

    monkeypatch.setattr(torch.autograd.profiler, "record_function", label)
    ours(net, optimizer)
    assert notes == ["Optimizer.zero_grad#SGD.zero_grad", "Optimizer.step#SGD.step"]


def test_a_profile_with_stacks_has_the_functions_of_torch() -> None:
    net, _ = make_pair()
    loss = loss_of(net)
    seen: Counter[str] = Counter()
    with profile(activities=[ProfilerActivity.CPU]), counting_calls(seen):
        run_backward(loss)
    assert seen["torch._tensor.Tensor.backward"] == 1


class Operations(TorchDispatchMode):
    """All operations, in order."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    """All functions of torch and all attributes of tensors that are asked, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        owner = getattr(func, "__self__", None)
        self.seen.append(f"{getattr(func, '__name__', func)} {getattr(owner, '__name__', '')}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [Operations, Functions])
def test_a_mode_sees_what_it_sees_of_the_usual_calls(kind: Any) -> None:
    with kind() as seen:
        ours(*make_pair())
    with kind() as expected:
        net, optimizer = make_pair()
        loss = loss_of(net)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert len(expected.seen) > 20
    assert seen.seen == expected.seen


def test_a_gradient_that_a_parameter_does_not_let_go_of_is_not_touched() -> None:
    class Fixed(nn.Parameter):
        @property
        def grad(self) -> None:  # type: ignore[override]
            return None

    clear_gradients(torch.optim.SGD([Fixed(torch.ones(2))], lr=0.1))
