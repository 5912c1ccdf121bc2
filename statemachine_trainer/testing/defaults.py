"""What the pytest options say, apart so that the plugin need not import torch."""

from __future__ import annotations

from contextvars import ContextVar

default_examples: ContextVar[int | None] = ContextVar("resumable_examples", default=None)
"""Set by the pytest option `--resumable-examples`; None leaves the choice to `assert_resumable`."""
