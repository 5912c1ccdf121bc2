"""What the differential tester trains, and what it changes meanwhile."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statemachine_trainer.loops import log
from statemachine_trainer.trainer import Trainer


@dataclass(frozen=True)
class Plan:
    """A run.

    Attributes:
        habits: What the training step does besides the usual, names of `HABITS`.
        optimizer: A name of `OPTIMIZERS`.
        changes: What is changed after which step, names of `CHANGES`.
        accumulate: As for the loop, as are the next two.
        clip_norm: Largest norm.
        clip_value: Largest value.
        scheduled: Whether the learning rate changes with each step.
    """

    habits: tuple[str, ...] = ()
    optimizer: str = "sgd"
    changes: tuple[tuple[int, str], ...] = ()
    accumulate: int = 1
    clip_norm: float | None = None
    clip_value: float | None = None
    scheduled: bool = False


# -- models ---------------------------------------------------------------------------------------

Habit = Callable[["Subject", Tensor, Tensor], Any]


class Block(nn.Module):
    """A layer whose work is in a method that may be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.scale = 1.0

    def work(self, inputs: Tensor) -> Tensor:
        """Do it."""
        outputs: Tensor = torch.tanh(self.inner(inputs)) * self.scale
        return outputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Do it."""
        return self.work(inputs)


class Weights:
    """What a module may keep in a global."""

    number = 1.0


WEIGHTS = Weights()


def weighing() -> tuple[Callable[[Tensor], Tensor], Callable[[float], None]]:
    """Return a function with a number that is known to it alone, and one that sets the number."""
    weight = 1.0

    def weigh(inputs: Tensor) -> Tensor:
        return inputs * weight

    def change(value: float) -> None:
        nonlocal weight
        weight = value

    return weigh, change


class Subject(nn.Module):
    """What is trained: two layers of one shape, a head, and what the habits need."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.plan = plan
        self.one, self.two, self.head = Block(), Block(), nn.Linear(3, 3)
        self.drop = nn.Dropout(0.4)
        self.extra = nn.Parameter(torch.ones(3))
        self.single = nn.Parameter(torch.ones(1))
        self.register_buffer("mean", torch.zeros(3))
        self.factor = 1.0
        self.calls = 0
        self.history: list[Any] = []
        self.kept: Any = None
        self.options = {"weight": 1.0}
        self.generator = torch.Generator().manual_seed(3)
        self.numbers = np.random.RandomState(0)
        self.dice = random.Random(0)
        self.weigh, self.change_weight = weighing()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        """Return the loss."""
        inputs, targets = batch
        output: Any = None
        more: Any = 0.0
        for name in self.plan.habits:
            found = HABITS[name](self, inputs, targets)
            if isinstance(found, dict):
                output = found
            elif found is not None:
                more = more + found
        hidden = self.two(self.one(inputs * self.extra))
        loss = F.mse_loss(self.head(hidden) * self.single, targets) * self.factor + more
        if "keeps_loss" in self.plan.habits:
            self.kept = loss.detach()
        log("loss", loss)
        return loss if output is None else {**output, "loss": loss}

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and its scheduler."""
        optimizer = OPTIMIZERS[self.plan.optimizer]([*self.parameters()])
        self.optimizers = [optimizer]
        if not self.plan.scheduled:
            return optimizer
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def _count(model: Subject, *_: Any) -> None:
    model.calls += 1


def _mean(model: Subject, inputs: Tensor, _: Tensor) -> Any:
    mean: Any = model.mean
    mean.mul_(0.9).add_(inputs.mean(0), alpha=0.1)
    return (mean * model.extra).sum() * 0.1


def _keep_view(model: Subject, *_: Any) -> Any:
    before = 0.0 if model.kept is None else model.kept.abs().sum() * 0.1
    model.kept = model.extra.detach()[:2]
    return before


def _log_parts(model: Subject, *_: Any) -> None:
    log("part", model.extra[0])
    log("single", model.single)
    log("buffer", model.mean.sum())  # type: ignore[operator]


def _append(model: Subject, *_: Any) -> None:
    model.history.append(1)


def _gap(model: Subject, inputs: Tensor, _: Tensor) -> Any:
    hidden = model.one(inputs)
    hidden.register_hook(lambda grad: grad * 0.5)
    return hidden.square().mean()


def _in_place(model: Subject, inputs: Tensor, targets: Tensor) -> None:
    inputs[:, 0] = 0.5
    targets.add_(0.1)


def _clamp(model: Subject, *_: Any) -> None:
    with torch.no_grad():
        model.extra.clamp_(-0.9, 0.9)


HABITS: dict[str, Habit] = {
    "none": lambda model, x, y: None,
    "counts": _count,
    "appends": _append,
    "keeps_loss": lambda model, x, y: (
        None if model.kept is None else model.kept * model.extra.sum()
    ),
    "keeps_view": _keep_view,
    "logs_parts": _log_parts,
    "logs_rate": lambda model, x, y: log("rate", model.optimizers[0].param_groups[0]["lr"]),
    "drops": lambda model, x, y: model.drop(model.one(x)).square().mean(),
    "drops_unused": lambda model, x, y: (model.drop(x), None)[1],
    "draws": lambda model, x, y: (torch.rand(3) * model.extra).sum() * 0.1,
    "draws_numpy": lambda model, x, y: float(np.random.rand()) * model.extra.sum(),
    "draws_python": lambda model, x, y: random.random() * model.extra.sum(),
    "draws_own": lambda model, x, y: (
        torch.rand(3, generator=model.generator).sum() * model.extra.sum()
    ),
    "draws_state": lambda model, x, y: float(model.numbers.rand()) * model.extra.sum(),
    "draws_dice": lambda model, x, y: model.dice.random() * model.extra.sum(),
    "sums": lambda model, x, y: model.extra.sum() * 0.1,
    "adds_two": lambda model, x, y: (model.extra + model.single).square().sum() * 0.1,
    "buffer": _mean,
    "clamps": _clamp,
    "in_place": _in_place,
    "option": lambda model, x, y: model.extra.sum() * model.options["weight"],
    "hooks": _gap,
    "returns": lambda model, x, y: {"size": len(x), "hidden": model.one(x)},
    "number": lambda model, x, y: model.extra.sum() * WEIGHTS.number,
    "closure": lambda model, x, y: model.weigh(model.extra.sum()),
    "counts_single": lambda model, x, y: model.single.sum() * len(model.history),
}
"""What a training step may do besides the usual; what is returned is added to the loss."""


# -- optimizers -----------------------------------------------------------------------------------


class Plain(torch.optim.SGD):
    """The code of somebody else."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-0.05)


