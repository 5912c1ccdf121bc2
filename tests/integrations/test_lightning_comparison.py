"""The same LightningModule in Lightning's trainer and in ours: the same weights, the same hooks.

Departures, each on purpose and each in a test here:

- An accumulation window that is open when an epoch ends is stepped after the last batch has ended, with
  its gradients scaled by its true size. Lightning steps it in the last batch, scaled as if it were whole.
- Schedulers that go by epochs move when the epoch ends, after its validation. Lightning moves them in
  the last batch of the epoch, before its validation. The learning rates of all steps are the same.
- A fraction of an epoch validates at its end, too.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("lightning", reason="needs the extra `lightning`")

import lightning as L
import torchmetrics
from lightning.pytorch.callbacks import EarlyStopping

from tests.integrations.lightning_kit import (
    Classifier,
    Ended,
    assert_same_bits,
    both,
    data,
    noting,
)


def validation_data() -> Any:
    return data(40, 20, shuffle=False)


def watched(kind: type[Any]) -> Any:
    """Make the module with a callback, both noting every hook."""

    def make(notes: list[str]) -> tuple[Any, list[Any]]:
        return noting(kind, notes)(), [noting(L.Callback, notes, "callback.")()]

    return make


def without(ended: Ended, *names: str) -> list[str]:
    return [note for note in ended.notes if note not in names]


def places(ended: Ended, name: str) -> list[str]:
    """What came right before each call of a hook."""
    return [
        before for before, note in zip(ended.notes, ended.notes[1:], strict=False) if note == name
    ]


class Scheduled(Classifier):
    interval = "step"

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)
        return [optimizer], [{"scheduler": scheduler, "interval": self.interval}]


class ScheduledByEpoch(Scheduled):
    interval = "epoch"


def test_all_hooks_are_called_in_the_same_order() -> None:
    theirs, ours = both(watched(Scheduled), data, validation_data, max_epochs=2)
    assert_same_bits(theirs, ours)
    assert ours.notes == theirs.notes
    assert len(ours.notes) > 300


def test_a_scheduler_by_epochs_gives_the_same_rates_and_moves_when_the_epoch_ends() -> None:
    theirs, ours = both(watched(ScheduledByEpoch), data, validation_data, max_epochs=3)
    assert_same_bits(theirs, ours)
    assert without(ours, "lr_scheduler_step") == without(theirs, "lr_scheduler_step")
    assert set(places(ours, "lr_scheduler_step")) == {"on_train_epoch_end"}
    assert set(places(theirs, "lr_scheduler_step")) == {"configure_gradient_clipping"}


class MakesLoaders(Classifier):
    """Makes a loader of another size each time that it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def train_dataloader(self) -> Any:
        self.asked += 1
        return data(60, 5 * self.asked)


def test_loaders_that_are_made_anew_give_the_same_bits() -> None:
    theirs, ours = both(watched(MakesLoaders), max_epochs=4, reload_every=2)
    assert_same_bits(theirs, ours)
    assert ours.notes == theirs.notes
    assert ours.module.asked == theirs.module.asked == 2


class OnPlateau(Classifier):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val_loss"}


def test_a_scheduler_on_a_plateau_sees_the_validation_of_its_epoch() -> None:
    theirs, ours = both(watched(OnPlateau), data, validation_data, max_epochs=6)
    assert_same_bits(theirs, ours)
    assert ours.notes == theirs.notes
    rates = [one.module.optimizers().param_groups[0]["lr"] for one in (theirs, ours)]
    assert rates[0] == rates[1] < 1.0


def test_clipping_and_whole_accumulation_windows_give_the_same_bits() -> None:
    theirs, ours = both(
        watched(Scheduled), data, validation_data, max_epochs=3, clip_norm=0.1, accumulate=3
    )
    assert_same_bits(theirs, ours)
    assert ours.notes == theirs.notes
    assert ours.steps == 6


