"""The steps of a plain model: with a loss beside it, or one that computes its loss itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import torch
from torch import nn

from statemachine_trainer.loops.loop_errors import ModelError
from statemachine_trainer.loops.metrics.log import log
from statemachine_trainer.loops.plain import Loss, PlainMetrics

Step = Callable[[Any, int], Any]
"""A step, called with the batch and its number."""

# -- Models that compute their own loss -----------------------------------------------------------


def finds_own_loss(model: nn.Module) -> bool:
    """Return whether the forward pass of a model takes `labels`, or any keyword."""
    parameters = inspect.signature(model.forward).parameters
    any_keyword = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    return "labels" in parameters or any_keyword


def _is_called_with_keywords(model: nn.Module) -> bool:
    """Whether `model(**batch)` can be meant: nothing has to be given by its place, or there are `labels`."""
    parameters = inspect.signature(model.forward).parameters
    needed = [
        one.name
        for one in parameters.values()
        if one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    ]
    return finds_own_loss(model) and ("labels" in parameters or not needed)


def own_loss_steps(model: nn.Module) -> dict[str, Callable[[Any, int], Any]]:
    """Make the steps of a model for which `model(**batch)` returns an object with `loss`.

    Each step logs the loss, as `loss`, `val_loss` or `test_loss`. A prediction is the whole output.
    """
    steps = loss_steps(lambda batch: _loss_of(_call(model, batch), model, batch))
    return {**steps, "predict_step": lambda batch, _batch_idx: _call(model, batch)}


def _loss_of(output: Any, model: nn.Module, batch: Any) -> torch.Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, torch.Tensor):
        raise ModelError(
            f"{type(model).__name__} returned a {type(output).__name__} without a loss for a batch with the "
            f"keys {sorted(map(str, batch))}. Models of Hugging Face want the key 'labels'. For a model "
            "without a loss of its own give one: `fit(model, data, loss=..., optimizer=...)`."
        )
    return loss


def _call(model: nn.Module, batch: Any) -> Any:
    if not isinstance(batch, Mapping):
        raise ModelError(
            f"{type(model).__name__} has no training_step, so it is called with the batch as keywords, and the "
            f"batch is a {type(batch).__name__}. Give dicts, or write a training_step, or give `loss=`."
        )
    return model(**batch)


# -- Steps made of a function that finds the loss -------------------------------------------------


_LOGGED: Final = {"training_step": "loss", "validation_step": "val_loss", "test_step": "test_loss"}


def loss_steps(loss_of: Callable[[Any], torch.Tensor]) -> dict[str, Callable[[Any, int], Any]]:
    """Make the steps of training, validation and test, which log `loss`, `val_loss` and `test_loss`.

    Args:
        loss_of: Computes the loss of a batch, a scalar.
    """

    def logging_as(name: str) -> Callable[[Any, int], Any]:
        def step(batch: Any, _batch_idx: int) -> torch.Tensor:
            loss = loss_of(batch)
            log(name, loss)
            return loss

        return step

    return {step: logging_as(name) for step, name in _LOGGED.items()}


# -- Steps of a model with a loss beside it ------------------------------------------------------


def supervised_steps(
    model: nn.Module, loss: Loss, metrics: PlainMetrics | None = None
) -> dict[str, Step]:
    """Make the steps of a plain model for batches `(inputs, targets)`; each logs its loss and metrics.

    A model that takes `labels`, as those of Hugging Face do, may get dicts as batches. It is called with
    the rest of the dict as keywords, and the labels are the targets; metrics get its logits.
    """
    labelled = _is_called_with_keywords(model)
    parts: Callable[[Any], tuple[Any, Any]] = _labelled if labelled else _pair
    call: Callable[[Any], Any] = partial(_by_keywords, model) if labelled else model

    def loss_of(batch: Any) -> torch.Tensor:
        inputs, targets = parts(batch)
        return loss(call(inputs), targets)

    def measuring(name: str, metrics: PlainMetrics) -> Step:
        def step(batch: Any, _batch_idx: int) -> torch.Tensor:
            inputs, targets = parts(batch)
            output = call(inputs)
            found = loss(output, targets)
            log(_LOGGED[name], found)
            metrics.update(name, getattr(output, "logits", output), targets)
            return found

        return step

    def predict_step(batch: Any, _batch_idx: int) -> Any:
        return model(**batch) if isinstance(batch, Mapping) else model(inputs_of(batch))

    made = (
        loss_steps(loss_of)
        if metrics is None
        else {name: measuring(name, metrics) for name in _LOGGED}
    )
    return {**made, "predict_step": predict_step} if labelled else made


class _Keywords(dict[str, Any]):
    """The inputs of a model that is called with keywords."""


def _labelled(batch: Any) -> tuple[Any, Any]:
    """Return the inputs and the labels of a dict, or the parts of a pair."""
    if not isinstance(batch, Mapping) or "labels" not in batch:
        return _pair(batch)
    return _Keywords((name, one) for name, one in batch.items() if name != "labels"), batch[
        "labels"
    ]


def _by_keywords(model: nn.Module, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, _Keywords) else model(inputs)


def inputs_of(batch: Any) -> Any:
    """Return the inputs of a batch: its first part if it is a pair, else the whole batch."""
    return batch[0] if isinstance(batch, list | tuple) and len(batch) == 2 else batch


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        shown = (
            f"{type(batch).__name__} of {len(batch)}"
            if hasattr(batch, "__len__")
            else type(batch).__name__
        )
        raise ModelError(
            f"With loss=, a batch must be a pair (inputs, targets), or a dict with 'labels' for a model that takes "
            f"them; it is a {shown}. Write a training_step for other batches."
        )
    return batch[0], batch[1]
