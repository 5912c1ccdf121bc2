"""Whose replica is another one: told by the others, by what may not change, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from typer.testing import CliRunner

from statemachine_trainer import Trainer, every
from statemachine_trainer.cli import app
from statemachine_trainer.observe.difference import NoFingerprints
from statemachine_trainer.observe.fingerprint_file import name_of_rank
from statemachine_trainer.observe.fingerprint_writer import FingerprintWriter
from statemachine_trainer.observe.fingerprints import Fingerprints
from statemachine_trainer.observe.replicas import ReplicaParting, Replicas, compare_ranks
from tests.observe.printed import Net, at_step, loader, train

Change = Callable[[Trainer], object]


def run_of(folder: Path, *changes: Change | None, processes: Any = None) -> Path:
    """A folder as that of a run with a rank for each change, which this process plays one after the other."""
    train(folder)  # the rest of a run; its fingerprints are replaced
    told = [{"pid": rank} for rank, _ in enumerate(changes)]
    for rank, change in enumerate(changes):
        facts = {"processes": told if processes is None else processes[rank]}
        writer = FingerprintWriter(folder, facts, rank=rank)
        writer.begin()
        torch.manual_seed(0)
        trainer = Trainer(max_epochs=1, seed=1, device="cpu", progress=False)
        if change is not None:
            change(trainer)
        trainer.start(Net(), loader())
        prints = Fingerprints(trainer.driver, every(1, "step"), writer)
        prints.attach()
        trainer.run()
        prints.flush()
        writer.close()
    return folder


def parting(found: Replicas) -> ReplicaParting:
    assert found.parting is not None
    return found.parting


def nudge(trainer: Trainer) -> None:
    with torch.no_grad():
        cast(Any, trainer.model).layers[0].bias[3] += 1e-6


def between_batches(trainer: Trainer) -> None:
    trainer.on("batch_start", nudge, when=lambda t: t.context.counts.batch == 3)


def nudge_moment(trainer: Trainer) -> None:
    optimizer = trainer.context.optimizers[0]
    optimizer.state[cast(Any, trainer.model).layers[3].bias]["exp_avg"][0] += 1e-6


def test_equal_ranks_are_equal(tmp_path: Path) -> None:
    found = compare_ranks(run_of(tmp_path, None, None, None))
    assert found.parting is None
    assert "3 ranks" in str(found)
    assert "Their replicas are equal at 12 places" in str(found)


def test_of_three_ranks_the_one_that_the_others_contradict_is_named(tmp_path: Path) -> None:
    found = parting(compare_ranks(run_of(tmp_path, None, at_step(4, nudge), None)))
    assert found.ranks == [1]
    assert found.how == "the others agree"
    assert (found.look.place, found.look.at_work) == ("batch_end", 4)
    assert "layers.0.bias" in found.names


def test_of_two_ranks_the_one_whose_weights_change_between_batches_is_named(tmp_path: Path) -> None:
    found = parting(compare_ranks(run_of(tmp_path, between_batches, None)))
    assert found.ranks == [0]
    assert found.names == ["layers.0.bias"]
    assert (found.look.place, found.look.at_work) == ("batch_start", 4)


def test_of_two_ranks_that_part_within_a_step_it_cannot_be_told(tmp_path: Path) -> None:
    found = parting(compare_ranks(run_of(tmp_path, None, at_step(4, nudge))))
    assert found.ranks == [0, 1]
    assert "which of them is wrong cannot be told" in str(found)


def test_the_state_of_an_optimizer_is_compared_too(tmp_path: Path) -> None:
    def change(trainer: Trainer) -> None:
        trainer.on("batch_start", nudge_moment, when=lambda t: t.context.counts.batch == 2)

    found = parting(compare_ranks(run_of(tmp_path, None, None, change)))
    assert (found.kind, found.ranks) == ("optimizer", [2])
    assert found.names == ["exp_avg of layers.3.bias"]


def test_draws_and_batches_of_their_own_make_no_difference(tmp_path: Path) -> None:
    change = at_step(3, lambda trainer: trainer.context.batch[0].neg())
    assert compare_ranks(run_of(tmp_path, None, change)).parting is None


def test_a_rank_that_is_missing_or_of_another_start_is_told(tmp_path: Path) -> None:
    run_of(tmp_path / "a", None, None)
    (tmp_path / "a" / name_of_rank(1)).unlink()
    with pytest.raises(NoFingerprints, match="no fingerprints of rank 1"):
        compare_ranks(tmp_path / "a")
    run_of(tmp_path / "b", None, None, processes=[[1, 2], [1, 3]])
    with pytest.raises(NoFingerprints, match="another start of the run"):
        compare_ranks(tmp_path / "b")


def test_a_run_with_one_rank_is_told(tmp_path: Path) -> None:
    train(tmp_path)
    said = CliRunner().invoke(app, ["diff", str(tmp_path)])
    assert said.exit_code == 2
    assert "is a run with one rank" in said.output
    assert "smt diff RUN_A RUN_B" in said.output


def test_what_was_found_can_be_printed_as_json(tmp_path: Path) -> None:
    run_of(tmp_path, None, at_step(4, nudge), None)
    said = CliRunner().invoke(app, ["diff", str(tmp_path), "--json"])
    assert said.exit_code == 1
    found = json.loads(said.output)
    assert found["parting"]["ranks"] == [1]
    assert "the end of step 4" in found["parting"]["text"]
