"""Keras 3 on torch: the same perceptron of Keras' own layers, from the same weights."""

# mypy: disable-error-code="import-not-found,misc"
from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from torch import nn

from _peers.work import Batch, Classifier, Data, Training

os.environ["KERAS_BACKEND"] = "torch"
import keras


class Calls(keras.callbacks.Callback):
    """Calls a function after each batch."""

    def __init__(self, on_batch: Callable[[], None]) -> None:
        super().__init__()
        self.on_batch = on_batch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Call it."""
        self.on_batch()


def _twin_of(model: Classifier) -> tuple[Any, list[nn.Linear]]:
    linear = [layer for layer in model.layers if isinstance(layer, nn.Linear)]
    layers: list[Any] = [keras.Input((linear[0].in_features,))]
    for layer, following in pairwise([*linear, None]):
        assert layer is not None
        activation = None if following is None else "relu"
        layers.append(keras.layers.Dense(layer.out_features, activation=activation))
    made = keras.Sequential(layers)
    for dense, layer in zip(made.layers, linear, strict=True):
        dense.set_weights([layer.weight.detach().numpy().T, layer.bias.detach().numpy()])
    made.compile(
        optimizer=keras.optimizers.SGD(0.1),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return made, linear


def _give_back(made: Any, linear: list[nn.Linear]) -> None:
    for dense, layer in zip(made.layers, linear, strict=True):
        kernel, bias = dense.variables
        layer.weight.data.copy_(kernel.value.detach().T)
        layer.bias.data.copy_(bias.value.detach())


def steps(model: Classifier, data: Data, on_batch: Callable[[], None] | None) -> None:
    """Train one pass."""

    def read() -> Iterator[Batch]:
        yield from data.batches()

    made, linear = _twin_of(model)
    made.fit(read(), epochs=1, verbose=0, callbacks=[] if on_batch is None else [Calls(on_batch)])
    _give_back(made, linear)


def training(model: Classifier, job: Training) -> float:
    """Train as one does; return the last validation loss."""
    made, linear = _twin_of(model)
    callbacks = [
        keras.callbacks.CSVLogger(str(job.folder / "log.csv")),
        keras.callbacks.ModelCheckpoint(
            str(job.folder / "step-{batch}.keras"), save_freq=job.every
        ),
    ]
    history = made.fit(
        job.train_loader(),
        validation_data=job.validation_loader(),
        epochs=job.epochs,
        verbose=0,
        shuffle=False,
        callbacks=callbacks,
    )
    _give_back(made, linear)
    return float(history.history["val_loss"][-1])
