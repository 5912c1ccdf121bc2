"""What only hooks at the beginning of a loop set is told: a resumed run does not call them again."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer import Trainer
from statemachine_trainer.audit.report import NotHeld
from statemachine_trainer.callbacks import Checkpoints

BATCHES = [torch.full((2, 3), place / 7) for place in range(3)]


class Net(nn.Module):
    scale: float = 1.0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).square().mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Scaled(Net):
    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) * self.scale


class ByDefault(Scaled):
    """Has a default, so that a resumed run uses that without a word."""

    def on_fit_start(self) -> None:
        self.scale = 0.5


class Noisy(Net):
    def on_exit_fit_start(self) -> None:
        self.noise = torch.randn(3)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch + getattr(self, "noise", 0.0), batch_idx)


class InAMethod(Scaled):
    def on_fit_start(self) -> None:
        self.prepare()

    def prepare(self) -> None:
        self.scale = 0.5


class EachEpoch(Net):
    order: tuple[int, ...] = (0, 1, 2)

    def on_epoch_start(self) -> None:
        self.order = tuple(random.Random(0).sample(range(3), 3))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch[:, list(self.order)], batch_idx)


class AsMade(Scaled):
    """Sets what is there already."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 0.5

    def on_fit_start(self) -> None:
        self.scale = 0.5


class Unread(Net):
    def on_fit_start(self) -> None:
        self.begun = "yes"


class SetAgain(Scaled):
    """What each step sets anew."""

    def on_fit_start(self) -> None:
        self.scale = 0.0

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.scale = 1.0 + batch_idx
        return super().training_step(batch, batch_idx)


class Clocked(Scaled):
    def on_fit_start(self) -> None:
        self.began = time.time()

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) + 0 * self.began


class Saved(Scaled):
    def on_fit_start(self) -> None:
        self.scale = 0.5

    def get_extra_state(self) -> float:
        return self.scale

    def set_extra_state(self, state: float) -> None:
        self.scale = state


