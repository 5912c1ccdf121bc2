"""Validation inside of training, and by itself: modes, gradients, metrics, failures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer.loops.evaluation import GradientsOff
from statemachine_trainer.loops.loop_errors import ModelError, NothingToDo
from statemachine_trainer.loops.metrics.log import log
from statemachine_trainer.trainer import Trainer
from tests.loops.outer_kit import Model, Trace, make_trainer, numbered


def test_validation_runs_without_gradients() -> None:
    class Watching(Model):
        def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            grads.append(self.layer(batch).requires_grad)

    grads: list[bool] = []
    make_trainer().fit(Watching(), numbered(1), numbered(2))
    assert grads == [False, False]


def test_validation_inside_an_accumulation_window_leaves_the_gradients_alone() -> None:
    whole, interrupted = Model(), Model()
    make_trainer(accumulate=3).fit(whole, numbered(6), numbered(2))
    make_trainer(accumulate=3, validate_every=2).fit(interrupted, numbered(6), numbered(2))
    assert torch.equal(whole.layer.weight, interrupted.layer.weight)
    trainer = make_trainer(accumulate=3, validate_every=2)
    grads: list[bool] = []
    trainer.on(
        "validation_end",
        lambda t: grads.append(t.context.open_windows and t.model.layer.weight.grad is not None),
    )
    trainer.fit(Model(), numbered(6), numbered(2))
    assert grads == [True, True, False]


def test_each_validation_begins_with_an_empty_table() -> None:
    trainer, model = make_trainer(max_epochs=2), Model()
    trainer.fit(model, numbered(1), numbered(3))
    assert trainer.metrics["value"] == 1.0
    assert model.validated == [0, 1, 2, 0, 1, 2]


def test_training_metrics_go_on_over_a_validation_between() -> None:
    class Logging(Model):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            log("number", batch.mean())
            return super().training_step(batch, batch_idx)

    trainer = make_trainer(validate_every=1)
    trainer.fit(Logging(), numbered(4), numbered(1))
    assert trainer.metrics["number"] == 1.5


class Failing(Model):
    """Its validation step raises at one batch, until it is mended."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Dropout().eval()
        self.broken = True
        self.modes: list[tuple[bool, bool]] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        self.modes.append((self.training, self.part.training))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        if self.broken and batch_idx == 1:
            raise ValueError("a mistake")
        return super().validation_step(batch, batch_idx)


def test_a_validation_that_raised_goes_on_with_the_same_batch_and_puts_the_modes_back() -> None:
    trainer, model = make_trainer(max_epochs=2), Failing()
    with pytest.raises(ValueError, match="a mistake"):
        trainer.fit(model, numbered(2), numbered(3))
    assert trainer.path == "fit.epoch.validation.validation_step"
    model.broken = False
    trainer.run()
    assert model.validated == [0, 1, 2, 0, 1, 2]
    assert trainer.metrics["value"] == 1.0
    assert set(model.modes) == {(True, False)}


def test_a_fit_begun_anew_after_a_validation_that_raised_has_the_modes_of_before() -> None:
    trainer, model = make_trainer(), Failing()
    data, validation = numbered(2), numbered(3)
    with pytest.raises(ValueError, match="a mistake"):
        trainer.fit(model, data, validation)
    model.broken = False
    trainer.fit(model, data, validation, restart=True)
    assert set(model.modes) == {(True, False)}


def test_a_validation_by_itself_that_raised_does_not_change_the_modes_of_the_next() -> None:
    trainer, model = make_trainer(), Failing()
    with pytest.raises(ValueError, match="a mistake"):
        trainer.validate(model, numbered(3))
    model.broken = False
    assert trainer.validate(model, numbered(3)) == {"value": 1.0}
    assert (model.training, model.part.training) == (True, False)


def test_a_validation_by_itself_that_raised_can_go_on() -> None:
    trainer, model = make_trainer(), Failing()
    with pytest.raises(ValueError, match="a mistake"):
        trainer.validate(model, numbered(3))
    model.broken = False
    trainer.run()
    assert model.validated == [0, 1, 2]
    assert trainer.metrics == {"value": 1.0}
    assert (model.training, model.part.training) == (True, False)


def test_a_validation_that_raised_in_a_pause_leaves_the_fit_in_training_mode() -> None:
    trainer, model = make_trainer(), Failing()
    trainer.fit(model, numbered(3), until="batch_end")
    with pytest.raises(ValueError, match="a mistake"):
        trainer.validate(model, numbered(3))
    trainer.run()
    assert model.trained == [0, 1, 2]
    assert set(model.modes) == {(True, False)}


def test_the_batch_and_what_the_step_returned_are_seen_when_the_step_is_left() -> None:
    class Returning(Model):
        def validation_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            return batch + 1

    trainer = make_trainer()
    seen: list[tuple[float, float]] = []
    trainer.on(
        "validation_step:exit",
        lambda t: seen.append((t.context.batch.mean().item(), t.context.output.mean().item())),
    )
    trainer.fit(Returning(), numbered(1), numbered(3))
    assert seen == [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]
    assert trainer.context.batch is None


def test_what_is_logged_when_validation_ends_belongs_to_it() -> None:
    trainer = make_trainer(max_epochs=2)
    trainer.on("validation_end", lambda t: log("twice", 2 * t.metrics["value"]))
    trainer.fit(Model(), numbered(1), numbered(3))
    assert trainer.context.validation_metrics.compute() == {"value": 1.0, "twice": 2.0}


def test_validation_data_without_a_validation_step_are_refused() -> None:
    class Untested(Model):
        validation_step = None  # type: ignore[assignment]

    with pytest.raises(ModelError, match="no validation_step"):
        make_trainer().fit(Untested(), numbered(1), numbered(1))


