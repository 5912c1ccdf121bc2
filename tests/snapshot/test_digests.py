"""Digests of tensors tell any two tensors apart that differ in a place, a value or a bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from statemachine_trainer.snapshot.digests import Digests, _summed_by_numpy, _summed_by_torch

SIZES = [1, 2, 3, 7, 64, 4095, 4096, 4097, 8193, 20_000, 70_001]
"""Around the size from which a tensor is laid out as a table, and with a rest."""


def digest(tensor: Tensor) -> int:
    return int(Digests([tensor]).read()[0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
def test_a_copy_has_the_same_digest_wherever_it_lies(size: int, dtype: torch.dtype) -> None:
    tensor = (torch.arange(size) % 251).to(dtype)
    shifted = torch.cat((torch.ones(1, dtype=dtype), tensor))[1:]
    assert digest(shifted) == digest(tensor) == digest(tensor.clone())


@pytest.mark.parametrize("size", SIZES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_single_bit_is_seen_wherever_it_is(size: int, data: st.DataObject) -> None:
    tensor = torch.zeros(size)
    place = data.draw(st.integers(0, size - 1))
    bit = data.draw(st.integers(0, 31))
    changed = tensor.clone()
    changed.view(torch.int32)[place] = (1 << bit) if bit < 31 else -(2**31)
    assert digest(changed) != digest(tensor)


@pytest.mark.parametrize("size", [4, 8192, 20_000])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_two_values_that_change_places_are_seen(size: int, data: st.DataObject) -> None:
    tensor = torch.arange(size, dtype=torch.float64)
    first, second = data.draw(
        st.lists(st.integers(0, size - 1), min_size=2, max_size=2, unique=True)
    )
    changed = tensor.clone()
    changed[[first, second]] = tensor[[second, first]]
    assert digest(changed) != digest(tensor)


def test_values_that_stand_there_twice_are_seen() -> None:
    for size in (4, 8192, 20_000):
        for dtype in (torch.float32, torch.float64):
            changed = [torch.full((size,), one, dtype=dtype) for one in (0.0, -0.0, 1.0, -1.0, 2.0)]
            assert len({digest(one) for one in changed}) == len(changed)
    assert digest(torch.ones(4)) != digest(torch.full((4,), 2.0))
    assert digest(torch.zeros(4)) != digest(-torch.zeros(4))


def test_the_order_of_the_elements_counts_and_not_the_order_in_memory() -> None:
    tensor = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    other_way = tensor.t().contiguous().t()
    assert not other_way.is_contiguous()
    assert digest(other_way) == digest(tensor)
    assert digest(tensor.t()) != digest(tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(9001.0)[None][:, :9000],
        torch.arange(9001.0)[None, None].half()[..., :9000],
        torch.arange(20_000.0).as_strided((4500, 1, 2), (2, 7, 1)),
        torch.arange(4.0).to(torch.complex128)[1::4],
    ],
)
def test_a_dimension_of_one_may_have_any_stride(tensor: Tensor) -> None:
    """A batch of one sequence without its last element is such a tensor."""
    assert tensor.is_contiguous()
    assert digest(tensor) == digest(tensor.clone(memory_format=torch.contiguous_format))


def test_what_has_no_plain_bytes_has_no_digest() -> None:
    tensors = [torch.ones(3), torch.eye(3).to_sparse(), torch.empty(3, device="meta")]
    lazy = torch.nn.parameter.UninitializedParameter()
    found = Digests([*tensors, lazy])
    assert found.seen == [True, False, False, False]
    assert found.read()[1:].tolist() == [0, 0, 0]


class Wrapping(Tensor):
    """A tensor of another library: it has no memory of its own, and knows few operations."""

    @staticmethod
    def __new__(cls, size: int) -> Any:
        return Tensor._make_wrapper_subclass(cls, (size,))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, given: Any = (), named: Any = None
    ) -> Any:
        if function is torch.ops.aten.detach.default:
            return cls(*given[0].shape)
        raise NotImplementedError(function)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_tensors_without_a_flat_view_have_no_digest_and_stop_no_others() -> None:
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)])
    plain = torch.ones(3)
    found = Digests([nested, Wrapping(4), Wrapping(40_000), plain])
    assert found.seen == [False, False, False, True]
    assert found.read().tolist() == [0, 0, 0, digest(plain)]


@pytest.mark.parametrize("size", [4, 20_000])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.bool, torch.float16])
def test_elements_of_any_width_have_digests(size: int, dtype: torch.dtype) -> None:
    tensor = torch.zeros(size, dtype=dtype)
    changed = tensor.clone()
    changed[size // 2] = 1
    assert digest(changed) not in (0, digest(tensor))


def test_conjugated_numbers_are_those_that_they_stand_for() -> None:
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    assert digest(tensor.conj()) == digest(torch.tensor([1 - 2j, 3 + 4j]))


def test_no_tensors_and_empty_ones_have_digests_too() -> None:
    assert Digests([]).read().tolist() == []
    assert Digests([torch.empty(0)]).seen == [True]


def test_digests_of_a_whole_list_are_those_of_its_tensors() -> None:
    tensors = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (3, 9000, 1)]
    assert Digests(tensors).read().tolist() == [digest(one) for one in tensors]


def test_sums_are_the_same_on_a_device_as_on_the_cpu() -> None:
    words, weights = torch.randint(-(2**62), 2**62, (2, 300), generator=torch.Generator())
    begins = torch.tensor([0, 1, 7, 299])
    found = _summed_by_torch(words.clone(), weights, begins)
    expected = _summed_by_numpy(words.numpy(), weights.numpy(), begins.numpy())
    assert found.numpy().view(expected.dtype).tolist() == expected.tolist()


@pytest.mark.parametrize("size", [600, 65_536, 131_072])
def test_the_same_change_of_every_element_is_seen(size: int) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        tensor = torch.ones(size, dtype=dtype)
        changed = [-tensor, tensor * 2, tensor * 2**8, tensor * 2**16]
        assert len({digest(one) for one in [tensor, *changed]}) == 5


@pytest.mark.parametrize("shape", [(4, 6), (64, 384), (512, 256), (341, 385), (96, 3, 7, 7)])
def test_rows_that_change_places_are_seen(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for step in (1, 2, shape[0] // 2):
        assert digest(tensor.roll(step, 0)) != digest(tensor)
    assert digest(tensor.roll(1, -1)) != digest(tensor)
    assert digest(tensor.flip(0)) != digest(tensor)


def test_rare_kinds_of_tensors_have_digests_or_say_that_they_have_none() -> None:
    long = torch.ones(70, 301)
    kinds = [
        long.to(torch.float8_e5m2), long.to(torch.uint16), long.to(torch.complex128).conj(),
        torch.ones(()), torch.ones(0, 3), torch.empty(0, 301), long.expand(3, 70, 301), long[:, ::3],
        torch.ones(3, dtype=torch.complex64).conj().imag, torch.ones(2, 1).t(), nn.Parameter(long)[1:],
    ]  # fmt: skip
    unseen = long.to_sparse()
    found = Digests([*kinds, unseen])
    assert found.seen == [True] * len(kinds) + [False]
    copies = [digest(one.resolve_conj().resolve_neg().detach().clone()) for one in kinds]
    assert found.read().tolist() == [*copies, 0]
    assert found.described[:2] == ["float8_e5m2 (70, 301)", "uint16 (70, 301)"]
    assert found.described[-1] == "?"
