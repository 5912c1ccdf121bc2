"""Mixed precision: the names it goes by, the context it computes in, the scaler's state."""

from __future__ import annotations

import pytest
import torch

from statemachine_trainer.parallel import Precision, PrecisionMismatch, UnknownPrecision


def dtype_within(precision: Precision) -> torch.dtype:
    with precision.context():
        return torch.mm(torch.zeros(2, 2), torch.zeros(2, 2)).dtype


@pytest.mark.parametrize(
    "given,name,dtype",
    [
        ("32", "32", torch.float32),
        (32, "32", torch.float32),
        ("32-true", "32", torch.float32),
        ("bf16", "bf16", torch.bfloat16),
        ("bf16-mixed", "bf16", torch.bfloat16),
        ("fp16", "fp16", torch.float16),
        ("16-mixed", "fp16", torch.float16),
        (16, "fp16", torch.float16),
    ],
)
def test_each_name_computes_in_its_type(given: str | int, name: str, dtype: torch.dtype) -> None:
    precision = Precision(given)
    assert precision.name == name
    assert dtype_within(precision) == dtype
    assert precision.autocasts == (dtype != torch.float32)


def test_contexts_nest_and_leave_nothing_behind() -> None:
    precision = Precision("bf16")
    with precision.context():
        with precision.context():
            assert torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("name", ["32", "bf16"])
def test_only_fp16_scales_gradients(name: str) -> None:
    assert Precision(name).scaler is None
    assert Precision("fp16").scaler is not None


@pytest.mark.parametrize("name", ["8", "half", True, "", "bf-16"])
def test_an_unknown_name_is_an_error_that_lists_the_choices(name: str) -> None:
    with pytest.raises(UnknownPrecision, match=r"is unknown. Choose '32', 'bf16'.*'fp16'"):
        Precision(name)


@pytest.mark.parametrize(
    "name,way", [("64", "double"), ("bf16-true", "bfloat16"), ("16-true", "half")]
)
def test_a_precision_of_the_weights_says_how_it_is_reached(name: str, way: str) -> None:
    with pytest.raises(UnknownPrecision, match=rf"`model\.{way}\(\)`"):
        Precision(name)


def scaled_run(precision: Precision, weight: torch.nn.Parameter, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = precision.scaler
    assert scaler is not None
    scaler.set_growth_interval(2)
    scales = []
    for _ in range(steps):
        optimizer.zero_grad()
        with precision.context():
            loss = (weight * torch.ones(3)).sum()
        torch.autograd.backward(scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


def test_a_run_goes_on_with_the_scale_and_its_growth_where_they_stood() -> None:
    whole = Precision("fp16")
    expected = scaled_run(whole, torch.nn.Parameter(torch.ones(3)), 5)

    first = Precision("fp16")
    weight = torch.nn.Parameter(torch.ones(3))
    head = scaled_run(first, weight, 3)
    second = Precision("fp16")
    second.load_state_dict(first.state_dict())
    assert head + scaled_run(second, weight, 2) == expected
    assert second.state_dict() == whole.state_dict()


def test_the_state_of_plain_precision_is_its_name() -> None:
    precision = Precision("32")
    assert precision.state_dict() == {"name": "32", "scaler": None}
    precision.load_state_dict(precision.state_dict())


def test_a_state_of_another_precision_is_refused_by_name() -> None:
    with pytest.raises(PrecisionMismatch, match=r"saved with precision 'fp16'.*now set to '32'"):
        Precision("32").load_state_dict(Precision("fp16").state_dict())