class Counting(Plain):
    """Keeps a number as an attribute."""

    count = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step every second time."""
        self.count += 1
        if self.count % 2:
            super().step()


class Numbering(Plain):
    """Keeps a number in its state."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step less and less."""
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                state = self.state[parameter]
                state["n"] = state.get("n", 0) + 1
                parameter.sub_(parameter.grad * 0.05 / state["n"])


class Replacing(Plain):
    """Gives parameters other memory."""

    def step(self, closure: Any = None) -> Any:
        """Step."""
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.data = parameter.data - 0.05 * parameter.grad


def _groups(kind: Any, parameters: Any, **settings: Any) -> Any:
    halves = [{"params": parameters[:4]}, {"params": parameters[4:], "weight_decay": 0.1}]
    return kind(halves, **settings)


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1
    ),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-4),
    "adamw": lambda p: _groups(torch.optim.AdamW, p, lr=0.01, eps=1e-4),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, eps=1e-4, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, eps=1e-4),
    "groups": lambda p: _groups(torch.optim.SGD, p, lr=0.05, momentum=0.9),
    "some": lambda p: torch.optim.SGD(p[2:], lr=0.05, momentum=0.9),
    "tensor": lambda p: torch.optim.SGD(p, lr=torch.tensor(0.05), momentum=0.9),
    "plain": lambda p: Plain(p, lr=0.05),
    "counting": lambda p: Counting(p, lr=0.05),
    "numbering": lambda p: Numbering(p, lr=0.05),
    "replacing": lambda p: Replacing(p, lr=0.05),
}

# -- changes --------------------------------------------------------------------------------------

Change = Callable[[Trainer, Subject, Any], Any]


def _exchange(trainer: Trainer, model: Subject, optimizer: Any) -> None:
    model.one, model.two = model.two, model.one


