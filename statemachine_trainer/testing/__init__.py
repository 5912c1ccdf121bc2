"""Proving that a training set-up can be stopped anywhere and resumed to the same bits.

    from statemachine_trainer.testing import assert_resumable

    def test_my_training_can_be_resumed():
        assert_resumable(make_trainer)

The names below are imported when they are first used: the pytest plugin is loaded by every run of
pytest, and must not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from statemachine_trainer.testing.resuming import Report, assert_resumable
    from statemachine_trainer.testing.testing_errors import (
        FreshProcessFailed,
        HiddenState,
        HypothesisMissing,
        NoStopPoint,
        NotImportable,
        NotReady,
        NotRepeatable,
        NotResumable,
    )

__all__ = [
    "FreshProcessFailed",
    "HiddenState",
    "HypothesisMissing",
    "NoStopPoint",
    "NotImportable",
    "NotReady",
    "NotRepeatable",
    "NotResumable",
    "Report",
    "assert_resumable",
]

_HOMES = {
    **dict.fromkeys(__all__, "statemachine_trainer.testing.testing_errors"),
    "Report": "statemachine_trainer.testing.resuming",
    "assert_resumable": "statemachine_trainer.testing.resuming",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
