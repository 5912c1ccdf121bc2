"""Checkpoints of Lightning: a fit goes on from them, and Lightning goes on from those written here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", reason="needs the extra `lightning`")

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from statemachine_trainer import Trainer
from statemachine_trainer.integrations import lightning
from statemachine_trainer.integrations.lightning.files import NotInTheFileWarning
from tests.integrations.lightning_kit import Classifier, data, quiet, quiet_lightning


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet_lightning():
        warnings.filterwarnings("ignore", message="Checkpoint directory")  # of this package
        yield


class Exact(Classifier):
    """Draws nothing, so that a fit is the same wherever its parts run."""

    def __init__(self) -> None:
        super().__init__()
        self.net[3] = torch.nn.Identity()
        self.seen: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append(self.trainer.current_epoch)
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = 7

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loaded = checkpoint["mine"]


def parts(folder: Path) -> tuple[Exact, list[Any]]:
    torch.manual_seed(0)
    saving = ModelCheckpoint(folder, save_last=True)
    return Exact(), [EarlyStopping("val_loss", patience=50), saving]


def in_lightning(folder: Path, epochs: int, file: Path | None = None) -> Exact:
    module, callbacks = parts(folder)
    with quiet():
        one = L.Trainer(
            accelerator="cpu", logger=False, max_epochs=epochs, callbacks=callbacks,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        one.fit(module, data(shuffle=False), data(20), ckpt_path=file)
    return module


def here(folder: Path, epochs: int, file: Path | None = None) -> tuple[Exact, list[Any]]:
    module, callbacks = parts(folder)
    one = Trainer(max_epochs=epochs, device="cpu", progress=False)
    model = lightning.module(module, callbacks=callbacks)
    one.fit(model, data(shuffle=False), data(20), resume=file)
    return module, callbacks


def assert_same_weights(one: Exact, other: Exact) -> None:
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name


def test_lightning_goes_on_from_a_file_written_here(tmp_path: Path) -> None:
    whole = in_lightning(tmp_path / "whole", 4)
    here(tmp_path / "first", 2)
    later = in_lightning(tmp_path / "later", 4, tmp_path / "first" / "last.ckpt")
    assert later.seen == [2] * 6 + [3] * 6
    assert later.loaded == 7
    assert later.global_step == 24
    assert_same_weights(later, whole)


def test_a_fit_goes_on_from_a_file_of_lightning_and_is_told_what_is_not_in_it(
    tmp_path: Path,
) -> None:
    whole = in_lightning(tmp_path / "whole", 4)
    in_lightning(tmp_path / "first", 2)
    with pytest.warns(NotInTheFileWarning, match="generators of random numbers; where the data"):
        later, callbacks = here(tmp_path / "first", 4, tmp_path / "first" / "last.ckpt")
    assert later.seen == [2] * 6 + [3] * 6
    assert later.loaded == 7
    assert later.global_step == 24
    assert callbacks[0].best_score < float("inf")
    assert_same_weights(later, whole)


def test_a_file_from_the_middle_of_an_epoch_begins_that_epoch_anew(tmp_path: Path) -> None:
    module, _ = parts(tmp_path)
    with quiet():
        L.Trainer(
            accelerator="cpu", logger=False, max_epochs=2, enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ModelCheckpoint(tmp_path, every_n_train_steps=8, save_top_k=-1)],
        ).fit(module, data(shuffle=False))  # fmt: skip
    with pytest.warns(NotInTheFileWarning, match="2 batches of epoch 1"):
        later, _ = here(tmp_path / "later", 2, tmp_path / "epoch=1-step=8.ckpt")
    assert later.seen == [1] * 6
    assert later.global_step == 14


def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "weights.ckpt"
    torch.save({"weight": torch.ones(1)}, file)
    with pytest.raises(lightning.BadLightningFile, match=r"weights\.ckpt.*lacks 'state_dict'"):
        here(tmp_path, 1, file)
    file.write_bytes(b"no checkpoint")
    with pytest.raises(lightning.BadLightningFile, match=r"weights\.ckpt.*cannot be read"):
        here(tmp_path, 1, file)
