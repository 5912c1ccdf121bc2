"""Tensors are read where they lie, to be compared later; those whose memory is not there are left out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from statemachine_trainer.audit.plain_values import Reader


def content(tensor: torch.Tensor) -> object:
    seen = Reader(()).seen(tensor)
    assert seen is not None
    return seen.content


def ramp() -> torch.Tensor:
    return torch.arange(12.0).reshape(3, 4)


LAID_OUT: dict[str, Callable[[], torch.Tensor]] = {
    "contiguous": ramp,
    "a row": lambda: ramp()[1],
    "transposed": lambda: ramp().t(),
    "some columns": lambda: ramp()[:, 1:3],
    "expanded": lambda: torch.arange(3.0).expand(2, 3),
    "one number": lambda: torch.tensor(3.0),
    "conjugated": lambda: torch.complex(ramp(), ramp()).conj(),
    "negated": lambda: torch._neg_view(ramp()),
    "bfloat16": lambda: ramp().bfloat16(),
    "truth": lambda: ramp() > 5,
}


@pytest.mark.parametrize("made", LAID_OUT.values(), ids=[*LAID_OUT])
def test_a_tensor_is_like_its_copy_however_it_lies_in_memory(
    made: Callable[[], torch.Tensor],
) -> None:
    tensor = made()

    assert content(tensor) == content(tensor.resolve_conj().resolve_neg().clone().contiguous())


def test_a_change_in_place_is_seen_also_by_a_way_that_torch_does_not_count() -> None:
    tensor = ramp()
    before = content(tensor)

    tensor.numpy()[1, 2] = -1

    assert content(tensor) != before


@pytest.mark.parametrize("left", [0, 8], ids=["none", "a part"])
@pytest.mark.parametrize("made", ["contiguous", "a row", "transposed", "some columns"])
def test_a_tensor_whose_memory_was_freed_is_left_out(made: str, left: int) -> None:
    tensor = LAID_OUT[made]()

    tensor.untyped_storage().resize_(left)

    assert Reader(()).seen(tensor) is None


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_tensor_whose_rows_differ_in_length_is_left_out() -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])

    assert Reader(()).seen(nested) is None


def test_a_tensor_in_several_places_is_read_once() -> None:
    tensor, reader = ramp(), Reader(())
    before = reader.seen(tensor)

    tensor.zero_()

    assert reader.seen(tensor) == before
    assert content(tensor) != (before and before.content)
