"""A step that the default compiler compiles, within `DistributedDataParallel`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.ranks.launching import both, found_by

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def test_it_ends_as_without_the_compiler_in_windows_with_clipping_and_several_buckets(
    tmp_path: Path,
) -> None:
    """Up to rounding, by which compiled code differs; to its own bits from each checkpoint, within a window too."""
    found = found_by("inductor.py", tmp_path, longest=180.0)
    ours, plain = both(found, "windows_clipped_in_several_buckets")
    assert ours["steps"] == plain["steps"]
    for mine, theirs in zip(ours["weights"], plain["weights"], strict=True):
        torch.testing.assert_close(torch.tensor(mine), torch.tensor(theirs), rtol=1e-6, atol=1e-6)