def _replace_head(trainer: Trainer, model: Subject, optimizer: Any) -> None:
    torch.manual_seed(7)
    old = {id(one) for one in model.head.parameters()}
    model.head = nn.Linear(3, 3)
    group = optimizer.param_groups[-1]
    group["params"] = [p for p in group["params"] if id(p) not in old] + [*model.head.parameters()]


def _replace_single(trainer: Trainer, model: Subject, optimizer: Any) -> None:
    new = nn.Parameter(model.single.detach().clone())
    for group in optimizer.param_groups:
        group["params"] = [new if p is model.single else p for p in group["params"]]
    model.single = new


def _set(name: str, value: Any) -> Change:
    return lambda trainer, model, optimizer: setattr(model, name, value)


def _reset_state(trainer: Trainer, model: Subject, optimizer: Any) -> None:
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, Tensor):
                state[key] = value.clone() if key == "step" else torch.zeros_like(value)


def _exchange_states(trainer: Trainer, model: Subject, optimizer: Any) -> None:
    one, two = model.one.inner.weight, model.two.inner.weight
    if one in optimizer.state and two in optimizer.state:
        state = optimizer.state
        state[one], state[two] = state[two], state[one]


def _grow(trainer: Trainer, model: Subject, optimizer: Any) -> None:
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    new = nn.Parameter(torch.ones(3))
    if id(model.extra) in known:
        model.extra = new
        optimizer.add_param_group({"params": [new]})


def _hook_step(trainer: Trainer, model: Subject, optimizer: Any) -> None:
    optimizer.register_step_post_hook(lambda *_: model.history.append(2))


def _patch_step(trainer: Trainer, model: Subject, optimizer: Any) -> None:
    step = optimizer.step

    def halved(*arguments: Any) -> Any:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(0.5)
        return step(*arguments)

    optimizer.step = halved


def _patch_method(trainer: Trainer, model: Subject, optimizer: Any) -> None:
    optimizer._init_group = lambda *_, **__: False


def _halve_gradients(trainer: Trainer, model: Subject, optimizer: Any) -> None:
    def halve() -> None:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(0.5)

    trainer.on("optimizer_step", halve)


def _work_less(self: Block, inputs: Tensor) -> Tensor:
    outputs: Tensor = self.inner(inputs) * 0.5
    return outputs


def _no_grad_write(trainer: Trainer, model: Subject, optimizer: Any) -> None:
    with torch.no_grad():
        model.extra.mul_(0.5)


def _transpose(trainer: Trainer, model: Subject, optimizer: Any) -> None:
    weight = model.one.inner.weight
    weight.data = weight.data.t().contiguous().t()


def _share(trainer: Trainer, model: Subject, optimizer: Any) -> None:
    model.two.inner.weight.data = model.one.inner.weight.data


def _share_transposed(trainer: Trainer, model: Subject, optimizer: Any) -> None:
    model.two.inner.weight.data = model.one.inner.weight.data.t()


_patched: list[tuple[Any, str, Any]] = []


def _patch(place: Any, name: str, value: Any) -> None:
    _patched.append((place, name, vars(place).get(name)))
    setattr(place, name, value)


def restore() -> None:
    """Take back what changes have put in the place of things that outlive a run."""
    while _patched:
        place, name, value = _patched.pop()
        if value is None:
            delattr(place, name)
        else:
            setattr(place, name, value)


def _other_loss(one: Tensor, other: Tensor, *_: Any) -> Tensor:
    return (one - other).abs().mean()


