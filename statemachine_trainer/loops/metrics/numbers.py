"""One metric reduced over a pass: in a Python float, and in an accumulator per other device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, TypedDict, cast, get_args

import torch
from torch import Tensor, nn

from statemachine_trainer.loops.loop_errors import BadMetricValue
from statemachine_trainer.machine.errors import suggest

Reduce = Literal["mean", "sum", "min", "max", "last"]


class LogSettings(TypedDict, total=False):
    """What `log` takes by keyword."""

    batch_size: float | None
    reduce: Reduce
    on_step: bool
    on_epoch: bool
    prog_bar: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """Where a metric is shown: each newest value, the reduced one of a pass, the progress bar."""

    on_step: bool = False
    on_epoch: bool = True
    prog_bar: bool = False

    def state_dict(self) -> dict[str, object]:
        """Return the three by name."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class _Cell:
    """The accumulator of one metric on one device that is not the CPU."""

    total: Tensor
    newest: Tensor


class Number:
    """One metric that is reduced here."""

    __slots__ = ("cells", "newest", "newest_on", "reduce", "shown", "total", "weight")

    def __init__(self, reduce: Reduce, shown: Shown) -> None:
        self.reduce = reduce
        self.shown = shown
        self.total: float = _NEUTRAL[reduce]
        self.weight: float = 0
        self.newest: float = _NEUTRAL["last"]
        self.newest_on: torch.device | None = None
        self.cells: dict[torch.device, _Cell] = {}

    def add(self, value: float, weight: float) -> None:
        self.newest = value
        self.newest_on = None
        if self.reduce != "mean":
            self._fold(value)
        elif weight:
            self.total += value * weight
            self.weight += weight

    def add_on_device(self, name: str, value: Tensor, weight: float) -> None:
        if value.numel() != 1 or value.is_complex():
            raise bad_tensor(name, value)
        device = value.device
        cell = self.cells.get(device)
        if cell is None:
            cell = self.cells[device] = _new_cell(device, _NEUTRAL[self.reduce])
        # A copy: the tensor may be a view of a large one, or be written to later.
        newest = cell.newest.copy_(value.detach().reshape(()))
        self.newest_on = device
        if self.reduce == "mean":
            if weight:
                cell.total.add_(newest, alpha=weight)
                self.weight += weight
        elif self.reduce == "sum":
            cell.total.add_(newest)
        elif self.reduce != "last":
            extreme = torch.minimum if self.reduce == "min" else torch.maximum
            extreme(cell.total, newest, out=cell.total)

    def totals(self) -> list[Tensor]:
        """The tensors to be read before `reduced` can answer."""
        if self.reduce == "last":
            return [] if self.newest_on is None else [self.cells[self.newest_on].newest]
        return [cell.total for cell in self.cells.values()]

    def reduced(self, totals: Sequence[float]) -> float:
        if self.reduce == "last":
            return totals[0] if totals else float(self.newest)
        if self.reduce in ("mean", "sum"):
            total = float(self.total) + sum(totals)
            if self.reduce == "sum":
                return total
            return total / self.weight if self.weight else float("nan")
        return _extreme(self.reduce, [float(self.total), *totals])

    def newest_value(self) -> float:
        on = self.newest_on
        return float(self.newest if on is None else self.cells[on].newest.item())

    def state(self, name: str, owner: nn.Module | None) -> dict[str, object]:
        cells = self.cells.items()
        return {
            "kind": "number",
            "reduce": self.reduce,
            "shown": self.shown.state_dict(),
            "total": self.total,
            "weight": self.weight,
            "newest": self.newest,
            "newest_on": None if self.newest_on is None else str(self.newest_on),
            "totals_on": {str(device): cell.total.clone() for device, cell in cells},
            "newests_on": {str(device): cell.newest.clone() for device, cell in cells},
        }

    @classmethod
    def restored(cls, saved: dict[str, object]) -> Number:
        number = cls(
            cast(Reduce, saved["reduce"]), Shown(**cast("dict[str, bool]", saved["shown"]))
        )
        number.total = cast(float, saved["total"])
        number.weight = cast(float, saved["weight"])
        number.newest = cast(float, saved["newest"])
        newests = cast("dict[str, Tensor]", saved["newests_on"])
        for name, total in cast("dict[str, Tensor]", saved["totals_on"]).items():
            is_newest = name == saved["newest_on"]
            if not _is_here(name):  # Saved on a machine with other devices.
                number._fold(total.item())
                number.newest = newests[name].item() if is_newest else number.newest
                continue
            cell = _new_cell(torch.device(name), 0.0)
            cell.total.copy_(total)
            cell.newest.copy_(newests[name])
            number.cells[torch.device(name)] = cell
            number.newest_on = torch.device(name) if is_newest else number.newest_on
        return number

    def _fold(self, value: float) -> None:
        if self.reduce in ("mean", "sum"):
            self.total += value
        elif self.reduce != "last":
            self.total = _extreme(self.reduce, [self.total, value])


