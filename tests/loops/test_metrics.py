"""Metrics of a pass: reduced as asked, read late, and the same to the bit after a resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torchmetrics import MeanMetric, Metric, MetricCollection, SumMetric
from torchmetrics.aggregation import CatMetric, RunningMean
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassPrecision
from torchmetrics.wrappers import ClasswiseWrapper, MinMaxMetric

from statemachine_trainer.loops.metrics.table import (
    BadMetricValue,
    LateMetric,
    MetricConflict,
    Metrics,
    Reduce,
    UnknownMetric,
    UnsavableMetric,
    batch_size_of,
    load_torchmetrics_state,
    torchmetrics_state,
)


class Elsewhere(torch.Tensor):
    """A tensor that says it is not on the CPU, so that it is accumulated as one of a GPU is."""

    is_cpu = False


def elsewhere(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64).as_subclass(Elsewhere)


def tensor(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


WAYS: dict[str, Callable[[float], float | torch.Tensor]] = {
    "float": float,
    "tensor": tensor,
    "device": elsewhere,
}
numbers = st.floats(-1e6, 1e6, allow_subnormal=False)
weighted = st.lists(st.tuples(numbers, st.integers(1, 64)), min_size=1, max_size=30)
reductions: list[Reduce] = ["mean", "sum", "min", "max", "last"]


@pytest.mark.parametrize("way", WAYS)
@given(values=weighted)
def test_a_mean_is_weighted_by_batch_size(way: str, values: list[tuple[float, int]]) -> None:
    metrics = Metrics()
    for value, size in values:
        metrics.log("loss", WAYS[way](value), batch_size=size)
    exact = sum(Fraction(v) * s for v, s in values) / sum(s for _, s in values)
    assert metrics["loss"] == pytest.approx(float(exact), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("way", WAYS)
@given(values=weighted)
def test_the_other_reductions_ignore_the_weight(way: str, values: list[tuple[float, int]]) -> None:
    metrics = Metrics()
    for value, size in values:
        for reduce in reductions[1:]:
            metrics.log(reduce, WAYS[way](value), batch_size=size, reduce=reduce)
    plain = [value for value, _ in values]
    assert metrics["sum"] == pytest.approx(math.fsum(plain), rel=1e-9, abs=1e-6)
    assert metrics["min"] == min(plain)
    assert metrics["max"] == max(plain)
    assert metrics["last"] == metrics.last("sum") == plain[-1]


@given(values=weighted, ways=st.lists(st.sampled_from(sorted(WAYS)), min_size=30, max_size=30))
def test_values_of_host_and_device_under_one_name_are_reduced_together(
    values: list[tuple[float, int]], ways: list[str]
) -> None:
    metrics = Metrics()
    for (value, size), way in zip(values, ways, strict=False):
        metrics.log("mean", WAYS[way](value), batch_size=size)
        metrics.log("max", WAYS[way](value), reduce="max")
        metrics.log("last", WAYS[way](value), reduce="last")
    exact = sum(Fraction(v) * s for v, s in values) / sum(s for _, s in values)
    assert metrics["mean"] == pytest.approx(float(exact), rel=1e-9, abs=1e-6)
    assert metrics["max"] == max(value for value, _ in values)
    assert metrics["last"] == values[-1][0]


@pytest.mark.parametrize("way", WAYS)
@given(values=weighted, stop=st.integers(0, 30), reads=st.booleans())
def test_a_resume_or_a_reading_in_the_middle_changes_no_bit(
    way: str, values: list[tuple[float, int]], stop: int, reads: bool
) -> None:
    def table(stops: bool) -> tuple[dict[str, float], float]:
        metrics = Metrics()
        for index, (value, size) in enumerate(values):
            if stops and index == stop:
                state = metrics.state_dict()
                metrics.log("mean", 1e9)  # What is saved is a copy: this leaves no trace.
                metrics = Metrics()
                metrics.load_state_dict(state)
            for reduce in reductions:
                metrics.log(reduce, WAYS[way](value), batch_size=size, reduce=reduce)
            if stops and reads:
                metrics.compute()
        return metrics.compute(), metrics.last("mean")

    assert table(stops=True) == table(stops=False)


def test_the_state_is_plain_data() -> None:
    metrics = Metrics()
    metrics.log("loss", 1.0, batch_size=3)
    metrics.log("acc", elsewhere(0.5))
    metric = MeanMetric()
    metric.update(2.0)
    metrics.log("object", metric)

    def check(tree: object) -> None:
        if isinstance(tree, dict):
            assert all(type(key) is str for key in tree)
            tree = list(tree.values())
        if isinstance(tree, (list, tuple)):
            for part in tree:
                check(part)
        else:
            assert tree is None or isinstance(tree, (bool, int, float, str, bytes, torch.Tensor))

    check(metrics.state_dict())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reduce", ["mean", "sum", "min", "max"])
def test_a_nan_is_a_number_and_spreads(way: str, reduce: Reduce) -> None:
    metrics = Metrics()
    for value in (1.0, float("nan"), 2.0):
        metrics.log("loss", WAYS[way](value), reduce=reduce)
    assert math.isnan(metrics["loss"])
    assert metrics.last("loss") == 2.0


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_without_samples_does_not_enter_the_mean(way: str) -> None:
    metrics = Metrics()
    metrics.log("loss", WAYS[way](float("nan")), batch_size=0)
    assert math.isnan(metrics["loss"])
    metrics.log("loss", WAYS[way](2.0), batch_size=4)
    assert metrics["loss"] == 2.0


@pytest.mark.parametrize(
    "value",
    [
        3,
        True,
        np.float32(3.0),
        np.array(3.0),
        np.int64(3),
        Fraction(3),
        torch.tensor([3]),
        torch.tensor([[3.0]], dtype=torch.bfloat16),
        torch.tensor(True),
        torch.tensor([3.0]).as_subclass(Elsewhere),
        torch.tensor([3]).as_subclass(Elsewhere),
    ],
)
def test_one_number_in_any_wrapping_is_taken(value: object) -> None:
    metrics = Metrics()
    metrics.log("value", value)
    metrics.log("value", value)
    assert metrics["value"] == metrics.last("value") == (3.0 if "True" not in str(value) else 1.0)


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2),
        torch.zeros(0),
        torch.zeros(2).as_subclass(Elsewhere),
        torch.tensor(1j),
        torch.tensor(1j).as_subclass(Elsewhere),
        "0.5",
        None,
        [1.0],
        {"a": 1.0},
        np.zeros(2),
        1j,
    ],
)
def test_what_is_not_one_number_is_an_error_that_names_the_metric(value: object) -> None:
    metrics = Metrics()
    with pytest.raises(BadMetricValue, match=r"'loss' was logged with a (tensor|\w+)"):
        metrics.log("loss", value)


@pytest.mark.parametrize("size", [-1, "4", torch.tensor(4), float("nan"), True])
def test_a_weight_is_a_number_of_at_least_zero(size: float) -> None:
    with pytest.raises(BadMetricValue, match="'loss' was logged with batch_size="):
        Metrics().log("loss", 1.0, batch_size=size)


def test_a_weight_may_be_a_fraction() -> None:
    metrics = Metrics()
    for way in WAYS.values():
        metrics.log("loss", way(4.0), batch_size=0.5)
        metrics.log("loss", way(1.0), batch_size=1.5)
    assert metrics["loss"] == pytest.approx(1.75)


def test_two_reductions_of_one_name_in_one_pass_are_an_error() -> None:
    metrics = Metrics()
    metrics.log("loss", 1.0)
    with pytest.raises(MetricConflict, match=r"'loss' was logged with reduce='mean'.*reduce='sum'"):
        metrics.log("loss", 1.0, reduce="sum")
    metrics.begin()
    metrics.log("loss", 1.0, reduce="sum")


def test_an_unknown_reduction_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(BadMetricValue, match=r"reduce='maen'\. Did you mean 'mean'"):
        Metrics().log("loss", 1.0, reduce="maen")  # type: ignore[arg-type]
    with pytest.raises(BadMetricValue, match=r"Did you mean 'max'"):
        Metrics().log("loss", 1.0, reduce=max)  # type: ignore[arg-type]


def test_a_name_that_nobody_logged_is_a_key_error_that_offers_the_nearest() -> None:
    metrics = Metrics()
    metrics.log("val_loss", 1.0)
    for read in (metrics.__getitem__, metrics.last, metrics.shown):
        with pytest.raises(UnknownMetric, match=r"^No metric 'val_los'.*Did you mean 'val_loss'"):
            read("val_los")
    assert metrics.get("val_los") is None


def test_the_table_is_a_mapping_in_the_order_of_the_first_log() -> None:
    metrics = Metrics()
    assert not metrics
    metrics.log_dict({"b": 1.0, "a": torch.tensor(2.0)}, batch_size=3)
    metrics.log("b", 3.0, batch_size=1)
    assert metrics
    assert list(metrics.items()) == [("b", 1.5), ("a", 2.0)]


def test_begin_empties_the_table() -> None:
    metrics = Metrics()
    metrics.log("loss", 1.0)
    metrics.begin()
    assert dict(metrics) == {}


def test_where_a_metric_is_shown_is_kept_with_it() -> None:
    metrics = Metrics()
    metrics.log("loss", elsewhere(2.0), on_step=True, prog_bar=True)
    metrics.log("lr", 0.1, on_step=True, on_epoch=False, reduce="last")
    metrics.log("acc", 0.5)
    assert metrics.compute() == {"loss": 2.0, "acc": 0.5}
    assert metrics.newest() == {"loss": 2.0, "lr": 0.1}
    assert metrics.newest("prog_bar") == {"loss": 2.0}
    assert metrics.shown("lr").on_epoch is False


@pytest.mark.parametrize("make", [tensor, elsewhere])
def test_what_is_logged_is_cut_off_the_graph_and_kept_as_it_was(
    make: Callable[[float], torch.Tensor],
) -> None:
    metrics = Metrics()
    value = make(2.0).requires_grad_()
    loss = value * 1.0
    metrics.log("loss", loss)
    loss.detach().fill_(99.0)
    assert metrics["loss"] == metrics.last("loss") == 2.0
    torch.autograd.backward(loss)


def test_a_pass_may_go_in_and_out_of_inference_mode() -> None:
    metrics = Metrics()
    with torch.inference_mode():
        metrics.log("loss", elsewhere(1.0))
        inside = elsewhere(2.0)
    metrics.log("loss", inside)
    metrics.log("loss", elsewhere(3.0))
    assert metrics["loss"] == 2.0


def test_accumulation_is_in_64_bits_whatever_the_type_of_the_values() -> None:
    metrics = Metrics()
    small = torch.tensor(1e-3, dtype=torch.float32).as_subclass(Elsewhere)
    metrics.log("sum", torch.tensor(2.0**24).as_subclass(Elsewhere), reduce="sum")
    for _ in range(1000):
        metrics.log("sum", small, reduce="sum")
    # In 32 bits nothing would be added to 2**24.
    assert metrics["sum"] == pytest.approx(2.0**24 + 1.0, abs=1e-4)


def test_what_was_saved_on_a_device_that_is_missing_here_goes_on_on_the_host() -> None:
    metrics = Metrics()
    for reduce in reductions:
        metrics.log(reduce, elsewhere(3.0), reduce=reduce)
        metrics.log(reduce, elsewhere(1.0), reduce=reduce)
    state = metrics.state_dict()
    for saved in state.values():
        assert isinstance(saved, dict)
        saved["newest_on"] = "cuda:99"
        for key in ("totals_on", "newests_on"):
            saved[key] = {"cuda:99": saved[key]["cpu"]}
    resumed = Metrics()
    resumed.load_state_dict(state)
    assert dict(resumed) == {"mean": 2.0, "sum": 4.0, "min": 1.0, "max": 3.0, "last": 1.0}


@pytest.mark.gpu
def test_logging_does_not_wait_for_the_gpu() -> None:
    metrics = Metrics()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for value in range(1, 4):
            metrics.log("loss", torch.full((), float(value), device="cuda"), batch_size=value)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert metrics["loss"] == pytest.approx(14 / 6)


# Metric objects


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen = CatMetric()


class Net(nn.Module):
    """A model with metrics as attributes, one of them of its own kind."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(3, average="micro")
        self.inner = Inner()
        self.hits = Hits()


