"""Evaluation inside other loops: between two splits of a batch, every n steps, on several loaders."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer import (
    BatchLoop,
    EarlyStopping,
    EpochLoop,
    FitLoop,
    Loop,
    OptimizerLoop,
    Trainer,
    ValidationLoop,
    every,
    log,
    place,
)
from statemachine_trainer.testing import assert_resumable

# -- the loop: what a user writes ----------------------------------------------------------------


class ValidatingBatchLoop(BatchLoop):
    """Validates after every few splits of a long batch."""

    transitions = (  # type: ignore[assignment]
        ["batch_started", "batch_start", "batch_split"],
        ["split", "batch_split", "optimizer"],
        ["optimized", "optimizer", "between_splits"],
        ["validate", "between_splits", "validation"],
        ["validation_done", "validation", "batch_split"],
        ["go_on", "between_splits", "batch_split"],
        ["batch_complete", "batch_split", "batch_end"],
    )
    validation: Loop = place(ValidationLoop)

    def __init__(self, *, validate_splits: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.validate_splits = validate_splits

    def between_splits(self) -> Literal["validate", "go_on"]:
        done = self.context.split_idx + 1
        due = done % self.validate_splits == 0 and done < len(self.context.splits)
        return "validate" if due else "go_on"


# -- a model of text and its data ----------------------------------------------------------------


class Characters(nn.Module):
    """Foretells the next character of texts, handing its state on from split to split."""

    def __init__(self, kinds: int, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(kinds, width)
        self.cells = nn.GRU(width, width, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(width, kinds)
        self.seen: list[Any] = []

    def loss(self, batch: Any, state: Any) -> tuple[Tensor, Any]:
        found, state = self.cells(self.embedding(batch[0]), state)
        logits = self.head(self.dropout(found))
        return F.cross_entropy(logits.transpose(1, 2), batch[1]), state

    def training_step(self, batch: Any, batch_idx: int, hiddens: Any) -> Any:
        loss, hiddens = self.loss(batch, hiddens)
        log("loss", loss)
        return {"loss": loss, "hiddens": hiddens}

    def validation_step(self, batch: Any, batch_idx: int, hiddens: Any) -> None:
        self.seen.append(hiddens)
        log("val_loss", self.loss(batch, None)[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def texts(topic: str, count: int, length: int, batch_size: int) -> Any:
    """Pieces of the documentation that Python brings with it, as numbers; and those moved on by one."""
    from pydoc_data.topics import topics

    codes = torch.tensor([ord(c) % 64 for c in topics[topic]][: count * length + 1])
    inputs, targets = codes[:-1].view(count, length), codes[1:].view(count, length)
    return DataLoader(TensorDataset(inputs, targets), batch_size, shuffle=True)


def data(length: int = 12) -> tuple[Any, dict[str, Any]]:
    near, far = texts("class", 3, length, 2), texts("numbers", 2, length, 2)
    return texts("function", 4, length, 2), {"near": near, "far": far}


def model() -> Characters:
    torch.manual_seed(0)
    return Characters(64)


def trainer_of(validate_splits: int = 2, *, epoch: Any = None, **settings: Any) -> Trainer:
    batch = ValidatingBatchLoop(validate_splits=validate_splits, split_steps=3)
    loop = FitLoop(max_epochs=1, sanity_batches=0, epoch=EpochLoop(batch=batch, **(epoch or {})))
    return Trainer(loop, progress=False, device="cpu", **settings)


# -- shown ---------------------------------------------------------------------------------------


def test_validation_runs_in_the_middle_of_a_batch_on_every_loader() -> None:
    trainer, told = trainer_of(), []

    @trainer.on("batch.validation:exit")
    def note(trainer: Trainer) -> None:
        counts, found = trainer.context.counts, trainer.metrics
        told.append((counts.batch, counts.step, {"val_loss/near", "val_loss/far"} <= {*found}))

    trainer.fit(model(), *data())
    assert told == [(0, 2, True), (1, 6, True)]
    assert trainer.metrics["val_loss/near"] != trainer.metrics["val_loss/far"]


def test_validation_between_two_splits_changes_nothing_of_the_training() -> None:
    def trained(validate_splits: int) -> Any:
        trainer, mine = trainer_of(validate_splits), model()
        seen: list[Any] = []

        @trainer.on("optimizer.forward")
        def note(trainer: Trainer) -> None:
            context = trainer.context
            seen.append((context.batch_idx, context.split_idx, context.split[0].tolist()))

        torch.manual_seed(1)
        sequences, validation = data()
        without_chance = {name: [*one] for name, one in validation.items()}
        trainer.fit(mine, [*sequences], without_chance)
        return mine, seen

    (one, seen), (other, undisturbed) = trained(2), trained(100)
    assert seen == undisturbed
    assert len(one.seen) > len(other.seen)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_validation_step_gets_no_hiddens_of_the_training() -> None:
    mine = model()
    trainer_of().fit(mine, *data())
    assert mine.seen == [None] * len(mine.seen)


def test_validation_every_few_steps_may_be_in_the_epoch_at_the_same_time() -> None:
    trainer, told = trainer_of(epoch={"validate_every": every(4, "step")}), []
    trainer.on("*.validation", lambda moment: told.append(moment.path))
    trainer.fit(model(), *data())
    inside, outside = "fit.epoch.batch.validation", "fit.epoch.validation"
    assert told == [inside, outside, inside, outside]


def test_callbacks_hear_both_validations() -> None:
    stopping = EarlyStopping("val_loss/near", check="validation_end", patience=100)
    trainer = trainer_of(callbacks=[stopping])
    trainer.fit(model(), *data())
    assert stopping.best is not None


def test_validation_may_stand_between_gradients_and_step() -> None:
    class Scaled(OptimizerLoop):
        transitions = (  # type: ignore[assignment]
            *OptimizerLoop.transitions[:3],
            ["backward_done", "backward", "validation"],
            ["validation_done", "validation", "optimizer_step"],
            *OptimizerLoop.transitions[4:],
        )
        validation: Loop = place(ValidationLoop)

    sequences, validation = data()
    mine, other = model(), model()
    batches, few = [*sequences], [next(iter(validation["near"]))]
    for loop, one in ((Scaled(), mine), (OptimizerLoop(), other)):
        batch = BatchLoop(split_steps=3, optimizer=loop)
        torch.manual_seed(1)
        fit = FitLoop(max_epochs=1, sanity_batches=0, epoch=EpochLoop(batch=batch))
        Trainer(fit, progress=False, device="cpu").fit(one, batches, few)
    assert all(
        torch.equal(a, b) for a, b in zip(mine.parameters(), other.parameters(), strict=True)
    )
    assert len(mine.seen) == 9


# -- resuming ------------------------------------------------------------------------------------


class Watching:
    """Reads the gradients when a batch has ended, as a callback of statistics does."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_batch_end(self, trainer: Trainer) -> None:
        norm = sum(float(p.grad.norm()) for p in trainer.model.parameters() if p.grad is not None)
        self.norms.append(norm)

    def state_dict(self) -> dict[str, Any]:
        return {"norms": [*self.norms]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.norms = [*state["norms"]]


def make_trainer() -> Trainer:
    trainer = trainer_of(callbacks=[Watching()])
    trainer.start(model(), *data(9))
    return trainer


def test_a_snapshot_within_such_a_validation_is_exact() -> None:
    assert_resumable(make_trainer, examples=10, stops_per_run=2, seed=0)


@pytest.mark.slow
def test_a_snapshot_at_any_boundary_is_exact() -> None:
    report = assert_resumable(make_trainer, exhaustive=True)
    assert len(report.tried) == report.possible > 60


def test_a_run_killed_in_that_validation_goes_on_with_the_next_split(tmp_path: Path) -> None:
    torch.manual_seed(2)
    whole = trainer_of()
    whole.fit(model(), *data())
    torch.manual_seed(2)
    killed = trainer_of(checkpoints=tmp_path / "run")
    killed.fit(model(), *data(), until="batch.validation.validation_step")
    assert killed.context.batch is not None
    assert len(killed.context.aside) == 1
    killed.checkpoint()
    resumed, mine = trainer_of(checkpoints=tmp_path / "run"), model()
    resumed.fit(mine, *data(), resume="auto", until="optimizer.forward")
    assert resumed.context.split_idx == 2
    resumed.run()
    assert resumed.metrics == whole.metrics
    assert all(
        torch.equal(a, b) for a, b in zip(mine.parameters(), whole.model.parameters(), strict=True)
    )


def test_a_batch_that_could_not_be_moved_is_not_lost_to_a_validation() -> None:
    """The validation that comes between the failure and the second try leaves the batch alone."""
    trainer = Trainer(max_epochs=1, sanity_batches=0, progress=False, device="cpu")
    mine, (sequences, validation) = copy.deepcopy(model()), data()
    trainer.start(mine, sequences, validation)
    fails = [True, False]

    def move(batch: Any) -> Any:
        if fails.pop(0) if fails else False:
            raise RuntimeError("no memory on the device")
        return batch

    trainer.context.transfer = move
    with pytest.raises(RuntimeError, match="no memory"):
        trainer.run()
    held = trainer.context.batch
    trainer.post("validate")
    trainer.run(until="batch")
    assert trainer.context.validated_at == (0, 0)
    assert trainer.context.batch is held
