"""Checkpoints of what is trained: small files over a frozen base, exact, and refused over another base."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from statemachine_trainer import EMA, Best, Checkpoints, Retention, Trainer, Unfreeze, load_weights
from statemachine_trainer.cli.inspection import inspect
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.snapshot import SnapshotMismatch, Store
from tests.callbacks.kit import Net, Pair, batches, same, weights_of


class Adapted(Net):
    """A frozen base whose two names are one tensor, a buffer that moves, and a small head that is trained."""

    def __init__(self, seed: int = 1, values: tuple[float, ...] = ()) -> None:
        super().__init__(width=8, values=values)
        torch.manual_seed(seed)
        self.base = nn.Sequential(nn.Linear(4, 64), nn.BatchNorm1d(64), nn.Linear(64, 8))
        self.tied = self.base[0]
        self.base.requires_grad_(False)

    def training_step(self, batch: Pair, batch_idx: int) -> torch.Tensor:
        return super().training_step((self.base(batch[0]), batch[1]), batch_idx)


class Momentum(Adapted):
    """Its base needs no gradient, and is changed by hand."""

    def on_batch_end(self) -> None:
        for one in self.base.parameters():
            one.data.mul_(0.9)


def trainer_of(
    folder: Path, epochs: int = 2, callbacks: tuple[object, ...] = (), **options: Any
) -> Trainer:
    kept = Retention(last=None, best=Best("score")) if options.pop("best", False) else None
    checkpoints = Checkpoints(
        folder, every=3, retention=kept, parameters=options.pop("parameters", "trainable")
    )
    return Trainer(
        max_epochs=epochs,
        checkpoints=checkpoints,
        callbacks=callbacks,
        progress=False,
        sanity_batches=0,
        **options,
    )


def newest(folder: Path) -> Any:
    loaded = Store(folder).newest()
    assert loaded is not None
    return loaded.tree


@pytest.mark.parametrize("make", [Adapted, Momentum])
@pytest.mark.parametrize(
    "callbacks", [lambda: (), lambda: (EMA(0.5),), lambda: (Unfreeze("base.2", epoch=1),)]
)
def test_a_run_goes_on_to_the_same_bits_wherever_it_is_stopped(
    make: Callable[[], Adapted], callbacks: Callable[[], tuple[object, ...]], tmp_path: Path
) -> None:
    whole = trainer_of(tmp_path / "whole", callbacks=callbacks())
    whole.fit(make(), batches(), batches(1))
    for step in (2, 9, 14):
        run = tmp_path / f"run-{step}"
        first = trainer_of(run, callbacks=callbacks())
        first.on("batch_end", first.pause, when=lambda one, at=step: one.steps == at)
        first.fit(make(), batches(), batches(1))
        first.checkpoint()
        second = trainer_of(run, callbacks=callbacks())
        second.fit(make(), batches(), batches(1), resume="auto")
        assert same(weights_of(second), weights_of(whole))


def test_what_is_frozen_is_left_out_and_buffers_stay(tmp_path: Path) -> None:
    trainer_of(tmp_path, callbacks=(EMA(0.5),)).fit(Adapted(), batches(), batches(1))
    tree = newest(tmp_path)
    weights = tree["context"]["model"]["weights"]
    held = {name for name, one in weights.items() if one is not None}
    of_norm = {f"base.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert held == {"layer.weight", "layer.bias"} | of_norm
    average = tree["callbacks"][0]["state"]["average"]
    assert {name for name, one in average.items() if one is not None} == {
        "layer.weight",
        "layer.bias",
    }


def test_a_frozen_weight_that_was_changed_by_hand_is_written(tmp_path: Path) -> None:
    trainer_of(tmp_path).fit(Momentum(), batches())
    assert newest(tmp_path)["context"]["model"]["weights"]["base.0.weight"] is not None


def test_another_base_is_refused_and_names_what_differs(tmp_path: Path) -> None:
    trainer_of(tmp_path).fit(Adapted(), batches())
    other = Adapted(seed=2)
    before = {name: one.clone() for name, one in other.state_dict().items()}
    with pytest.raises(SnapshotMismatch, match=r"others in this Adapted: .*base\.0\.weight"):
        load_weights(other, tmp_path)
    assert same(before, {**other.state_dict()})
    with pytest.raises(SnapshotMismatch, match=r"frozen weights are others"):
        trainer_of(tmp_path, epochs=3).fit(other, batches(), resume="auto")


def test_weights_alone_and_the_best_ones_are_loaded_over_the_same_base(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, best=True)
    trainer.fit(Adapted(values=(0.1, 0.5)), batches(), batches(1), restore_best=True)
    model = Adapted()
    load_weights(model, tmp_path, best="score")
    assert same({**model.state_dict()}, weights_of(trainer))


def test_a_run_goes_on_with_the_other_kind_of_checkpoints(tmp_path: Path) -> None:
    whole = trainer_of(tmp_path / "whole", parameters="all")
    whole.fit(Adapted(), batches())
    run = tmp_path / "run"
    for epochs, kind in ((1, "trainable"), (2, "all")):
        trainer = trainer_of(run, epochs=epochs, parameters=kind)
        trainer.fit(Adapted(), batches(), resume="auto")
    assert "frozen" not in newest(run)
    assert same(weights_of(trainer), weights_of(whole))


def test_where_a_checkpoint_is_looked_at_it_says_what_is_not_in_it(tmp_path: Path) -> None:
    trainer_of(tmp_path).fit(Adapted(), batches())
    console = Console(width=120, file=StringIO())
    inspect(sorted(tmp_path.glob("0*"))[-1], console)
    assert "8 weights are left out" in console.file.getvalue()  # type: ignore[attr-defined]


def test_another_word_for_the_parameters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="use 'all' or 'trainable'"):
        Checkpoints(tmp_path, parameters="adapters")  # type: ignore[arg-type]