class Hits:
    """A metric object that is not torchmetrics'."""

    def __init__(self) -> None:
        self.count = 0
        self.parts: list[torch.Tensor] = []

    def update(self, value: torch.Tensor) -> None:
        self.count += 1
        self.parts.append(value)

    def compute(self) -> float:
        return float(sum(part.sum() for part in self.parts)) / max(1, self.count)

    def reset(self) -> None:
        self.count, self.parts = 0, []


def batch(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(index)
    return torch.rand(8, 3, generator=generator), torch.randint(3, (8,), generator=generator)


def step(model: Net, metrics: Metrics, index: int) -> None:
    scores, targets = batch(index)
    model.accuracy(scores, targets)
    metrics.log("accuracy", model.accuracy, on_step=True)
    model.inner.seen.update(scores.mean())
    model.hits.update(scores[0])
    metrics.log("hits", model.hits)


def finish(model: Net, metrics: Metrics) -> dict[str, float]:
    metrics.log("seen", model.inner.seen.compute().sum())
    return metrics.compute()


@pytest.mark.parametrize("stop", range(6))
def test_metric_objects_go_on_in_a_new_process_where_they_stood(stop: int) -> None:
    model = Net()
    metrics = Metrics(model)
    for index in range(5):
        step(model, metrics, index)
    last = metrics.last("accuracy")
    expected = finish(model, metrics)

    model = Net()
    metrics = Metrics(model)
    for index in range(stop):
        step(model, metrics, index)
    state, inside = metrics.state_dict(), torchmetrics_state(model)
    if stop:
        step(model, metrics, 99)  # What is saved are copies: this leaves no trace.
    model = Net()
    metrics = Metrics(model)
    metrics.load_state_dict(state)
    load_torchmetrics_state(model, inside)
    for index in range(stop, 5):
        step(model, metrics, index)
    assert metrics.last("accuracy") == last
    assert finish(model, metrics) == expected


def test_loading_into_the_same_table_takes_the_objects_back() -> None:
    metric, metrics = SumMetric(), Metrics()
    metric.update(1.0)
    metrics.log("sum", metric)
    state = metrics.state_dict()
    metric.update(5.0)
    assert metrics["sum"] == 6.0
    metrics.load_state_dict(state)
    assert metrics["sum"] == 1.0


def test_begin_resets_the_objects_logged_and_computes_lazily_until_then() -> None:
    metric, metrics = SumMetric(), Metrics()
    metric.update(1.0)
    metrics.log("sum", metric)
    metric.update(2.0)
    assert metrics["sum"] == 3.0
    metrics.begin()
    metric.update(5.0)
    metrics.log("sum", metric)
    assert metrics["sum"] == 5.0


def test_an_object_that_is_no_attribute_waits_for_its_state_until_it_is_attached() -> None:
    metric, metrics = MeanMetric(), Metrics()
    metric.update(torch.tensor([1.0, 4.0]))
    metrics.log("mean", metric)
    state = metrics.state_dict()

    fresh, resumed = MeanMetric(), Metrics()
    resumed.load_state_dict(state)
    assert dict(resumed) == {}
    assert resumed.state_dict().keys() == {"mean"}
    assert resumed.attach("mean", fresh)
    assert not resumed.attach("mean", fresh)
    fresh.update(7.0)
    resumed.log("mean", fresh)
    assert resumed["mean"] == 4.0


def test_an_object_used_before_its_state_came_back_is_an_error_and_stays_as_it_is() -> None:
    metric, metrics = SumMetric(), Metrics()
    metric.update(1.0)
    metrics.log("sum", metric)
    fresh, resumed = SumMetric(), Metrics()
    resumed.load_state_dict(metrics.state_dict())
    fresh.update(2.0)
    with pytest.raises(LateMetric, match=r"SumMetric logged as 'sum'.*attach\('sum', metric\)"):
        resumed.log("sum", fresh)
    assert fresh.compute() == 2.0


def test_an_unused_object_gets_its_state_when_it_is_logged() -> None:
    metric, metrics = SumMetric(), Metrics()
    metric.update(1.0)
    metrics.log("sum", metric)
    fresh, resumed = SumMetric(), Metrics()
    resumed.load_state_dict(metrics.state_dict())
    resumed.log("sum", fresh)
    fresh.update(2.0)
    assert resumed["sum"] == 3.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: MetricCollection([MulticlassPrecision(3), MulticlassF1Score(3)], prefix="val_"),
        lambda: ClasswiseWrapper(MulticlassAccuracy(3, average=None)),
        lambda: MinMaxMetric(MulticlassAccuracy(3)),
    ],
)
def test_objects_that_compute_a_dict_give_one_metric_for_each_key_and_resume(
    make: type[Metric],
) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = make()

    def run(stops: bool) -> Mapping[str, float]:
        model = Model()
        metrics = Metrics(model)
        for index in range(4):
            if stops and index == 2:
                state, model = metrics.state_dict(), Model()
                metrics = Metrics(model)
                metrics.load_state_dict(state)
            model.scores.update(*batch(index))
            metrics.log_dict(model.scores)
            metrics.log("all", model.scores)
        return metrics.compute()

    expected = run(stops=False)
    keys = [key for key in expected if "/" not in key]
    assert len(keys) > 1
    assert list(expected) == [*keys, *(f"all/{key}" for key in keys)]
    assert run(stops=True) == expected


