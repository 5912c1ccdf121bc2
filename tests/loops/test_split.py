"""Cutting a batch along time, and hidden states off the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence

from statemachine_trainer.loops.batch import SplitError, split_batch
from statemachine_trainer.parallel.containers import detach


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@dataclass(frozen=True)
class Sequences:
    words: torch.Tensor
    author: str


@given(
    length=st.integers(1, 40),
    split_steps=st.integers(1, 50),
    time_dim=st.integers(0, 2),
)
def test_the_pieces_put_together_are_the_batch(
    length: int, split_steps: int, time_dim: int
) -> None:
    shape = [2, 2, 2]
    shape[time_dim] = length
    batch = torch.arange(4 * length).reshape(shape)
    pieces = split_batch(batch, split_steps, time_dim)
    assert torch.equal(torch.cat(pieces, time_dim), batch)
    assert len(pieces) == -(-length // split_steps)
    assert all(piece.shape[time_dim] == split_steps for piece in pieces[:-1])


def test_the_pieces_are_views_of_the_batch() -> None:
    batch = torch.zeros(2, 6)
    split_batch(batch, 3)[1][0, 0] = 7.0
    assert batch[0, 3] == 7.0


def test_containers_are_cut_part_by_part_and_keep_their_type() -> None:
    batch: dict[str, Any] = {
        "pair": Pair(torch.zeros(2, 5, 3), torch.zeros(2, 5)),
        "more": [Sequences(torch.zeros(2, 5), "Woolf"), (torch.zeros(2, 5),)],
    }
    pieces = split_batch(batch, 2)
    assert len(pieces) == 3
    last = pieces[-1]
    assert isinstance(last["pair"], Pair)
    assert last["pair"].x.shape == (2, 1, 3)
    sequences, inner = last["more"]
    assert isinstance(sequences, Sequences)
    assert (sequences.words.shape, sequences.author) == ((2, 1), "Woolf")
    assert inner[0].shape == (2, 1)


def test_what_has_no_time_goes_to_every_piece_as_it_is() -> None:
    label, names = torch.tensor([0, 1]), "abc"
    for _, piece_label, piece_names in split_batch((torch.zeros(2, 4), label, names), 2):
        assert piece_label is label
        assert piece_names is names


def test_a_batch_shorter_than_a_piece_is_one_piece() -> None:
    assert [piece.shape for piece in split_batch(torch.zeros(2, 3), 10)] == [(2, 3)]


def test_different_lengths_are_an_error_that_names_both_places_and_the_way_out() -> None:
    with pytest.raises(SplitError) as caught:
        split_batch({"x": [torch.zeros(2, 5)], "y": Pair(torch.zeros(2, 5), torch.zeros(2, 4))}, 2)
    message = str(caught.value)
    assert "batch['x'][0] has 5 time steps and batch['y'].y has 4" in message
    assert "split_batch(self, batch, split_steps)" in message
    assert "tbptt_split_batch" in message


@pytest.mark.parametrize("batch", [torch.zeros(3), "text", [], (torch.zeros(2, 0),)])
def test_nothing_to_split_is_an_error(batch: object) -> None:
    with pytest.raises(SplitError, match="nothing to split"):
        split_batch(batch, 2)


@pytest.mark.parametrize("split_steps,time_dim", [(0, 1), (-1, 1), (2, -1)])
def test_numbers_out_of_range_are_an_error(split_steps: int, time_dim: int) -> None:
    with pytest.raises(SplitError, match=f"split_steps={split_steps} and time_dim={time_dim}"):
        split_batch(torch.zeros(2, 4), split_steps, time_dim)


def test_a_packed_sequence_cannot_be_cut() -> None:
    packed = pack_padded_sequence(torch.zeros(2, 3, 4), torch.tensor([3, 2]), batch_first=True)
    with pytest.raises(SplitError, match=r"batch\[0\] is a PackedSequence"):
        split_batch((packed, torch.zeros(2, 3)), 2)


def test_hidden_states_are_cut_off_the_graph_in_every_container() -> None:
    weight = torch.ones(2, requires_grad=True)
    hiddens: dict[str, Any] = {
        "lstm": (weight * 2, [weight * 3]),
        "pair": Pair(weight * 4, weight),
        "n": None,
    }
    cut = detach(hiddens)
    assert isinstance(cut["pair"], Pair)
    h, [c] = cut["lstm"]
    assert not any(t.requires_grad for t in (h, c, cut["pair"].x, cut["pair"].y))
    assert torch.equal(c, weight * 3)
    assert cut["n"] is None
    assert hiddens["lstm"][0].requires_grad


def test_a_detached_state_shares_its_memory() -> None:
    state = torch.zeros(2)
    assert detach((state,))[0].data_ptr() == state.data_ptr()
