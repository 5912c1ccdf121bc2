"""What the page is told of a run in its own process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from statemachine_trainer import SAMLoop, Trainer
from statemachine_trainer.page.live import LiveRun
from statemachine_trainer.page.recorded import FolderRun


def test_the_graph_has_a_new_number_after_each_swap_and_keeps_it_in_between() -> None:
    trainer = Trainer(max_epochs=1, progress=False)
    live = LiveRun(trainer)
    numbers = [live.state()["graph"]]
    assert live.state()["graph"] == numbers[0]
    for _ in range(20):
        trainer.loop.replace(optimizer=SAMLoop)
        numbers.append(live.state()["graph"])
        assert live.state()["graph"] == numbers[-1]
    assert len(set(numbers)) == 21
    live.close()


def test_the_ranks_of_a_run_are_shown_side_by_side_and_of_one_process_nothing_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit() -> LiveRun:
        model = nn.Linear(1, 1)
        trainer = Trainer(max_epochs=1, run=tmp_path, device="cpu", progress=False)
        trainer.fit(
            model,
            [(torch.ones(1, 1), torch.ones(1, 1))],
            loss=nn.MSELoss(),
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        )
        return LiveRun(trainer)

    alone = fit()
    assert alone.state()["ranks"] == []
    alone.close()
    monkeypatch.setenv("WORLD_SIZE", "2")  # as a launcher tells it; here one after the other
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        live = fit()
    for shown in (live, FolderRun(tmp_path)):
        first, second = shown.state()["ranks"]
        assert (first["rank"], second["rank"]) == (0, 1)
        assert first["status"] == second["status"] == "ended"
        assert first["state"] == "fit.fit_end"
        assert first["waits_for"] == []
    live.close()