_NEUTRAL: dict[Reduce, float] = {
    "mean": 0.0,
    "sum": 0.0,
    "min": float("inf"),
    "max": float("-inf"),
    "last": float("nan"),
}


def item(name: str, value: Tensor) -> float:
    """The number in a tensor of the CPU."""
    try:
        number = value.item()
    except RuntimeError:
        raise bad_tensor(name, value) from None
    if isinstance(number, complex):
        raise bad_tensor(name, value)
    return number


def as_number(name: str, value: object) -> float:
    """The number in anything that is neither a number, a tensor nor a metric object."""
    if isinstance(value, Real):
        return float(value)
    if type(value).__module__ == "numpy" and getattr(value, "size", 0) == 1:
        number = value.item()  # type: ignore[attr-defined]
        if isinstance(number, (int, float)):
            return number
    raise BadMetricValue(
        f"{name!r} was logged with a {type(value).__name__}: {str(value)[:60]!r}. Log a number, a "
        "tensor of one element or a metric object; for several values use "
        "statemachine_trainer.log_dict."
    )


def bad_tensor(name: str, value: Tensor) -> BadMetricValue:
    """The error for a tensor that is not one real number."""
    what = f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    return BadMetricValue(
        f"{name!r} was logged with {what}, which is not one real number. Reduce it first, as in "
        "value.mean() or by the reduction='mean' of a loss, or log each number under a name of its own."
    )


def check_weight(name: str, weight: object) -> None:
    """Raises unless `weight` can be the weight of a value."""
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight >= 0:
        raise BadMetricValue(
            f"{name!r} was logged with batch_size={weight!r}: the weight of a value is a Python "
            "number of at least 0. (A tensor would have to be waited for.)"
        )


def check_new(name: str, reduce: str) -> None:
    """Raises unless a metric can be called so, and be reduced so."""
    if not isinstance(name, str):
        raise BadMetricValue(f"The name of a metric is a str, not {name!r}.")
    if reduce not in get_args(Reduce):
        raise BadMetricValue(
            f"{name!r} was logged with reduce={reduce!r}. {suggest(reduce, get_args(Reduce))}"
        )


def _extreme(reduce: str, values: Iterable[float]) -> float:
    """The least or greatest value; NaN if one is, as torch has it."""
    values = list(values)
    if any(value != value for value in values):
        return float("nan")
    return min(values) if reduce == "min" else max(values)


def _new_cell(device: torch.device, total: float) -> _Cell:
    dtype = torch.float32 if device.type == "mps" else torch.float64  # mps has no 64 bits.
    # Born in inference mode, they could not be added to outside of it.
    with torch.inference_mode(False):
        return _Cell(
            torch.full((), total, dtype=dtype, device=device),
            torch.full((), float("nan"), dtype=dtype, device=device),
        )


def read_all(tensors: Sequence[Tensor]) -> list[float]:
    """The numbers in many tensors, waiting once for each device."""
    by_device: dict[torch.device, list[int]] = {}
    for index, tensor in enumerate(tensors):
        by_device.setdefault(tensor.device, []).append(index)
    found = [0.0] * len(tensors)
    for indices in by_device.values():
        numbers = torch.stack([tensors[index] for index in indices]).tolist()
        for index, number in zip(indices, numbers, strict=True):
            found[index] = number
    return found


def _is_here(device: str) -> bool:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        return False
    return True