def test_a_metric_over_a_running_window_resumes() -> None:
    metric, fresh = RunningMean(window=3), RunningMean(window=3)
    for value in (1.0, 2.0, 3.0, 4.0):
        metric.update(value)
    load_torchmetrics_state(nn.ModuleList([fresh]), torchmetrics_state(nn.ModuleList([metric])))
    fresh.update(8.0)
    assert fresh.compute() == 5.0


def test_a_saved_object_that_the_model_lacks_is_an_error() -> None:
    with pytest.raises(UnknownMetric, match="saved at 'accuracy', where Module has none"):
        load_torchmetrics_state(nn.Module(), torchmetrics_state(Net()))


def test_an_object_and_a_number_or_two_objects_under_one_name_are_an_error() -> None:
    metrics = Metrics()
    metrics.log("sum", SumMetric())
    with pytest.raises(
        MetricConflict, match="as a metric object in this pass, and now as a number"
    ):
        metrics.log("sum", 1.0)
    with pytest.raises(MetricConflict, match="another metric object"):
        metrics.log("sum", SumMetric())
    with pytest.raises(MetricConflict, match="SumMetric, which reduces by itself"):
        metrics.log("other", SumMetric(), reduce="max")


def test_an_object_that_computes_many_numbers_is_an_error_when_read() -> None:
    metric, metrics = MulticlassAccuracy(3, average=None), Metrics()
    metric.update(*batch(0))
    metrics.log("accuracy", metric)
    with pytest.raises(BadMetricValue, match=r"'accuracy'.*shape \(3,\)"):
        metrics.compute()


