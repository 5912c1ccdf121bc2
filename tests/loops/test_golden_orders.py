"""The order of signals of a whole fit, written out in full.

Indented by depth: the loops and states as they are entered, and `name:exit` where a loop is left.
Every fit has three batches, and a validation of one batch after the second.
"""

from __future__ import annotations

from textwrap import dedent
from typing import Any

import torch
from torch import Tensor, nn

from statemachine_trainer.trainer import Trainer
from tests.loops.inner_kit import make_net, make_trainer, mse


def order_of(model: nn.Module, **settings: Any) -> list[str]:
    """All enter signals of a fit, and the exit signals of its loops."""
    trainer = make_trainer(validate_every=2, sanity_batches=1, **settings)
    fired: list[str] = []

    def note(trainer: Trainer, moment: Any) -> None:
        depth = moment.path.count(".")
        fired.append("  " * depth + moment.state + (":exit" if moment.kind == "exit" else ""))

    trainer.on("*:enter", note)
    for path, _ in trainer.loop.walk("fit"):
        trainer.on(f"{path}:exit", note)
    inputs, targets = torch.ones(4, 2), torch.zeros(4, 1)
    trainer.fit(model, [(inputs, targets)] * 3, [(inputs, targets)])
    return fired


class Model(nn.Module):
    """Trains one net for each optimizer."""

    def __init__(self, optimizers: int = 1) -> None:
        super().__init__()
        self.nets = nn.ModuleList(make_net(seed) for seed in range(optimizers))

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
        return mse(self.nets[optimizer_idx], batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), lr=0.1) for net in self.nets]


class Recurrent(Model):
    """Cuts each batch in two."""

    def split_batch(self, batch: Any, split_steps: int) -> list[Any]:
        return [batch, batch]

    def training_step(self, batch: Any, batch_idx: int, hiddens: Tensor | None) -> Any:  # type: ignore[override]
        return mse(self.nets[0], batch), torch.ones(1)


class ByHand(Model):
    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int, optimizers: Any) -> Any:
        optimizers[0].zero_grad()
        mse(self.nets[0], batch).backward()
        optimizers[0].step()


def lines(text: str) -> list[str]:
    return dedent(text).strip().splitlines()


def test_a_fit_with_one_optimizer() -> None:
    assert order_of(Model()) == lines(
        """
        fit
          fit_start
          sanity
            sanity_start
            sanity_fetch
            sanity_step
            sanity_fetch
            sanity_end
          sanity:exit
          next_epoch
          epoch
            epoch_start
            fetch
            batch
              batch_start
              batch_split
              optimizer
                forward
                backward
                optimizer_step
              optimizer:exit
              batch_split
              batch_end
            batch:exit
            fetch
            batch
              batch_start
              batch_split
              optimizer
                forward
                backward
                optimizer_step
              optimizer:exit
              batch_split
              batch_end
            batch:exit
            fetch
            validation
              validation_start
              validation_fetch
              validation_step
              validation_fetch
              validation_end
            validation:exit
            fetch
            batch
              batch_start
              batch_split
              optimizer
                forward
                backward
                optimizer_step
              optimizer:exit
              batch_split
              batch_end
            batch:exit
            fetch
            drain
            epoch_end
          epoch:exit
          next_epoch
          fit_end
        fit:exit
        """
    )


def test_a_fit_with_two_optimizers() -> None:
    assert order_of(Model(optimizers=2)) == lines(
        """
        fit
          fit_start
          sanity
            sanity_start
            sanity_fetch
            sanity_step
            sanity_fetch
            sanity_end
          sanity:exit
          next_epoch
          epoch
            epoch_start
            fetch
            batch
              batch_start
              batch_split
              optimizer
                forward
                backward
                optimizer_step
                forward
                backward
                optimizer_step
              optimizer:exit
              batch_split
              batch_end
            batch:exit
            fetch
            batch
              batch_start
              batch_split
              optimizer
                forward
                backward
                optimizer_step
                forward
                backward
                optimizer_step
              optimizer:exit
              batch_split
              batch_end
            batch:exit
            fetch
            validation
              validation_start
              validation_fetch
              validation_step
              validation_fetch
              validation_end
            validation:exit
            fetch
            batch
              batch_start
              batch_split
              optimizer
                forward
                backward
                optimizer_step
                forward
                backward
                optimizer_step
              optimizer:exit
              batch_split
              batch_end
            batch:exit
            fetch
            drain
            epoch_end
          epoch:exit
          next_epoch
          fit_end
        fit:exit
        """
    )


def test_a_fit_with_truncated_backpropagation_through_time() -> None:
    assert order_of(Recurrent(), split_steps=1) == lines(
        """
        fit
          fit_start
          sanity
            sanity_start
            sanity_fetch
            sanity_step
            sanity_fetch
            sanity_end
          sanity:exit
          next_epoch
          epoch
            epoch_start
            fetch
            batch
              batch_start
              batch_split
              optimizer
                forward
                backward
                optimizer_step
              optimizer:exit
              batch_split
              optimizer
                forward
                backward
                optimizer_step
              optimizer:exit
              batch_split
              batch_end
            batch:exit
            fetch
            batch
              batch_start
              batch_split
              optimizer
                forward
                backward
                optimizer_step
              optimizer:exit
              batch_split
              optimizer
                forward
                backward
                optimizer_step
              optimizer:exit
              batch_split
              batch_end
            batch:exit
            fetch
            validation
              validation_start
              validation_fetch
              validation_step
              validation_fetch
              validation_end
            validation:exit
            fetch
            batch
              batch_start
              batch_split
              optimizer
                forward
                backward
                optimizer_step
              optimizer:exit
              batch_split
              optimizer
                forward
                backward
                optimizer_step
              optimizer:exit
              batch_split
              batch_end
            batch:exit
            fetch
            drain
            epoch_end
          epoch:exit
          next_epoch
          fit_end
        fit:exit
        """
    )


def test_a_fit_with_manual_optimization() -> None:
    assert order_of(ByHand()) == lines(
        """
        fit
          fit_start
          sanity
            sanity_start
            sanity_fetch
            sanity_step
            sanity_fetch
            sanity_end
          sanity:exit
          next_epoch
          epoch
            epoch_start
            fetch
            batch
              batch_start
              batch_split
              optimizer
                manual_step
              optimizer:exit
              batch_split
              batch_end
            batch:exit
            fetch
            batch
              batch_start
              batch_split
              optimizer
                manual_step
              optimizer:exit
              batch_split
              batch_end
            batch:exit
            fetch
            validation
              validation_start
              validation_fetch
              validation_step
              validation_fetch
              validation_end
            validation:exit
            fetch
            batch
              batch_start
              batch_split
              optimizer
                manual_step
              optimizer:exit
              batch_split
              batch_end
            batch:exit
            fetch
            drain
            epoch_end
          epoch:exit
          next_epoch
          fit_end
        fit:exit
        """
    )
