"""The state of the global generators: written down, put back, and kept apart."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statemachine_trainer.snapshot.codec import decode, encode
from statemachine_trainer.snapshot.rng import (
    RngNotRestored,
    UnknownGenerator,
    devices_in_use,
    isolated_rng,
    restore_rng,
    rng_state,
)
from tests.data.kit import rng_bits, seed_all
from tests.data.resume_kit import assert_plain

DRAWS = {
    "python": random.random,
    "python gauss": lambda: random.gauss(0, 1),
    "numpy": np.random.rand,
    "numpy gauss": np.random.randn,
    "torch": lambda: float(torch.rand(())),
    "torch gauss": lambda: float(torch.randn(())),
}


def _draw(names: list[str]) -> list[Any]:
    return [DRAWS[name]() for name in names]


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.sampled_from([*DRAWS])),
    st.lists(st.sampled_from([*DRAWS])),
)
def test_restored_generators_draw_the_same_numbers(
    seed: int, before: list[str], after: list[str]
) -> None:
    seed_all(seed)
    _draw(before)
    state = rng_state()
    assert_plain(state)
    expected = _draw(after)
    seed_all(0)
    restore_rng(state)
    assert _draw(after) == expected


def test_the_state_passes_through_the_files_of_a_snapshot() -> None:
    random.gauss(0, 1)
    state = rng_state()
    expected = _draw([*DRAWS])
    restored = decode(*encode(state))
    assert isinstance(restored, dict)
    restore_rng(restored)
    assert _draw([*DRAWS]) == expected


def test_an_isolated_block_leaves_no_trace_even_if_it_raises() -> None:
    before = rng_bits()
    with isolated_rng():
        _draw([*DRAWS])
    assert rng_bits() == before

    def draw_and_raise() -> None:
        with isolated_rng():
            _draw([*DRAWS])
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        draw_and_raise()
    assert rng_bits() == before


def test_asking_for_devices_initialises_none() -> None:
    assert devices_in_use() == ()
    assert rng_state(["cuda", "cuda:1", "xpu", "cpu"])["devices"] == {}
    assert not torch.cuda.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_a_device_that_is_not_here_is_left_out_with_a_warning() -> None:
    state = rng_state() | {"devices": {"cuda:0": torch.zeros(16, dtype=torch.uint8)}}
    with pytest.warns(RngNotRestored, match="no cuda:0 here"):
        restore_rng(state)
    assert not torch.cuda.is_initialized()


@pytest.mark.gpu
def test_a_cuda_device_in_use_is_part_of_the_state() -> None:
    torch.zeros(1, device="cuda")
    state = rng_state(devices_in_use())
    expected = torch.rand(4, device="cuda")
    with isolated_rng():
        torch.rand(9, device="cuda")
    restore_rng(state)
    assert torch.equal(torch.rand(4, device="cuda"), expected)


def test_another_generator_in_numpy_s_place_is_refused() -> None:
    numpy_random: Any = np.random
    original = numpy_random.get_bit_generator()
    numpy_random.set_bit_generator(np.random.PCG64(1))
    try:
        with pytest.raises(UnknownGenerator, match="PCG64"):
            rng_state()
    finally:
        numpy_random.set_bit_generator(original)
