"""What cannot be a folder of checkpoints is refused before the first batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from statemachine_trainer.files import NoPath
from statemachine_trainer.snapshot.snapshot_errors import WriteFailed
from tests.observe.recorded import Net, batches, trainer


def refused(folder: Path) -> None:
    one, begun = trainer(checkpoints=folder), []
    one.on("batch_start", lambda: begun.append(1))
    with pytest.raises(WriteFailed, match="cannot be the folder of checkpoints"):
        one.fit(Net(), batches())
    assert begun == []


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    refused(tmp_path / "run")


def test_a_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    refused(tmp_path / "run" / "a")


def test_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "gone" / "run")
    refused(tmp_path / "run")


def test_a_path_with_a_null_character() -> None:
    with pytest.raises(NoPath, match="null character"):
        trainer(checkpoints="runs/a\0b")
