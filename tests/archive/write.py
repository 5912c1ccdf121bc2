"""Write the archive of a version, with that version: `python -m tests.archive.write FOLDER`.

Each folder holds a run with one checkpoint, and in `expected.json` what the run came to when it went on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from statemachine_trainer import Trainer
from tests.archive.setups import FITS


def write(root: Path) -> None:
    """Write the run of each training, as it was when it stood at its boundary, and what came of it."""
    for name, fit in FITS.items():
        trainer = fit.trainer(root / name)
        fit.fit(trainer, until=fit.stands)
        stood_at = trainer.path
        trainer.checkpoint()
        states, outcome = finish(trainer)
        weights = {key: value.tolist() for key, value in trainer.model.state_dict().items()}
        told = {"torch": torch.__version__, "stood_at": stood_at, "states": states}
        text = json.dumps({**told, "outcome": outcome, "weights": weights})
        (root / name / "expected.json").write_text(text + "\n", encoding="utf-8")
        for ring in (root / name).glob("*.ring"):
            ring.unlink()


def finish(trainer: Trainer) -> tuple[list[str], str | None]:
    """Go on to the end; return the states on the way, and the outcome."""
    states: list[str] = []
    while trainer.path is not None:
        states.append(trainer.path)
        trainer.step()
    return states, trainer.driver.outcome


if __name__ == "__main__":
    write(Path(sys.argv[1]))
