"""Restarts by `torchrun` need a setting without which its ranks never meet again: they are told."""

from __future__ import annotations

import warnings

import pytest

from statemachine_trainer.loops.ranks_compared import RestartsFail, warn_of_restarts


def told(monkeypatch: pytest.MonkeyPatch, restarts: str, shared: str, rank: int = 0) -> list[str]:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_restarts(rank)
    assert all(one.category is RestartsFail for one in caught)
    return [str(one.message) for one in caught]


def test_restarts_over_a_shared_store_are_told_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (text,) = told(monkeypatch, "3", "True")
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --max-restarts 3" in text


@pytest.mark.parametrize(
    "restarts, shared, rank", [("0", "True", 0), ("3", "False", 0), ("3", "True", 1)]
)
def test_without_restarts_or_without_that_store_or_at_other_ranks_nothing_is(
    restarts: str, shared: str, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not told(monkeypatch, restarts, shared, rank)