def test_an_accumulation_window_left_open_by_the_epoch_is_scaled_by_its_true_size() -> None:
    theirs, ours = both(watched(Classifier), data, max_epochs=1, accumulate=4)
    assert ours.steps == theirs.steps == 2
    assert any(not torch.equal(w, ours.weights[n]) for n, w in theirs.weights.items())


def test_validation_within_the_epoch_gives_the_same_bits() -> None:
    theirs, ours = both(
        watched(Classifier), data, validation_data, max_epochs=2, validate_every=0.5
    )
    assert_same_bits(theirs, ours)
    assert ours.notes == theirs.notes
    assert ours.notes.count("on_validation_end") == 5  # one of them is the sanity check's


class Measured(Classifier):
    """Logs torchmetrics objects, as values per step and per epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.scores = torchmetrics.MetricCollection(
            {
                "f1": torchmetrics.F1Score("multiclass", num_classes=3, average="macro"),
                "recall": torchmetrics.Recall("multiclass", num_classes=3, average="macro"),
            }
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = batch
        outputs = self(inputs)
        self.accuracy(outputs, targets)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        loss = F.cross_entropy(outputs, targets)
        self.log_dict(
            {"loss": loss, "largest": loss}, on_step=False, on_epoch=True, reduce_fx="max"
        )
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, targets = batch
        self.scores.update(self(inputs), targets)
        self.log_dict(self.scores)
        self.log("val_loss", self.loss(batch), prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        self.log("epoch_seen", float(self.current_epoch))


def test_torchmetrics_and_logged_values_are_the_same() -> None:
    theirs, ours = both(watched(Measured), data, validation_data, max_epochs=2)
    assert_same_bits(theirs, ours)
    assert ours.metrics.keys() == theirs.metrics.keys()
    assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-6)


def test_early_stopping_of_lightning_stops_in_the_same_epoch() -> None:
    stopped: list[Any] = []

    def make(notes: list[str]) -> tuple[Any, list[Any]]:
        stopping = noting(EarlyStopping, notes, "stopping.")("val_loss", patience=1, min_delta=0.05)
        stopped.append(stopping)
        return noting(Measured, notes)(), [stopping]

    theirs, ours = both(make, data, validation_data, max_epochs=50)
    assert_same_bits(theirs, ours)
    assert ours.notes == theirs.notes
    assert stopped[0].stopped_epoch == stopped[1].stopped_epoch > 0
    assert stopped[0].wait_count == stopped[1].wait_count
    assert float(stopped[0].best_score) == pytest.approx(float(stopped[1].best_score), rel=1e-6)


class Gan(L.LightningModule):
    """Two optimizers by hand, with all that Lightning has for it."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
        self.critic = nn.Sequential(
            nn.Linear(8, 16), nn.LeakyReLU(), nn.Dropout(0.1), nn.Linear(16, 1)
        )

    def training_step(self, batch: Any, batch_idx: int) -> None:
        real, _ = batch
        optimizers: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        of_generator, of_critic = optimizers
        self.toggle_optimizer(of_generator)
        fakes = self.generator(torch.randn(len(real), 4))
        loss = F.softplus(-self.critic(fakes)).mean()
        of_generator.zero_grad()
        self.manual_backward(loss)
        of_generator.step()
        self.untoggle_optimizer(of_generator)
        with of_critic.toggle_model():
            wrong = F.softplus(self.critic(fakes.detach())).mean()
            right = F.softplus(-self.critic(real)).mean()
            of_critic.zero_grad()
            self.manual_backward(wrong + right)
            self.clip_gradients(of_critic, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            of_critic.step()
        if self.trainer.is_last_batch:
            scheduler.step()
        self.log_dict({"generator": loss, "critic": wrong + right}, prog_bar=True)

    def configure_optimizers(self) -> Any:
        of_generator = torch.optim.Adam(self.generator.parameters(), lr=0.01, betas=(0.5, 0.9))
        of_critic = torch.optim.Adam(self.critic.parameters(), lr=0.02, betas=(0.5, 0.9))
        scheduler = torch.optim.lr_scheduler.ExponentialLR(of_critic, 0.9)
        return [of_generator, of_critic], [scheduler]


def test_a_gan_that_optimizes_by_hand_gives_the_same_bits() -> None:
    theirs, ours = both(watched(Gan), data, max_epochs=3)
    assert_same_bits(theirs, ours)
    assert ours.notes == theirs.notes
    assert ours.steps == 36  # those of both optimizers
    rates = [one.module.optimizers()[1].param_groups[0]["lr"] for one in (theirs, ours)]
    assert rates[0] == rates[1] == pytest.approx(0.02 * 0.9**3)


class OwnStep(Classifier):
    """Has an `optimizer_step` that warms up, and leaves out the step of some batches."""

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * min(1.0, (self.trainer.global_step + 1) / 8)
        if batch_idx % 3 != 2:
            optimizer.step(closure=optimizer_closure)
        else:
            optimizer_closure()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_optimizer_step_of_the_modules_own_gives_the_same_bits(accumulate: int) -> None:
    theirs, ours = both(watched(OwnStep), data, max_epochs=2, accumulate=accumulate)
    assert_same_bits(theirs, ours)
    assert ours.notes == theirs.notes


class ByLbfgs(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def training_step(self, batch: Any) -> Tensor:
        inputs, targets = batch
        return F.cross_entropy(self.layer(inputs), targets)

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)


def test_an_optimizer_that_evaluates_the_loss_itself_gives_the_same_bits() -> None:
    theirs, ours = both(watched(ByLbfgs), data, max_epochs=2)
    assert_same_bits(theirs, ours)
    assert ours.notes == theirs.notes


class OwnScheduling(Scheduled):
    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if self.global_step % 2:
            scheduler.step()


class OwnClipping(Classifier):
    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        self.clip_gradients(optimizer, 0.2, "value")


class OwnBackward(Classifier):
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        (2 * loss).backward()


@pytest.mark.parametrize("kind", [OwnScheduling, OwnClipping, OwnBackward])
def test_ways_of_the_modules_own_give_the_same_bits(kind: type[Any]) -> None:
    theirs, ours = both(watched(kind), data, max_epochs=2)
    assert_same_bits(theirs, ours)
    assert ours.notes == theirs.notes


class EndsEpochs(Classifier):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        return -1 if batch_idx == 3 else None


def test_minus_one_at_the_start_of_a_batch_ends_the_epoch_without_it() -> None:
    theirs, ours = both(watched(EndsEpochs), data, max_epochs=2)
    assert_same_bits(theirs, ours)
    assert ours.notes == theirs.notes
    assert ours.notes.count("training_step") == 6


class Silent(Classifier):
    """Returns no loss for some batches."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx % 2 else {"loss": self.loss(batch), "extra": batch_idx}


def test_what_a_callback_gets_as_outputs_is_the_same() -> None:
    outputs: dict[int, list[Any]] = {}

    class Outputs(L.Callback):
        def on_train_batch_end(
            self, trainer: Any, module: Any, found: Any, batch: Any, n: int
        ) -> None:
            shown = {key: float(value) for key, value in found.items()}
            outputs.setdefault(id(self), []).append((n, len(batch[0]), shown))

    kept: list[Any] = []  # else an id may come up again

    def make(notes: list[str]) -> tuple[Any, list[Any]]:
        kept.append(Outputs())
        return Silent(), [kept[-1]]

    both(make, data, max_epochs=1)
    theirs, ours = (outputs[id(one)] for one in kept)
    assert ours[0] == theirs[0]
    assert [(n, size, set(shown)) for n, size, shown in ours] == [
        (n, size, set(shown)) for n, size, shown in theirs
    ]
