"""A small GPT, cut up by `fully_shard` times tensor parallelism, of which a rank is killed; fewer ranks go on."""

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
    pytest.mark.skipif(os.name != "posix", reason="processes and signals of Unix"),
]


@pytest.fixture
def gpt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script of the documentation's picture."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    yield importlib.import_module("gpt_on_ranks")
    del sys.modules["gpt_on_ranks"]


def test_the_curve_of_a_killed_run_is_that_of_an_undisturbed_one_also_with_fewer_ranks(
    gpt: Any, tmp_path: Path
) -> None:
    size = gpt.Size(width=64, layers=1, length=16, steps=8, every=2, kill=5)

    def both(rank: int) -> None:
        gpt.train(size, tmp_path / "undisturbed", kill=False)
        gpt.train(size, tmp_path / "killed", kill=True)

    ended = in_ranks(gpt.RANKS, tmp_path, both)
    assert ended[-1] is None  # it was killed
    assert all(isinstance(one, str) for one in ended[:-1])  # the others are told
    assert (
        in_ranks(gpt.AFTER, tmp_path, lambda _: gpt.train(size, tmp_path / "killed", kill=False))
        == [None] * 2
    )
    one, other = (gpt.read(tmp_path / name / "curve.jsonl") for name in ("undisturbed", "killed"))
    assert [*one] == [*other] == [*range(1, 9)]
    assert [ranks for _, ranks in other.values()] == [4] * 4 + [2] * 4
    apart = gpt.differences(one, other)
    assert apart[gpt.RANKS] == 0.0
    assert apart[gpt.AFTER] < 1e-5
    gpt.draw(one, other, size.kill, tmp_path / "curves.svg")
    assert "</svg>" in (tmp_path / "curves.svg").read_text()
