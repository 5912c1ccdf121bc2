"""Models that compute their own loss from a batch of keyword arguments, as those of Hugging Face do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from statemachine_trainer.loops.errors import ModelError
from statemachine_trainer.loops.loss_steps import loss_steps


def finds_own_loss(model: nn.Module) -> bool:
    """Tell whether the forward pass of a model takes `labels`, or any keyword."""
    parameters = inspect.signature(model.forward).parameters
    any_keyword = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    return "labels" in parameters or any_keyword


def own_loss_steps(model: nn.Module) -> dict[str, Callable[[Any, int], Any]]:
    """Make the steps of a model whose `model(**batch)` returns an object with `loss`.

    Each logs it, as `loss`, `val_loss` or `test_loss`. A prediction is all that the model returns.
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
