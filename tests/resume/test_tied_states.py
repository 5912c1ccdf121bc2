"""What is one thing under several paths of the state of a callback is one again after a stop, or it is told."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statemachine_trainer import Trainer
from statemachine_trainer.audit.report import NotHeld
from statemachine_trainer.snapshot.ties import tied_again, ties_of
from tests.resume.kit import net, started, stop_before

Parts = dict[str, Any]


class Tied:
    """Changes one part of its state, and changes the weights by another one."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def on_batch_end(self, trainer: Trainer) -> None:
        changed, read = self.parts["changed"], self.parts["read"]
        if isinstance(changed, list):
            changed.append(1.0)
        elif isinstance(changed, dict):
            changed[str(len(changed))] = 1.0
        else:
            changed += 1
        read = read[0] if isinstance(read, tuple) else read
        inside = [*read.values()] if isinstance(read, dict) else read
        amount = float(sum(inside) if isinstance(inside, list) else inside.sum())
        with torch.no_grad():
            for one in trainer.context.model.parameters():
                one.add_(amount, alpha=1e-4)

    def state_dict(self) -> Parts:
        return {"parts": self.parts}

    def load_state_dict(self, state: Parts) -> None:
        self.parts = state["parts"]


def row() -> Parts:
    table = torch.zeros(3, 4)
    return {"read": table, "changed": table[1]}


def column() -> Parts:
    table = torch.zeros(3, 4)
    return {"changed": table[:, 1:3], "read": table}


def another_shape() -> Parts:
    table = torch.zeros(3, 4)
    return {"changed": table.view(12)[5:9], "read": table}


def one_list() -> Parts:
    inside = [0.0]
    return {"changed": inside, "read": inside}


def one_dict() -> Parts:
    inside = {"a": 0.0}
    return {"changed": inside, "read": inside, "deeper": [{"too": inside}]}


def in_tuples() -> Parts:
    table, inside = torch.zeros(3, 4), [0.0]
    return {"changed": inside, "read": (inside,), "deeper": ([(table,), (1, (table[1],))],)}


TIED: dict[str, Callable[[], Parts]] = {
    one.__name__: one for one in (row, column, another_shape, one_list, one_dict, in_tuples)
}


def make_trainer(parts: Callable[[], Parts]) -> Trainer:
    return started(Trainer(max_epochs=2, progress=False, callbacks=[Tied(parts())]))


@pytest.mark.parametrize("parts", TIED.values(), ids=TIED)
def test_what_was_tied_is_tied_again(parts: Callable[[], Parts]) -> None:
    assert stop_before(lambda: make_trainer(parts), "batch_start", most=2).runs


class Follows:
    """Keeps the weights of the model without a copy, so that they follow it."""

    kept: Any = None

    def on_batch_end(self, trainer: Trainer) -> None:
        model = trainer.context.model
        if self.kept is None:
            self.kept = model.state_dict()
        if trainer.context.counts.step % 2:
            model.load_state_dict({name: one * 0.5 for name, one in self.kept.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = state["kept"]


def test_what_lies_in_the_weights_follows_those_of_the_model_that_goes_on() -> None:
    def make_trainer() -> Trainer:
        return started(Trainer(max_epochs=2, progress=False, callbacks=[Follows()]))

    assert stop_before(make_trainer, "batch_start", most=4).runs


def test_what_a_module_copies_into_itself_is_left_alone() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    module[1].weight = module[0].weight
    assert ties_of({"average": module.state_dict()}, dict).ties == []


def test_parts_of_one_memory_that_do_not_overlap_are_not_tied() -> None:
    found = ties_of([*torch.zeros(6).split(2)], dict)
    assert (found.ties, found.apart) == ([], [])


def test_a_tensor_in_a_tuple_is_tied_again() -> None:
    whole = torch.zeros(4)
    found = ties_of({"whole": whole, "part": (1, (whole[2:],))}, dict)
    read: Parts = {"whole": torch.zeros(4), "part": (1, (torch.zeros(2),))}
    tied_again(read, found.ties, {})
    read["whole"][3] = 5
    assert read["part"][1][0].tolist() == [0, 5]


def test_weights_in_another_memory_format_are_not_mixed_up() -> None:
    was = torch.arange(24.0).view(1, 2, 3, 4)
    found = ties_of({"whole": was[:], "part": was[:, 1:]}, lambda: {"w": was})
    now = was.to(memory_format=torch.channels_last)
    read: Parts = {"whole": was.clone(), "part": was[:, 1:].clone()}
    assert tied_again(read, found.ties, {"w": now}) == ["['part']"]
    assert torch.equal(read["part"], was[:, 1:])
    assert read["whole"].data_ptr() == now.data_ptr()
    assert torch.equal(read["whole"], was)


def test_what_changed_places_since_is_left_as_it_was_read() -> None:
    state = {"a": [1]}
    tied_again(state, [{"path": ["b", 0], "of": ["c"]}, {"path": ["a", 0], "weight": "w"}], {})
    assert state == {"a": [1]}


def overlapping() -> Parts:
    numbers = torch.zeros(4)
    return {"changed": numbers[:3], "read": numbers[1:]}


def arrays() -> Parts:
    numbers = np.zeros(4)
    return {"changed": numbers[:2], "read": numbers}


def an_array_and_a_tensor() -> Parts:
    numbers = np.zeros(4)
    return {"changed": torch.from_numpy(numbers), "read": numbers}


def gaps() -> Parts:
    numbers = torch.zeros(4, 2)[:, 0]
    return {"changed": numbers[1:], "read": numbers}


@pytest.mark.parametrize("parts", [overlapping, arrays, an_array_and_a_tensor, gaps])
def test_what_cannot_be_tied_again_is_told_once(tmp_path: Path, parts: Callable[[], Parts]) -> None:
    trainer = Trainer(max_epochs=2, progress=False, checkpoints=tmp_path, callbacks=[Tied(parts())])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NotHeld)
        trainer.fit(net(), [(torch.ones(2, 4), torch.zeros(2, dtype=torch.int64))])
    told = [str(one.message) for one in caught if "share memory" in str(one.message)]
    assert len(told) == 1
    assert "state of the callback Tied" in told[0]
    assert "['parts']['changed']" in told[0]


class ById:
    """Counts by the identity of parameters."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def on_batch_end(self, trainer: Trainer) -> None:
        for one in trainer.context.model.parameters():
            self.counts[id(one)] = self.counts.get(id(one), 0) + 1

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts = state["counts"]


def test_keys_that_are_identities_are_told_once(tmp_path: Path) -> None:
    trainer = Trainer(max_epochs=3, progress=False, checkpoints=tmp_path, callbacks=[ById()])
    with pytest.warns(NotHeld, match=r"keys in \['counts'\] are identities") as caught:
        trainer.fit(net(), [(torch.ones(2, 4), torch.zeros(2, dtype=torch.int64))])
    assert len(caught) == 1


def test_wide_numbers_that_are_no_identities_are_not_told(tmp_path: Path) -> None:
    callback = ById()
    callback.counts = {2**62 + 1: 1}
    callback.on_batch_end = lambda trainer: None  # type: ignore[method-assign]
    trainer = Trainer(max_epochs=1, progress=False, checkpoints=tmp_path, callbacks=[callback])
    trainer.fit(net(), [(torch.ones(2, 4), torch.zeros(2, dtype=torch.int64))])
