"""The best weights are found, evaluated with, and restored; what the fit ended with stays."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from statemachine_trainer import Best, Checkpoints, Retention, Run, Trainer, load_weights, log
from statemachine_trainer.callbacks.finding import NoCheckpoint
from statemachine_trainer.cli.inspection import inspect
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.observe.best import NoBestCheckpoint
from statemachine_trainer.observe.run import BadMode
from statemachine_trainer.snapshot import NotACheckpoint
from statemachine_trainer.testing import assert_resumable

DATA = [torch.full((4, 2), float(n + 1)) for n in range(3)]


class Worsening(nn.Module):
    """Its loss falls in the first epoch and rises from then on; accuracy goes the other way."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 1)
        self.norm = nn.BatchNorm1d(1)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.norm(self.layer(batch)).mean() + self.layer.weight.sum()
        return loss

    def validation_step(self, batch: torch.Tensor) -> None:
        distance = (self.layer.weight.sum() + 0.5).abs()
        log("val_loss", distance)
        log("val_acc", -distance)

    def test_step(self, batch: torch.Tensor) -> None:
        log("weight", self.layer.weight.sum())

    def predict_step(self, batch: torch.Tensor) -> float:
        return float(self.layer.weight.sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def keeping(folder: Path, *rules: Best, **settings: Any) -> Trainer:
    retention = Retention(last=1, best=rules or (Best("val_loss"),))
    checkpoints = Checkpoints(folder, retention=retention)
    return Trainer(
        **{
            "max_epochs": 4,
            "checkpoints": checkpoints,
            "progress": False,
            "device": "cpu",
            **settings,
        }
    )


def fitted(folder: Path, *rules: Best, **settings: Any) -> tuple[Trainer, Worsening]:
    trainer, model = keeping(folder, *rules, **settings), Worsening()
    trainer.fit(model, DATA, DATA)
    return trainer, model


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: one.numpy().tobytes() for name, one in model.state_dict().items()}


def test_the_weights_with_the_best_metric_are_loaded(tmp_path: Path) -> None:
    trainer, model = fitted(tmp_path)
    last = trainer.validate(model, DATA)["val_loss"]
    load_weights(model, tmp_path, best="val_loss")
    best = Run(tmp_path).best("val_loss")
    assert best is not None
    assert trainer.validate(model, DATA)["val_loss"] == best.value < last


def test_the_best_value_of_a_run_has_the_path_of_its_checkpoint(tmp_path: Path) -> None:
    fitted(tmp_path)
    run, model = Run(tmp_path), Worsening()
    best = run.best("val_loss")
    assert best is not None
    assert best.path is not None
    assert best.path.parent == tmp_path
    load_weights(model, best.path)
    assert Trainer(progress=False).validate(model, DATA)["val_loss"] == best.value
    worst = run.best("val_loss", "max")
    assert worst is not None
    assert worst.path is None or worst.path != best.path