def test_an_object_that_cannot_be_written_down_says_what_it_needs() -> None:
    hits, metrics = Hits(), Metrics()
    hits.helper = object()  # type: ignore[attr-defined]
    metrics.log("hits", hits)
    with pytest.raises(UnsavableMetric, match=r"'hits'.*\(helper\).*load_state_dict\(state\)"):
        metrics.state_dict()


def test_an_object_with_a_state_dict_of_its_own_is_saved_by_it() -> None:
    class Counter:
        def __init__(self) -> None:
            self.total, self.helper = 0.0, object()

        def update(self, value: float) -> None:
            self.total += value

        def compute(self) -> float:
            return self.total

        def reset(self) -> None:
            self.total = 0.0

        def state_dict(self) -> dict[str, float]:
            return {"total": self.total}

        def load_state_dict(self, state: dict[str, float]) -> None:
            self.total = state["total"]

    counter, metrics = Counter(), Metrics()
    counter.update(3.0)
    metrics.log("total", counter)
    fresh, resumed = Counter(), Metrics()
    resumed.load_state_dict(metrics.state_dict())
    resumed.attach("total", fresh)
    assert resumed["total"] == 3.0


# The size of a batch


class Pair(NamedTuple):
    x: object
    y: object


@dataclass
class Sample:
    name: str
    image: torch.Tensor


class Shaped:
    shape = (6, 2)

    def to(self, device: object) -> Shaped:
        return self


@pytest.mark.parametrize(
    "batch,size",
    [
        (torch.zeros(4, 2), 4),
        ([torch.zeros(3), torch.zeros(5)], 3),
        ({"name": "x", "n": 3, "scalar": torch.tensor(1.0), "x": (torch.zeros(2, 7),)}, 2),
        (Pair("a", [Sample("b", torch.zeros(5, 1))]), 5),
        (Shaped(), 6),
        (pack_padded_sequence(torch.zeros(2, 3, 1), torch.tensor([3, 2]), batch_first=True), 2),
        (torch.tensor(1.0), None),
        ({"x": "text", "y": [1, 2]}, None),
        (np.zeros(3), 3),
        (None, None),
    ],
)
def test_the_size_of_a_batch_is_the_first_dimension_of_its_first_tensor(
    batch: object, size: int | None
) -> None:
    assert batch_size_of(batch) == size
