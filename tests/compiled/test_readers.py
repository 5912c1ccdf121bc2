"""Who looks at gradients between two steps finds them, however far from the receiver his code is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statemachine_trainer.loops.compiled import CompiledStep
from statemachine_trainer.trainer import Trainer

pytestmark = pytest.mark.usefixtures("exact")


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(3, 1)
        self.seen: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return F.mse_loss(self.net(batch), batch[:, :1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def note(self) -> None:
        grad: Any = self.net.weight.grad
        self.seen.append(float(grad.sum()))


class Watcher:
    def __init__(self, model: Line) -> None:
        self.model = model

    def look(self) -> None:
        self.model.note()

    def halve(self) -> None:
        for one in self.model.parameters():
            if one.grad is not None:
                one.grad.mul_(0.5)


class Holder:
    __slots__ = ("things",)

    def __init__(self, model: Line) -> None:
        self.things = {"all": [Watcher(model)]}

    def __call__(self) -> None:
        self.things["all"][0].look()


class Computing:
    def __init__(self, model: Line, name: str) -> None:
        self.model, self.name = model, name

    def __call__(self) -> None:
        self.model.seen.append(float(getattr(self.model.net.weight, self.name).sum()))


def each_time(model: Line) -> Iterator[None]:
    while True:
        model.seen.append(float(model.net.weight.grad.sum()))  # type: ignore[union-attr]
        yield


def by_object(trainer: Trainer, model: Line) -> None:
    watcher = Watcher(model)
    trainer.on("batch_end", lambda: watcher.look())


def by_argument(trainer: Trainer, model: Line) -> None:
    trainer.on("batch_end", functools.partial(lambda one: one.look(), Watcher(model)))


def by_generator(trainer: Trainer, model: Line) -> None:
    noting = each_time(model)
    trainer.on("batch_end", lambda: next(noting))


def by_condition(trainer: Trainer, model: Line) -> None:
    watcher = Watcher(model)

    def look() -> bool:
        watcher.look()
        return True

    trainer.on("batch_end", lambda: None, when=look)


def by_trainer(trainer: Trainer, model: Line) -> None:
    trainer.on("batch_end", lambda trainer: trainer.context.model.note())


def by_blinker(trainer: Trainer, model: Line) -> None:
    def look(sender: object, moment: object) -> None:
        model.note()

    for signal in trainer.board.resolve("batch_end"):
        signal.connect(look, weak=False)


Subscribe = Callable[[Trainer, Line], object]

READERS: dict[str, Subscribe] = {
    "an object that the receiver encloses": by_object,
    "an object within others": lambda t, m: t.on("batch_end", Holder(m)),
    "an argument": by_argument,
    "a generator": by_generator,
    "a condition": by_condition,
    "the model, by the trainer": by_trainer,
    "a receiver of blinker": by_blinker,
    "a name that is computed": lambda t, m: t.on("batch_end", Computing(m, "grad")),
    "what halves them": lambda t, m: t.on("optimizer_step", Watcher(m).halve),
}


def trained(subscribe: Subscribe, after: int, *, compiled: bool) -> tuple[Tensor, list[float], Any]:
    """Train for eight steps; the receiver is subscribed after so many."""
    trainer = Trainer(max_epochs=1, device="cpu", progress=False)
    if compiled:
        trainer.loop["optimizer"] = CompiledStep(backend="eager")
    model = Line()
    if not after:
        subscribe(trainer, model)

    def later() -> None:
        if trainer.steps == after:
            subscribe(trainer, model)

    later.reads_gradients = False  # type: ignore[attr-defined]  # it is another that does
    trainer.on("batch_end", later)
    trainer.fit(model, [*torch.randn(8, 4, 3, generator=torch.Generator().manual_seed(0))])
    return model.net.weight.detach(), model.seen, trainer.loop["optimizer"]


@pytest.mark.parametrize("after", [0, 4], ids=["from the beginning", "since later"])
@pytest.mark.parametrize("subscribe", READERS.values(), ids=READERS.keys())
def test_gradients_are_found(subscribe: Subscribe, after: int) -> None:
    weight, seen, _ = trained(subscribe, after, compiled=False)
    same_weight, same_seen, loop = trained(subscribe, after, compiled=True)
    torch.testing.assert_close(same_weight, weight, rtol=1e-9, atol=1e-9)
    assert same_seen == pytest.approx(seen, abs=1e-9)
    assert loop.eager is None
    assert loop.graphs


def test_who_reads_something_else_changes_nothing() -> None:
    class Rates:
        def __init__(self) -> None:
            self.rates: list[float] = []

        def on_batch_end(self, trainer: Trainer) -> None:
            for group in trainer.context.slots[0].optimizer.param_groups:
                self.rates.append(getattr(group, "lr", 0.0) or group["lr"])

    _, _, loop = trained(lambda t, m: t.on(Rates()), 0, compiled=True)
    assert not loop._fused[0].shows_gradients