def test_inspect_marks_the_best(tmp_path: Path) -> None:
    fitted(tmp_path, Best("val_loss"), Best("val_acc", mode="max"))
    console = Console(file=io.StringIO(), width=200)
    inspect(tmp_path, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    (marked,) = [line for line in shown.splitlines() if "(best)" in line]
    assert "step-00000003" in marked
    assert marked.count("(best)") == 2


def test_one_step_has_one_checkpoint(tmp_path: Path) -> None:
    trainer, _ = fitted(tmp_path)
    assert trainer.checkpoints is not None
    steps = [one.metadata["step"] for one in trainer.checkpoints.store.list()]
    assert len(steps) == len(set(steps)) == 2


def test_whether_more_is_better_the_run_itself_says(tmp_path: Path) -> None:
    trainer, model = fitted(tmp_path, Best("val_acc", mode="max"))
    load_weights(model, tmp_path, best="val_acc")
    metrics = trainer.validate(model, DATA)
    best = Run(tmp_path).best("val_acc")
    assert best is not None
    assert (
        metrics["val_acc"] == best.value == max(p.value for p in Run(tmp_path).metrics("val_acc"))
    )


def test_best_weights_that_were_not_kept_are_an_error(tmp_path: Path) -> None:
    trainer = Trainer(
        max_epochs=4,
        checkpoints=Checkpoints(tmp_path, retention=Retention(last=1)),
        progress=False,
        device="cpu",
    )
    trainer.fit(Worsening(), DATA, DATA)
    best = Run(tmp_path).best("val_loss")
    assert best is not None
    assert best.path is None
    with pytest.raises(NoBestCheckpoint, match=r"at step 3, and its weights were not kept"):
        load_weights(Worsening(), tmp_path, best="val_loss")


def test_a_metric_that_no_checkpoint_has_is_an_error_with_the_nearest_name(tmp_path: Path) -> None:
    fitted(tmp_path)
    with pytest.raises(NoBestCheckpoint, match="Did you mean 'val_loss'"):
        load_weights(Worsening(), tmp_path, best="val_los")
    with pytest.raises(BadMode, match="'min'"):
        load_weights(Worsening(), tmp_path, best="val_loss", mode="low")  # type: ignore[arg-type]
    with pytest.raises(NotACheckpoint, match="no checkpoint in"):
        load_weights(Worsening(), tmp_path / "nowhere", best="val_loss")


@pytest.mark.parametrize("named", ["best", Best("val_loss"), "path"])
def test_an_evaluation_with_the_best_weights_leaves_the_model_its_own(
    tmp_path: Path, named: Any
) -> None:
    trainer, model = fitted(tmp_path)
    before, best = bits(model), Run(tmp_path).best("val_loss")
    assert best is not None
    checkpoint = best.path if named == "path" else named
    assert trainer.validate(model, DATA, checkpoint=checkpoint)["val_loss"] == best.value
    of_best = trainer.test(model, DATA, checkpoint=checkpoint)["weight"]
    assert trainer.predict(model, DATA, checkpoint=checkpoint) == [of_best] * 3
    assert trainer.test(model, DATA)["weight"] != of_best
    assert bits(model) == before


def test_the_newest_weights_go_into_a_new_model_for_one_evaluation(tmp_path: Path) -> None:
    trainer, model = fitted(tmp_path)
    other = Worsening()
    before, newest = bits(other), trainer.test(model, DATA)
    assert trainer.test(other, DATA, checkpoint="newest") == newest
    assert Trainer(progress=False).test(other, DATA, checkpoint=tmp_path) == newest
    assert bits(other) == before


def test_an_evaluation_with_the_best_weights_leaves_no_trace_in_a_paused_fit(
    tmp_path: Path,
) -> None:
    _, undisturbed = fitted(tmp_path / "one")
    trainer, model = keeping(tmp_path / "two"), Worsening()
    trainer.start(model, DATA, DATA)
    trainer.run(until=lambda trainer, _: trainer.steps == 7)
    trainer.test(model, DATA, checkpoint="best")
    trainer.run()
    assert bits(model) == bits(undisturbed)


def test_an_error_in_such_an_evaluation_leaves_the_model_its_own_weights(tmp_path: Path) -> None:
    trainer, model = fitted(tmp_path)
    before = bits(model)
    model.predict_step = lambda batch: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        trainer.predict(model, DATA, checkpoint="best")
    assert bits(model) == before


@pytest.mark.parametrize(
    "checkpoint, error, message",
    [
        ("last", SettingError, "called 'newest'"),
        (3, SettingError, "names none"),
        ("nowhere", NotACheckpoint, "nowhere"),
    ],
)
def test_what_names_no_checkpoint_is_refused(
    tmp_path: Path, checkpoint: Any, error: type[Exception], message: str
) -> None:
    trainer, model = fitted(tmp_path)
    with pytest.raises(error, match=message):
        trainer.test(model, DATA, checkpoint=checkpoint)


def test_the_best_needs_one_rule() -> None:
    trainer = Trainer(max_epochs=1, progress=False)
    with pytest.raises(NoCheckpoint, match="needs a place to look"):
        trainer.test(Worsening(), DATA, checkpoint="best")
    with pytest.raises(SettingError, match="does not know what is best"):
        trainer.fit(Worsening(), DATA, DATA, restore_best=True)


def test_of_two_rules_the_one_meant_is_named(tmp_path: Path) -> None:
    rules = Best("val_loss"), Best("val_acc", mode="max")
    trainer, model = fitted(tmp_path, *rules)
    with pytest.raises(SettingError, match="'val_loss', 'val_acc', so 'best' does not say which"):
        trainer.test(model, DATA, checkpoint="best")
    assert trainer.test(model, DATA, checkpoint=rules[1])


def test_a_fit_may_end_with_its_best_weights(tmp_path: Path) -> None:
    trainer, model = keeping(tmp_path), Worsening()
    trainer.fit(model, DATA, DATA, restore_best=True)
    best = Run(tmp_path).best("val_loss")
    assert best is not None
    assert trainer.validate(model, DATA)["val_loss"] == best.value


def test_a_fit_that_goes_on_does_so_from_where_it_ended(tmp_path: Path) -> None:
    _, undisturbed = fitted(tmp_path / "one", max_epochs=6)
    trainer, model = keeping(tmp_path / "two"), Worsening()
    trainer.fit(model, DATA, DATA, restore_best=True)
    trainer.checkpoint()  # of the end, as the one before
    trainer.loop.max_epochs = 6
    trainer.fit(model)
    assert bits(model) == bits(undisturbed)


def test_a_resumed_fit_ends_with_the_same_best_weights(tmp_path: Path) -> None:
    trainer, model = keeping(tmp_path), Worsening()
    trainer.fit(model, DATA, DATA, restore_best=True)
    again = Worsening()
    keeping(tmp_path).fit(again, DATA, DATA, restore_best=True, resume="auto")
    assert bits(again) == bits(model)


def test_a_fit_that_restores_its_best_resumes_anywhere() -> None:
    def make_trainer() -> Trainer:
        trainer = Trainer(max_epochs=2, progress=False, device="cpu")
        trainer.start(Worsening(), DATA, DATA)
        return trainer

    assert_resumable(make_trainer, examples=3, seed=0)