class Growing(Net):
    """Begins a list that there was, which nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def on_fit_start(self) -> None:
        self.losses = []

    def on_batch_end(self) -> None:
        self.losses.append(1.0)


class Modules(Net):
    """Makes a buffer, which checkpoints hold."""

    shift: torch.Tensor

    def on_fit_start(self) -> None:
        self.register_buffer("shift", torch.ones(3))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch + self.shift, batch_idx)


class Preparing:
    """A callback without a constructor."""

    def on_fit_start(self, trainer: Any) -> None:
        self.rates: Sequence[float] = [0.1, 0.2, 0.3]

    def on_batch_end(self, trainer: Any) -> None:
        trainer.context.optimizers[0].param_groups[0]["lr"] = self.rates[0]


class WithAState(Preparing):
    rates: Sequence[float] = ()

    def state_dict(self) -> dict[str, Any]:
        return {"rates": self.rates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rates = state["rates"]


class GoingOn(Preparing):
    """A callback that is told when a resumed run begins."""

    def on_fit_start(self, trainer: Any) -> None:
        self.prepare()

    def goes_on(self, trainer: Any) -> None:
        self.prepare()

    def prepare(self) -> None:
        self.rates = [0.1, 0.2, 0.3]


class OfTheModel:
    """A callback that sets what the model reads."""

    def on_fit_start(self, trainer: Any) -> None:
        trainer.context.model.scale = 0.5


def told(folder: Path, model: nn.Module, *callbacks: object, every: Any = 1) -> list[str]:
    """Return the lines of the warnings of a fit with checkpoints."""
    keeping = Checkpoints(folder / "run", every=every)
    trainer = Trainer(
        max_epochs=2,
        device="cpu",
        progress=False,
        checkpoints=keeping,
        callbacks=callbacks,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(model, BATCHES)
    texts = [str(one.message) for one in caught if one.category is NotHeld]
    return [line.strip() for text in texts for line in text.splitlines()[1:]]


@pytest.mark.parametrize(
    "model, name, shown",
    [
        (ByDefault, "scale", "0.5"),
        (Noisy, "noise", "a Tensor (3,)"),
        (InAMethod, "scale", "0.5"),
        (EachEpoch, "order", "a tuple of 3"),
    ],
)
def test_an_attribute_of_the_model_is_told_once(
    tmp_path: Path, model: Callable[[], nn.Module], name: str, shown: str
) -> None:
    (line,) = told(tmp_path, model())
    assert f"attribute '{name}' of the module at the top of the model" in line
    assert f"has set to {shown} and a resumed run does not set again" in line
    assert "Make it before the fit, in `__init__`; or make it a buffer" in line


def test_that_of_a_callback_is_told_and_its_hook_is_named(tmp_path: Path) -> None:
    (line,) = told(tmp_path, Net(), Preparing())
    assert line.startswith("attribute 'rates' of the callback Preparing, which ")
    assert "Preparing.on_fit_start has set to a list of 3" in line


def test_what_a_callback_sets_in_the_model_is_told(tmp_path: Path) -> None:
    (line,) = told(tmp_path, Scaled(), OfTheModel())
    assert "attribute 'scale' of the module at the top of the model (Scaled)" in line


def test_what_a_receiver_sets_that_is_called_once_is_told(tmp_path: Path) -> None:
    def begin(trainer: Any) -> None:
        trainer.context.model.scale = 0.5

    model = Scaled()
    trainer = Trainer(max_epochs=2, device="cpu", progress=False, checkpoints=tmp_path)
    trainer.on("batch_end", begin, once=True)
    with pytest.warns(NotHeld, match=r"'scale' of the module .*begin has set to 0\.5"):
        trainer.fit(model, BATCHES)


def test_what_a_function_sets_by_name_is_told(tmp_path: Path) -> None:
    model = Scaled()
    trainer = Trainer(max_epochs=2, device="cpu", progress=False, checkpoints=tmp_path)
    trainer.on("fit_start", lambda: setattr(model, "scale", 0.5))
    with pytest.warns(NotHeld, match=r"'scale' of the module .*<lambda> has set to 0\.5"):
        trainer.fit(model, BATCHES)


@pytest.mark.parametrize("model", [AsMade, Unread, SetAgain, Clocked, Saved, Growing, Modules])
def test_what_a_resumed_run_has_or_does_not_need_is_not_told(
    tmp_path: Path, model: Callable[[], nn.Module]
) -> None:
    assert told(tmp_path, model()) == []


@pytest.mark.parametrize("callback", [WithAState, GoingOn])
def test_a_callback_that_sees_to_it_is_not_told(
    tmp_path: Path, callback: Callable[[], object]
) -> None:
    assert told(tmp_path, Net(), callback()) == []


def scaled_by_a_variable() -> tuple[nn.Module, Callable[[], None]]:
    scale = 1.0

    class Closing(Net):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch, batch_idx) * scale

    def begin() -> None:
        nonlocal scale
        scale = 0.5

    return Closing(), begin


FACTOR = 1.0


class Global(Net):
    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) * FACTOR


def begin_global() -> None:
    global FACTOR
    FACTOR = 0.5


@pytest.mark.parametrize("kind", ["a variable of a function", "a global"])
def test_a_variable_is_told(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "FACTOR", FACTOR)  # put back afterwards
    model, begin = (Global(), begin_global) if kind == "a global" else scaled_by_a_variable()
    trainer = Trainer(max_epochs=2, device="cpu", progress=False, checkpoints=tmp_path)
    trainer.on("fit_start", begin)
    with pytest.warns(NotHeld, match=r"'(FACTOR|scale)' of the .* has set to 0\.5"):
        trainer.fit(model, BATCHES)


def test_what_each_epoch_sets_is_not_told_where_checkpoints_lie_between_epochs(
    tmp_path: Path,
) -> None:
    assert told(tmp_path, EachEpoch(), every="1 epoch") == []
    assert len(told(tmp_path / "fit", ByDefault(), every="1 epoch")) == 1
