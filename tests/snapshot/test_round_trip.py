"""A tree written and read is the same tree, to the bit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file
from torch import nn

from statemachine_trainer.snapshot import Store, decode, encode
from tests.snapshot.trees import DTYPES, bits, trees

# Torch says so of every complex32 that is made.
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def through_files(tree: object) -> object:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        return store.load(store.save(tree, name="x")).tree


@given(trees())
def test_any_plain_tree_comes_back_to_the_bit(tree: object) -> None:
    assert bits(through_files(tree)) == bits(tree)


@given(trees())
def test_equal_trees_become_equal_documents(tree: object) -> None:
    document, tensors = encode(tree)
    again, tensors_again = encode(decode(document, tensors))
    assert again == document
    assert bits(tensors_again) == bits(tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (3,), (2, 3)], ids=str)
def test_every_dtype_comes_back_in_every_kind_of_shape(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor = torch.empty(shape, dtype=dtype)
    if tensor.numel():
        tensor.view(-1).view(torch.uint8).fill_(1)
    assert bits(through_files(tensor)) == bits(tensor)


def test_one_item_or_none_with_odd_strides_comes_back() -> None:
    tree = [
        torch.arange(9, dtype=torch.int16)[::5][:1],
        torch.arange(9.0)[2::3][:1].requires_grad_(False),
        torch.randn(4, 4, dtype=torch.complex128)[::3, ::2][1:, :1],
        torch.ones(1).expand(0),
        np.arange(9)[::5][:1],
        np.arange(9, dtype=np.int16)[::-1][:0],
        np.broadcast_to(np.int16(1), (0, 3)),
    ]
    assert bits(through_files(tree)) == bits(tree)


def test_an_integer_of_any_size_comes_back() -> None:
    huge = -(10**5000)  # more digits than Python turns into text
    assert through_files([huge, 2**63, -(2**63) - 1]) == [huge, 2**63, -(2**63) - 1]


def test_a_tensor_that_occurs_twice_is_one_tensor_again() -> None:
    shared, array = torch.ones(3), np.ones(3)
    tree = through_files({"a": shared, "b": [shared, shared[:2]], "c": (array, array)})
    assert isinstance(tree, dict)
    assert tree["a"] is tree["b"][0]
    assert tree["c"][0] is tree["c"][1]
    assert tree["a"].data_ptr() != tree["b"][1].data_ptr()


def test_a_deep_tree_whose_dicts_have_a_key_that_is_no_name_is_encoded_once() -> None:
    tree: object = torch.ones(2)
    for level in range(40):  # where each were encoded twice, this would never end
        tree = {"inside": tree, level: "number", "$name": None}
    document, tensors = encode(tree)
    assert len(tensors) == 1
    found: Any = decode(document, tensors)
    for level in reversed(range(40)):
        assert [*found] == ["inside", level, "$name"]
        found = found["inside"]
    assert torch.equal(found, torch.ones(2))


def test_the_layout_of_a_tensor_comes_back() -> None:
    images = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    weight = torch.randn(4, 5).T
    fortran = np.asfortranarray(np.ones((2, 3)))
    tree = through_files([images, weight, fortran])
    assert isinstance(tree, list)
    assert tree[0].is_contiguous(memory_format=torch.channels_last)
    assert tree[1].stride() == weight.stride()
    assert tree[2].flags.f_contiguous


def test_the_strides_of_axes_of_one_item_come_back() -> None:
    # A weight of a 1x1 convolution is contiguous in both layouts; its strides choose the kernel.
    weight = torch.randn(4, 3, 1, 1).to(memory_format=torch.channels_last)
    assert weight.is_contiguous()
    others = [torch.randn(4, 5).T[:, None], torch.randn(2, 1, 2).permute(1, 2, 0)]
    tree = through_files([weight, *others])
    assert isinstance(tree, list)
    assert [one.stride() for one in tree] == [weight.stride(), *(one.stride() for one in others)]


def test_each_tensor_has_memory_of_its_own_as_aligned_as_torch_aligns() -> None:
    tree = through_files([torch.ones(1, dtype=torch.uint8), torch.ones(5), torch.ones(7)])
    assert isinstance(tree, list)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in tree)
    assert len({tensor.untyped_storage().data_ptr() for tensor in tree}) == 3


def test_a_parameter_comes_back_as_a_tensor_that_asks_for_gradients() -> None:
    tree = through_files(nn.Parameter(torch.ones(2)))
    assert type(tree) is torch.Tensor
    assert tree.requires_grad
    assert tree.is_leaf


def test_a_state_dict_keeps_the_versions_of_its_modules() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    tree = through_files([model.state_dict(), optimizer.state_dict()])
    assert bits(tree) == bits([model.state_dict(), optimizer.state_dict()])
    assert isinstance(tree, list)
    assert tree[0]._metadata["1"] == {"version": 2}


def test_tensors_at_addresses_that_read_the_same_stay_apart() -> None:
    tree = {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}, "__metadata__": torch.ones(2)}
    assert bits(through_files(tree)) == bits(tree)


def test_where_tensors_of_an_accelerator_go_is_the_readers_choice() -> None:
    document, tensors = encode({"rng": torch.ones(1), "weight": torch.ones(2)})
    details = document["tensors"]
    assert isinstance(details, dict)
    details["weight"] = {"device": "cuda:3"}  # as if it had been written on such a machine
    asked: list[str] = []

    def everything_to_meta(device: str) -> str:
        asked.append(device)
        return "meta"

    for location, expected in [(None, "cpu"), ("meta", "meta"), (everything_to_meta, "meta")]:
        tree = decode(document, tensors, map_location=location)
        assert isinstance(tree, dict)
        assert tree["rng"].device.type == "cpu"
        assert tree["weight"].device.type == expected
    assert asked == ["cuda:3"]


def test_the_safetensors_library_reads_the_file_of_tensors(tmp_path: Path) -> None:
    tree = {
        "model": {"w": torch.randn(3, 4), "flag": torch.tensor(True), "none": torch.empty(0, 2)},
        "half": torch.randn(5).bfloat16(),
        "turned": torch.randn(2, 3).T,
        "large": torch.randn(300_000),
    }
    path = Store(tmp_path).save(tree, name="x")
    read = load_file(path / "tensors.safetensors")
    assert bits(read["model.w"]) == bits(tree["model"]["w"])  # type: ignore[index]
    assert bits(read["turned"]) == bits(tree["turned"])
    assert bits(read["large"]) == bits(tree["large"])
    assert set(read) == {"model.w", "model.flag", "model.none", "half", "turned", "large"}


def test_large_and_small_tensors_in_any_order_come_back() -> None:
    sizes = [1, 70_000, 3, 0, 3_000_000, 20_000, 16_385, 16_384, 2]
    tree = [torch.randn(size) for size in sizes] + [torch.randn(1000) for _ in range(200)]
    assert bits(through_files(tree)) == bits(tree)
