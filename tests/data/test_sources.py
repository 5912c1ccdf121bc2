"""What users give as data: loaders, data sets, several of them, or functions that make them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from statemachine_trainer.data import BadSource, UnbatchedData, as_loader, as_loaders
from tests.data.kit import Quiet


def test_a_loader_is_taken_as_it_is() -> None:
    loader, batches = DataLoader(Quiet(3)), [torch.zeros(2)]
    assert as_loader(loader) is loader
    assert as_loader(batches) is batches


def test_a_data_set_is_read_as_torch_reads_it_and_a_warning_says_what_to_write() -> None:
    give = r"Give DataLoader\(data, batch_size=32, shuffle=True\)"
    with pytest.warns(UnbatchedData, match=rf"'train' is a TensorDataset .* {give}") as told:
        loader = as_loader(TensorDataset(torch.arange(3)))
    assert isinstance(loader, DataLoader)
    assert loader.batch_size == 1
    assert told[0].filename == __file__
    with pytest.warns(UnbatchedData, match=r"'validation' is .*DataLoader\(data, batch_size=32\);"):
        as_loaders(Quiet(3))


def test_items_of_an_iterable_data_set_may_be_samples_or_batches_and_both_ways_are_said() -> None:
    class Endless(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(3))

    with pytest.warns(UnbatchedData, match="if it yields samples, batch_size=None if batches"):
        as_loader(Endless())


def test_a_data_set_is_warned_of_once_by_each_line_that_gives_it() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(3):
            as_loader(Quiet(3))
    assert len(told) == 1


@pytest.mark.parametrize("source", [[Quiet(2)[0]], DataLoader(Quiet(2)), iter([torch.ones(2)])])
def test_batches_and_loaders_are_taken_without_a_word(source: Any) -> None:
    as_loader(source)


def test_a_function_makes_a_loader_anew_each_time() -> None:
    def make() -> DataLoader[int]:
        return DataLoader(Quiet(3))

    assert as_loader(make) is not as_loader(make)


@pytest.mark.parametrize(
    "source,message",
    [
        (torch.zeros(4, 2), r"a bare Tensor of shape \(4, 2\).*TensorDataset"),
        (np.zeros(3), r"a bare ndarray of shape \(3,\)"),
        (None, r"'train' is None, which can not be read"),
        (3, r"'train' is a int"),
        ("data.csv", r"'train' is a str"),
        ({"a": 1}, r"'train/a' is a int"),
        (lambda: lambda: 3, r"made another function"),
    ],
)
def test_what_can_not_be_read_is_refused_with_a_way_out(source: Any, message: str) -> None:
    with pytest.raises(BadSource, match=message):
        as_loader(source)


def test_one_loader_keeps_the_name_and_several_are_numbered_or_called_by_their_keys() -> None:
    one, two = DataLoader(Quiet(1)), DataLoader(Quiet(2))
    assert as_loaders(one) == [("validation", one)]
    assert as_loaders([one]) == [("validation", one)]
    assert as_loaders((one, two), "test") == [("test/0", one), ("test/1", two)]
    assert as_loaders({"clean": one, "noisy": two}) == [("clean", one), ("noisy", two)]
    assert as_loaders(lambda: [one, two]) == [("validation/0", one), ("validation/1", two)]


def test_a_list_of_batches_is_one_loader() -> None:
    batches = [torch.zeros(2), torch.ones(2)]
    assert as_loaders(batches) == [("validation", batches)]


def test_a_list_of_data_sets_is_several_loaders() -> None:
    with pytest.warns(UnbatchedData, match="'validation/0'"):
        loaders = as_loaders([Quiet(1), lambda: DataLoader(Quiet(2))])
    assert [name for name, _ in loaders] == ["validation/0", "validation/1"]
    assert [len(loader) for _, loader in loaders] == [1, 2]  # type: ignore[arg-type]


def test_a_bad_one_of_several_is_named() -> None:
    with pytest.raises(BadSource, match="'noisy' is None"):
        as_loaders({"clean": DataLoader(Quiet(1)), "noisy": None})
