"""Callbacks of transformers hear and see in this trainer what they do in their own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer import Trainer
from statemachine_trainer.integrations.huggingface import (
    ArgumentMissing,
    NotATrainerCallback,
    TrainerCallbacks,
)
from statemachine_trainer.testing import assert_resumable

transformers = pytest.importorskip("transformers", reason="needs the extra `huggingface`")

EVENTS = (
    "on_train_begin", "on_epoch_begin", "on_step_begin", "on_substep_end", "on_pre_optimizer_step",
    "on_optimizer_step", "on_step_end", "on_epoch_end", "on_evaluate", "on_save", "on_log", "on_train_end",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(transformers|accelerate|torch)\.")
        yield


def samples() -> TensorDataset:
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(inputs, inputs.argmax(1))


class Net(nn.Module):
    """A model for both trainers: theirs calls it with names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        out = self.net(inputs)
        return out if labels is None else {"loss": F.cross_entropy(out, labels), "logits": out}


def noting(notes: list[Any]) -> Any:
    """A callback that notes what it is called for, at which step."""

    def event(name: str) -> Any:
        def method(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
            assert more["model"] is not None
            notes.append((name, state.global_step, round(state.epoch or 0.0, 5)))

        return method

    made = type("Noting", (transformers.TrainerCallback,), {name: event(name) for name in EVENTS})
    return made()


def ours(*callbacks: Any, args: Any = None, **settings: Any) -> Trainer:
    model = Net()
    trainer = Trainer(
        **{"max_epochs": 2, "device": "cpu", "progress": False, "sanity_batches": 0, **settings},
        callbacks=[TrainerCallbacks(*callbacks, args=args)],
    )
    loader = DataLoader(samples(), batch_size=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer.fit(model, loader, loader, loss=F.cross_entropy, optimizer=optimizer)
    return trainer


def theirs(folder: Path, *callbacks: Any, **settings: Any) -> None:
    args = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=4, num_train_epochs=2, report_to=[], use_cpu=True,
        save_strategy="no", eval_strategy="epoch", logging_strategy="epoch", disable_tqdm=True,
        optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", **settings,
    )  # fmt: skip
    data = samples()
    pairs = [{"inputs": one, "labels": label} for one, label in map(data.__getitem__, range(16))]
    trainer = transformers.Trainer(
        Net(), args, train_dataset=pairs, eval_dataset=pairs, callbacks=list(callbacks)
    )
    trainer.train()


def without(notes: list[Any], *events: str) -> list[Any]:
    return [one for one in notes if one[0] not in events]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_events_of_a_training_come_in_their_order_at_their_steps(
    tmp_path: Path, accumulate: int
) -> None:
    """What they do at the end of an epoch, log and evaluate, they do after `on_epoch_end`, and we before."""
    in_theirs: list[Any] = []
    in_ours: list[Any] = []
    theirs(tmp_path, noting(in_theirs), gradient_accumulation_steps=accumulate)
    ours(noting(in_ours), accumulate=accumulate)
    moved = ("on_evaluate", "on_log", "on_train_end")
    assert without(in_ours, *moved) == without(in_theirs, *moved)
    for name in ("on_evaluate", "on_train_end"):
        steps = [[one[1] for one in notes if one[0] == name] for notes in (in_ours, in_theirs)]
        assert steps[0] == steps[1]


def test_metrics_have_the_names_that_callbacks_look_for() -> None:
    seen: list[Any] = []

    class Looks(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
            seen.append(metrics)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
            seen.append(logs)

    trainer = ours(Looks(), max_epochs=1)
    evaluated, metrics, trained = seen
    assert metrics == {"eval_loss": pytest.approx(trainer.metrics["val_loss"])}
    assert evaluated == {**metrics, "epoch": 1.0}
    assert trained["learning_rate"] == 0.1
    assert trained["loss"] == pytest.approx(trainer.metrics["loss"])


@pytest.mark.parametrize("flag, steps", [("should_training_stop", 1), ("should_epoch_stop", 2)])
def test_what_a_callback_asks_for_is_done(flag: str, steps: int) -> None:
    def ask(self: Any, args: Any, state: Any, control: Any, **_: Any) -> Any:
        setattr(control, flag, True)
        return control

    asking = type("Asking", (transformers.TrainerCallback,), {"on_step_end": ask})
    assert ours(asking()).context.counts.step == steps


def test_a_callback_has_a_checkpoint_written_and_hears_of_it(tmp_path: Path) -> None:
    class Saves(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        saved = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_save = state.global_step == 3

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.saved += 1

    one = Saves()
    ours(one, checkpoints=str(tmp_path / "run"))
    steps = sorted(int(path.name.split("-")[2]) for path in (tmp_path / "run").glob("0*"))
    assert steps == [3, 4, 8]
    assert one.saved == 3


def test_their_early_stopping_stops(tmp_path: Path) -> None:
    args = transformers.TrainingArguments(
        str(tmp_path), metric_for_best_model="loss", load_best_model_at_end=True, eval_strategy="epoch",
        save_strategy="epoch", greater_is_better=False, use_cpu=True, report_to=[],
    )  # fmt: skip
    stopping = transformers.EarlyStoppingCallback(2, early_stopping_threshold=10.0)
    trainer = ours(stopping, args=args, max_epochs=9)
    assert trainer.epoch == 3
    assert trainer.context.counts.step == 12


def test_what_callbacks_keep_goes_on_after_a_resume() -> None:
    class Counts(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.seen: list[int] = []

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            self.seen.append(len(state.log_history))
            with torch.no_grad():
                model.net.bias.add_(0.01 * len(self.seen))

    def started() -> Trainer:
        model = Net()
        trainer = Trainer(
            max_epochs=2, device="cpu", progress=False, callbacks=[TrainerCallbacks(Counts())]
        )
        loader = DataLoader(samples(), batch_size=4, shuffle=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer.start(model, loader, loader, loss=F.cross_entropy, optimizer=optimizer)
        return trainer

    assert_resumable(started, examples=5, seed=0)


def test_mistakes_are_told() -> None:
    with pytest.raises(NotATrainerCallback, match="EarlyStoppingCallback is none"):
        TrainerCallbacks(transformers.EarlyStoppingCallback)
    with pytest.raises(ArgumentMissing, match=r"reads args\.load_best_model_at_end"):
        ours(transformers.EarlyStoppingCallback())
