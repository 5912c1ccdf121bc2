"""What is replaced in the middle of a run is replaced in a compiled step too."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statemachine_trainer.loops.compiled import CompiledStep, NotCompiled
from statemachine_trainer.trainer import Trainer

Batch = tuple[Tensor, Tensor]
Patch = pytest.MonkeyPatch


pytestmark = pytest.mark.usefixtures("exact")


def helper(inputs: Tensor) -> Tensor:
    return inputs * 2


class Tool:
    """What a model may hold."""

    def work(self, inputs: Tensor) -> Tensor:
        return inputs * 2


class Special(Tool):
    weight = 1.0


@dataclass
class Options:
    weight: float = 1.0


def local_tool() -> Tool:
    class Local:
        def work(self, inputs: Tensor) -> Tensor:
            return inputs * 2

    return Local()  # type: ignore[return-value]


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.LayerNorm(3))
        self.special, self.local = Special(), local_tool()
        self.options, self.kind = Options(), Special
        self.library, self.libraries = math, [math]

    def more(self, hidden: Tensor) -> Tensor:
        return hidden

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = batch
        return F.mse_loss(self.more(self.net(inputs)), targets)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


More = Callable[[Any, Tensor], Tensor]
Change = Callable[[Patch, Any], object]


def trained(more: More | None, change: Change, *, compiled: bool) -> tuple[Tensor, Any]:
    """Train for six steps; the change is made after the third, and taken back at the end."""
    kind: Any = type("Varied", (Line,), {} if more is None else {"more": more})
    model = kind()
    trainer = Trainer(max_epochs=1, device="cpu", progress=False)
    if compiled:
        trainer.loop["optimizer"] = CompiledStep(backend="eager")
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator))
        for _ in range(6)
    ]
    with Patch.context() as patch:
        trainer.on("batch_end", lambda: change(patch, model) if trainer.steps == 3 else None)
        trainer.fit(model, batches)
    weights = torch.cat([one.detach().flatten() for one in model.parameters()])
    return weights, trainer.loop["optimizer"]


def halve(*arguments: Any, **_: Any) -> Any:
    return next(one for one in arguments if isinstance(one, Tensor)) * 0.5


def as_one(one: Any, other: Any, _: Any = None) -> Any:
    return (one - other).abs().mean()


def hidden_attribute(patch: Patch, model: Any) -> None:
    plain: Any = nn.Module.__getattr__
    patch.setattr(
        nn.Module,
        "__getattr__",
        lambda self, name: plain(self, name) * 0.5 if name == "weight" else plain(self, name),
    )


class Other(ModuleType):
    """Stands in for `torch.nn.functional`."""

    relu = staticmethod(halve)


CHANGES: dict[str, tuple[More | None, Change]] = {
    "a function that a layer calls": (None, lambda p, m: p.setattr(F, "relu", halve)),
    "a function that the step calls": (None, lambda p, m: p.setattr(F, "mse_loss", as_one)),
    "a function below it": (None, lambda p, m: p.setattr(torch._C._nn, "mse_loss", as_one)),
    "one of torch below a layer": (None, lambda p, m: p.setattr(torch, "layer_norm", halve)),
    "a module, by its name in another": (
        None,
        lambda p, m: p.setattr(sys.modules["torch.nn.modules.activation"], "F", Other("F")),
    ),
    "a method of tensors": (
        lambda m, x: x * torch.tanh(x.norm()),
        lambda p, m: p.setattr(Tensor, "norm", lambda one: one.sum()),
    ),
    "a method of tensors that they inherit": (
        lambda m, x: x.relu(),
        lambda p, m: p.setattr(Tensor, "relu", halve),
    ),
    "an operator of tensors": (
        lambda m, x: 1 - x,
        lambda p, m: p.setattr(Tensor, "__rsub__", halve),
    ),
    "how layers of a sequence are found": (
        None,
        lambda p, m: p.setattr(
            nn.Sequential, "__iter__", lambda self: iter([*self._modules.values()][:3])
        ),
    ),
    "how attributes of modules are found": (None, hidden_attribute),
    "an attribute of a layer, by its class": (
        None,
        lambda p, m: p.setattr(
            nn.Linear, "weight", property(lambda s: s._parameters["weight"] * 0.5), raising=False
        ),
    ),
    "the forward of one layer": (None, lambda p, m: setattr(m.net[1], "forward", torch.tanh)),
    "the class of one layer": (None, lambda p, m: setattr(m.net[1], "__class__", nn.Tanh)),
    "the code of a method of torch": (
        None,
        lambda p, m: p.setattr(nn.ReLU.forward, "__code__", (lambda self, input: input).__code__),
    ),
    "a global function": (
        lambda m, x: helper(x),
        lambda p, m: p.setitem(globals(), "helper", halve),
    ),
    "a builtin, by a global of its name": (
        lambda m, x: x * max(2.0, 1.0),
        lambda p, m: p.setitem(globals(), "max", lambda *_: 0.5),
    ),
    "a function of Python's": (
        lambda m, x: x * math.sqrt(4.0),
        lambda p, m: p.setattr(math, "sqrt", lambda _: 0.5),
    ),
    "a method that a class had from its base": (
        lambda m, x: m.special.work(x),
        lambda p, m: p.setattr(Special, "work", lambda self, x: x * 0.5, raising=False),
    ),
    "a method of a class within a function": (
        lambda m, x: m.local.work(x),
        lambda p, m: p.setattr(type(m.local), "work", lambda self, x: x * 0.5),
    ),
    "what a module had not": (
        lambda m, x: x * getattr(math, "missing", 1.0),
        lambda p, m: p.setattr(math, "missing", 0.5, raising=False),
    ),
    "what a module had not, by a name that is computed": (
        lambda m, x: x * getattr(math, "".join(["mis", "sing"]), 1.0),
        lambda p, m: p.setattr(math, "missing", 0.5, raising=False),
    ),
    "what a function had not, by a name that is computed": (
        lambda m, x: x * getattr(helper, "".join(["we", "ight"]), 1.0),
        lambda p, m: p.setattr(helper, "weight", 0.5, raising=False),
    ),
    "what a module had not that is reached through an attribute": (
        lambda m, x: x * getattr(m.library, "".join(["mis", "sing"]), 1.0),
        lambda p, m: p.setattr(math, "missing", 0.5, raising=False),
    ),
    "whether a module in a list has something": (
        lambda m, x: x * (0.5 if hasattr(m.libraries[0], "missing") else 1.0),
        lambda p, m: p.setattr(math, "missing", 1, raising=False),
    ),
    "what a method had not": (
        lambda m, x: x * getattr(m.special.work, "weight", 1.0),
        lambda p, m: p.setattr(Tool.work, "weight", 0.5, raising=False),
    ),
    "a function of a name that is computed": (
        lambda m, x: getattr(F, "".join(["re", "lu"]))(x),
        lambda p, m: p.setattr(F, "relu", halve),
    ),
    "what a function had not": (
        lambda m, x: x * getattr(helper, "weight", 1.0),
        lambda p, m: p.setattr(helper, "weight", 0.5, raising=False),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_it_is_seen(name: str) -> None:
    more, change = CHANGES[name]
    unchanged, _ = trained(more, lambda p, m: None, compiled=False)
    eager, _ = trained(more, change, compiled=False)
    assert not torch.allclose(eager, unchanged)
    compiled, loop = trained(more, change, compiled=True)
    torch.testing.assert_close(compiled, eager, rtol=1e-9, atol=1e-9)
    assert loop.eager is None


REFUSED: dict[str, tuple[More, str, Change]] = {
    "vars": (
        lambda m, x: x * (2.0 if "more" in vars(m) else 1.0),
        "asks for `vars`",
        lambda p, m: setattr(m, "more", m.more),
    ),
    "__dict__": (
        lambda m, x: x * m.options.__dict__.get("other", 1.0),
        "asks for `__dict__`",
        lambda p, m: setattr(m.options, "other", 0.5),
    ),
    "the text of an object": (
        lambda m, x: x * float(len(str(m.options))),
        "asks for `str`",
        lambda p, m: setattr(m.options, "weight", 0.123456),
    ),
    "the backward pass": (
        lambda m, x: x,
        r"torch\.Tensor\.backward was replaced",
        lambda p, m: p.setattr(Tensor, "backward", lambda s: torch.autograd.backward((s * 0.5,))),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_seen_or_compiled_is_told(name: str) -> None:
    more, said, change = REFUSED[name]
    eager, _ = trained(more, change, compiled=False)
    # Other versions of torch may refuse more, and say so in words of their own.
    with pytest.warns(NotCompiled, match=said if torch.__version__.startswith("2.13") else None):
        compiled, loop = trained(more, change, compiled=True)
    torch.testing.assert_close(compiled, eager, rtol=1e-9, atol=1e-9)
    assert loop.eager is not None


@pytest.mark.filterwarnings("ignore::statemachine_trainer.loops.compiled.NotCompiled")
@pytest.mark.parametrize("more", [
    lambda m, x: x * type(m.special).weight,
    lambda m, x: x * m.kind.weight,
    lambda m, x: x * Special.weight,
])  # fmt: skip
def test_a_number_in_a_class_is_seen_to_change_or_read_without_the_compiler(more: More) -> None:
    def change(patch: Patch, model: Any) -> None:
        patch.setattr(Special, "weight", 0.5)

    unchanged, _ = trained(more, lambda p, m: None, compiled=False)
    eager, _ = trained(more, change, compiled=False)
    assert not torch.allclose(eager, unchanged)
    compiled, _ = trained(more, change, compiled=True)
    torch.testing.assert_close(compiled, eager, rtol=1e-9, atol=1e-9)


count = 0


def test_globals_and_classes_that_change_all_the_time_capture_nothing_anew() -> None:
    class Counted(Line):
        seen = 0

    def note() -> None:
        global count
        count += 1
        Counted.seen = count

    trainer = Trainer(max_epochs=1, device="cpu", progress=False)
    loop: Any = CompiledStep(backend="eager")
    trainer.loop["optimizer"] = loop
    trainer.on("batch_end", note)
    trainer.fit(Counted(), [(torch.ones(2, 3), torch.zeros(2, 3))] * 12)
    assert loop.eager is None
    assert len(loop.graphs) == 1
    assert loop.again == 0
