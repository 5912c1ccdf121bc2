"""Proving that a training set-up can be stopped anywhere and resumed to the same bits.

    from statemachine_trainer.testing import assert_resumable

    def test_my_training_can_be_resumed():
        assert_resumable(make_trainer)

The names below are imported when they are first used: the pytest plugin is loaded by every run of
pytest, and must not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from statemachine_trainer.lazy import public_names

if TYPE_CHECKING:
    from statemachine_trainer.testing.resuming import Report as Report
    from statemachine_trainer.testing.resuming import assert_resumable as assert_resumable
    from statemachine_trainer.testing.testing_errors import FreshProcessFailed as FreshProcessFailed
    from statemachine_trainer.testing.testing_errors import HiddenState as HiddenState
    from statemachine_trainer.testing.testing_errors import HypothesisMissing as HypothesisMissing
    from statemachine_trainer.testing.testing_errors import NoStopPoint as NoStopPoint
    from statemachine_trainer.testing.testing_errors import NotImportable as NotImportable
    from statemachine_trainer.testing.testing_errors import NotReady as NotReady
    from statemachine_trainer.testing.testing_errors import NotRepeatable as NotRepeatable
    from statemachine_trainer.testing.testing_errors import NotResumable as NotResumable

__getattr__, __dir__, __all__ = public_names(__name__)