# -- by itself -----------------------------------------------------------------------------------


def test_validate_and_test_return_their_metrics_and_train_nothing() -> None:
    trainer, model = make_trainer(), Model()
    assert trainer.validate(model, numbered(3)) == {"value": 1.0}
    assert trainer.test(model, numbered(5)) == {"test_value": 2.0}
    assert (model.trained, model.validated, model.tested) == ([], [0, 1, 2], [0, 1, 2, 3, 4])
    assert model.training


def test_the_limits_of_evaluations_hold_by_themselves_too() -> None:
    trainer, model = make_trainer(limit_validation_batches=2, limit_test_batches=0.5), Model()
    trainer.validate(model, numbered(4))
    trainer.test(model, numbered(4))
    assert (model.validated, model.tested) == ([0, 1], [0, 1])


def test_after_a_fit_its_model_is_taken_and_its_counters_stay() -> None:
    trainer, model = make_trainer(max_epochs=2), Model()
    trainer.fit(model, numbered(2), numbered(2))
    assert trainer.validate(data=numbered(3)) == {"value": 1.0}
    assert (trainer.epoch, trainer.steps) == (2, 4)
    trainer.loop.max_epochs = 3
    trainer.fit()
    assert trainer.steps == 6


@pytest.mark.parametrize("state", ["batch_end", "validation_step", "forward", "fetch"])
def test_an_evaluation_in_a_pause_changes_nothing_of_the_fit(state: str) -> None:
    class Noisy(Model):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * torch.rand(())

        def validation_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            torch.rand(3)
            return super().validation_step(batch, batch_idx)

    def fit(disturbed: bool) -> tuple[torch.Tensor, str, Any]:
        trainer, model = make_trainer(seed=1, accumulate=2), Noisy()
        trace = Trace(trainer)
        trainer.fit(model, numbered(5), numbered(2), until=state)
        path = trainer.path
        if disturbed:
            assert trainer.validate(data=numbered(3)) == {"value": 1.0}
            trainer.test(model, numbered(3))
            trainer.predict(model, numbered(3))
        assert trainer.path == path
        trainer.run()
        return model.layer.weight, trace.text, trainer.metrics

    weight, text, metrics = fit(disturbed=False)
    other_weight, other_text, other_metrics = fit(disturbed=True)
    assert torch.equal(weight, other_weight)
    assert (text, metrics) == (other_text, other_metrics)


def test_an_evaluation_may_be_called_by_a_receiver_of_a_running_fit() -> None:
    trainer, model = make_trainer(), Model()
    found: list[Any] = []
    trainer.on("epoch_end", lambda trainer: found.append(trainer.test(data=numbered(3))))
    trainer.fit(model, numbered(2), numbered(1))
    assert found == [{"test_value": 1.0}]
    assert model.trained == [0, 1]


def test_an_evaluation_that_is_paused_goes_on() -> None:
    trainer, model = make_trainer(), Model()
    pause = trainer.on("validate.validation_step:exit", lambda trainer: trainer.pause(), once=True)
    trainer.validate(model, numbered(3))
    assert (pause.active, model.validated) == (False, [0])
    trainer.run()
    assert trainer.metrics == {"value": 1.0}


def test_an_evaluation_without_data_says_so() -> None:
    with pytest.raises(NothingToDo, match="needs data"):
        make_trainer().validate(Model())


def test_an_evaluation_without_its_step_says_what_to_write() -> None:
    with pytest.raises(ModelError, match=r"no test_step\(batch, batch_idx\)"):
        make_trainer().test(nn.Linear(1, 1), numbered(1))


def test_a_plain_model_logs_its_loss() -> None:
    model = nn.Linear(1, 1)
    data = [(batch, model(batch).detach()) for batch in numbered(2)]
    trainer = make_trainer()
    loss = nn.functional.mse_loss
    assert trainer.validate(model, data, loss=loss) == {"val_loss": 0.0}
    assert trainer.test(model, data, loss=loss) == {"test_loss": 0.0}


class Adapts(nn.Module):
    """Takes a step of gradients in its validation, as meta-learning does."""

    def __init__(self, *, says_so: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.says_so = says_so

    def _adapted(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(self.says_so or torch.is_grad_enabled()):
            loss = self.layer(batch).pow(2).mean()
            gradient: torch.Tensor = torch.autograd.grad(loss, self.layer.weight)[0]
        norm: torch.Tensor = gradient.norm()
        return norm

    def validation_step(self, batch: torch.Tensor) -> None:
        log("norm", self._adapted(batch))

    predict_step = test_step = validation_step


@pytest.mark.parametrize("what", ["validate", "test", "predict"])
def test_gradients_in_an_evaluation_are_an_error_that_says_what_to_write(what: str) -> None:
    data = [torch.ones(3, 2)]
    trainer = Trainer(progress=False, device="cpu")
    with pytest.raises(GradientsOff, match=r"_step asks.*with torch\.enable_grad\(\):"):
        getattr(trainer, what)(Adapts(says_so=False), data)
    getattr(Trainer(progress=False, device="cpu"), what)(Adapts(says_so=True), data)


def test_other_errors_of_torch_in_an_evaluation_are_left_as_they_are() -> None:
    class Broken(Adapts):
        def validation_step(self, batch: torch.Tensor) -> None:
            torch.zeros(2) @ torch.zeros(3)

    with pytest.raises(RuntimeError, match="size") as caught:
        Trainer(progress=False, device="cpu").validate(Broken(says_so=True), [torch.ones(3, 2)])
    assert type(caught.value) is RuntimeError
