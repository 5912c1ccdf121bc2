"""What a rank hands to the others for a checkpoint in parts does not depend on the size of the model."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ranks.forked import in_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.name != "posix", reason="processes of Unix"),
]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script that measures it for the documentation."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    yield importlib.import_module("checkpoints_of_ranks")
    del sys.modules["checkpoints_of_ranks"]
    sys.modules.pop("overhead", None)


def test_a_model_that_is_32_times_as_large_sends_as_many_bytes(
    benchmark: Any, tmp_path: Path
) -> None:
    def both(rank: int) -> Any:
        return [benchmark.measure(width, tmp_path / f"{width}") for width in (128, 4096)]

    for small, large in in_ranks(2, tmp_path, both):
        assert 500 < small["sent"] < 20_000  # shapes, places and digests
        assert abs(large["sent"] - small["sent"]) < 500  # numbers in them have more digits
        assert abs(large["rest"] - small["rest"]) < 500
        assert large["part"] > 25 * small["part"] > 25 * small["sent"]
