"""Steps of 64 bits in one thread, so that two ways to compute them agree to the last digits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def exact() -> Iterator[None]:
    """Compute in 64 bits, and in one thread."""
    threads, kind = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(kind)
    torch.set_num_threads(threads)
