"""What a field of the context says of itself: what it belongs to, and how it is saved."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from statemachine_trainer.loops.context import Context, of_scope, saved_as
from statemachine_trainer.loops.context_state import context_state, load_context_state
from statemachine_trainer.loops.fresh_start import begin_fit, reopen
from statemachine_trainer.trainer import Trainer
from tests.loops.fold_kit import Net, loader


def started(**settings: Any) -> Context:
    trainer = Trainer(**{"max_epochs": 1, "progress": False, **settings})
    trainer.start(Net(), loader())
    return trainer.context


def test_every_field_belongs_to_one_scope() -> None:
    scopes = [of_scope("run"), of_scope("fit"), of_scope("epoch"), of_scope("batch")]
    declared = [one.name for one in fields(Context)]
    assert sorted(name for scope in scopes for name in scope) == sorted(declared)


@pytest.mark.parametrize("begin", [begin_fit, reopen])
def test_all_that_belongs_to_a_fit_is_new_when_one_begins(begin: Any) -> None:
    context = started()
    context.train_metrics.log("loss", 1.0)
    marks = {name: object() for name in ("epoch", "batch", "fit") for name in of_scope(name)}
    tables = ("train_metrics", "validation_metrics")
    for name, mark in marks.items():
        if name not in tables:
            setattr(context, name, mark)
    begin(context)
    kept = [name for name, mark in marks.items() if getattr(context, name) is mark]
    assert kept == []
    assert not [*context.train_metrics]


def test_what_is_in_flight_is_what_belongs_to_a_batch() -> None:
    context = started()
    before = {name: object() for name in of_scope("batch")}
    for name, value in before.items():
        setattr(context, name, value)
    context.put_aside()
    assert all(getattr(context, name) is not value for name, value in before.items())
    context.take_back()
    assert all(getattr(context, name) is value for name, value in before.items())


def test_a_field_of_a_later_version_begins_with_its_first_value() -> None:
    context = started()
    state = context_state(context, {})
    del state["plain"]["flushing"]
    del state["in_flight"]["outputs"]
    later = started()
    load_context_state(later, state)
    assert later.flushing is False
    assert later.outputs is None


def test_numbers_and_tensors_are_saved_under_their_names() -> None:
    state = context_state(started(), {})
    assert (*state["plain"],) == saved_as("plain")
    assert (*state["in_flight"],) == saved_as("tensors") == (*state["on_device"],)