def _half_linear(inputs: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    return inputs @ weight.t() * 0.5


CHANGES: dict[str, Change] = {
    "patch_torch": lambda t, m, o: _patch(torch, "tanh", torch.sin),
    "patch_functional": lambda t, m, o: _patch(F, "mse_loss", _other_loss),
    "patch_below": lambda t, m, o: _patch(torch._C._nn, "mse_loss", _other_loss),
    "patch_layer": lambda t, m, o: _patch(F, "linear", _half_linear),
    "patch_tensor": lambda t, m, o: _patch(Tensor, "square", lambda one: one.abs()),
    "patch_call": lambda t, m, o: _patch(nn.Dropout, "__call__", lambda self, inputs: inputs * 0.5),
    "patch_forward": lambda t, m, o: setattr(m.one.inner, "forward", lambda x: x * 0.5),
    "number": lambda t, m, o: _patch(Weights, "number", 0.5),
    "closure": lambda t, m, o: m.change_weight(0.5),
    "exchange": _exchange,
    "replace_head": _replace_head,
    "replace_single": _replace_single,
    "replace_untold": _set("extra", nn.Parameter(torch.full((3,), 0.5))),
    "tie": lambda t, m, o: setattr(m.two.inner, "weight", m.one.inner.weight),
    "tie_block": lambda t, m, o: setattr(m, "two", m.one),
    "share": _share,
    "share_transposed": _share_transposed,
    "transpose": _transpose,
    "freeze": lambda t, m, o: m.one.requires_grad_(False),
    "unfreeze": lambda t, m, o: m.requires_grad_(True),
    "hook": lambda t, m, o: m.extra.register_hook(lambda grad: grad * 0.5),
    "hook_after": lambda t, m, o: m.extra.register_post_accumulate_grad_hook(_halve),
    "hook_module": lambda t, m, o: m.one.register_forward_hook(lambda k, a, out: out * 0.5),
    "hook_before": lambda t, m, o: m.one.register_forward_pre_hook(lambda k, a: (a[0] * 0.5,)),
    "hook_backward": lambda t, m, o: m.one.register_full_backward_hook(_halve_all),
    "hook_step": _hook_step,
    "patch_step": _patch_step,
    "patch_method": _patch_method,
    "patch_optim": lambda t, m, o: _patch(
        sys.modules["torch.optim.sgd"], "sgd", lambda *_, **__: None
    ),
    "subscribe": _halve_gradients,
    "patch_object": lambda t, m, o: setattr(m.one, "work", lambda x: m.one.inner(x) * 0.5),
    "patch_class": lambda t, m, o: setattr(Block, "work", _work_less),
    "factor": _set("factor", 0.5),
    "scale": lambda t, m, o: setattr(m.one, "scale", 0.5),
    "option": lambda t, m, o: m.options.__setitem__("weight", 0.5),
    "rate": lambda t, m, o: o.param_groups[0].__setitem__("lr", 0.01),
    "rate_in_place": lambda t, m, o: _scale_rate(o),
    "momentum": lambda t, m, o: [
        g.__setitem__("momentum", 0.3) for g in o.param_groups if "momentum" in g
    ],
    "decay": lambda t, m, o: o.param_groups[-1].__setitem__("weight_decay", 0.3),
    "reset_state": _reset_state,
    "clear_state": lambda t, m, o: o.state.clear(),
    "load_state": lambda t, m, o: o.load_state_dict(o.state_dict()),
    "exchange_states": _exchange_states,
    "reorder": lambda t, m, o: o.param_groups[0]["params"].reverse(),
    "drop_parameter": lambda t, m, o: o.param_groups[0]["params"].pop(),
    "grow": _grow,
    "write": _no_grad_write,
    "eval": lambda t, m, o: m.drop.eval(),
    "train": lambda t, m, o: m.drop.train(),
    "dropout": lambda t, m, o: setattr(m.drop, "p", 0.1),
    "seed": lambda t, m, o: torch.manual_seed(9),
    "clip": lambda t, m, o: setattr(t.loop["optimizer"], "clip_norm", 0.02),
    "no_clip": lambda t, m, o: setattr(t.loop["optimizer"], "clip_norm", None),
    "window": lambda t, m, o: setattr(t.loop["optimizer"], "accumulate", 2),
    "threads": lambda t, m, o: torch.set_num_threads(1),
    "single_gradient": lambda t, m, o: setattr(m.single, "grad", torch.ones(1)),
    "buffer": lambda t, m, o: setattr(m, "mean", torch.ones(3)),
    "history": lambda t, m, o: m.history.append(3),
}
"""What may be changed at the end of a batch."""


def _halve(parameter: Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad.mul_(0.5)


def _halve_all(module: nn.Module, of_inputs: Any, of_outputs: Any) -> Any:
    return tuple(None if one is None else one * 0.5 for one in of_inputs)


def _scale_rate(optimizer: Any) -> None:
    group = optimizer.param_groups[0]
    if isinstance(group["lr"], Tensor):
        group["lr"].mul_(0.5)
    else:
        group["lr"] *= 0.5
