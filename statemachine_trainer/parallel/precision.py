"""The precision of steps: plain 32 bits, or mixed with bfloat16 or float16."""

from __future__ import annotations

import contextlib
from typing import Literal, TypedDict, cast

import torch

from statemachine_trainer.parallel.parallel_errors import PrecisionMismatch, UnknownPrecision

Name = Literal["32", "bf16", "fp16"]

_ALIASES: dict[str, Name] = {
    "32": "32",
    "32-true": "32",
    "fp32": "32",
    "float32": "32",
    "bf16": "bf16",
    "bf16-mixed": "bf16",
    "bfloat16": "bf16",
    "16": "fp16",
    "16-mixed": "fp16",
    "fp16": "fp16",
    "float16": "fp16",
}

# Names from other libraries for changes of the model, not of the run.
_ELSEWHERE = {
    "64": "make the model float64 with `model.double()` and hand it float64 data",
    "64-true": "make the model float64 with `model.double()` and hand it float64 data",
    "bf16-true": "make the weights themselves bfloat16 with `model.bfloat16()`",
    "16-true": "make the weights themselves float16 with `model.half()`",
}


class ScalerState(TypedDict):
    """The state of a `torch.amp.GradScaler`."""

    scale: float
    growth_factor: float
    backoff_factor: float
    growth_interval: int
    _growth_tracker: int


class PrecisionState(TypedDict):
    """The state of `Precision`; `scaler` is None unless the precision is "fp16"."""

    name: str
    scaler: ScalerState | None


class Precision:
    """The precision of a run: whether steps run under autocast, and whether gradients are scaled.

    Args:
        name: "32", "bf16" (autocast to bfloat16) or "fp16" (autocast to float16, with a gradient
            scaler). Lightning's names for the same are taken too: 32, "32-true", "bf16-mixed", 16,
            "16-mixed".
        device: The device the model is on; autocast and the scaler are made for its type.

    Raises:
        UnknownPrecision: For any other name; the message lists them, or says how it is done
            instead.

    Attributes:
        name: The short name of the three above.
        autocasts: False for "32". Read it once, outside the hot loop, and enter no context if False.
        scaler: The `torch.amp.GradScaler` of "fp16", else None. It follows Micikevicius et al.,
            "Mixed Precision Training", ICLR 2018.

    A state may be saved wherever the scaler has no unfinished work: before `unscale_` or after
    `update`.
    """

    def __init__(self, name: str | int = "32", device: str | torch.device = "cpu") -> None:
        self.name: Name = _canonical(name)
        self._device = torch.device(device)
        self.device_type = self._device.type
        self.autocasts = self.name != "32"
        self._dtype = {"32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            self.name
        ]
        self.scaler = torch.amp.GradScaler(self.device_type) if self.name == "fp16" else None

    def context(self) -> contextlib.AbstractContextManager[object]:
        """Return a new context manager for the forward pass and the loss.

        It is new each time, so that contexts may nest: a validation within a training step.
        """
        if not self.autocasts:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self._dtype)

    def state_dict(self) -> PrecisionState:
        """The name, and the scale with its growth counter. Reading the scale waits for the GPU."""
        scaler = self.scaler
        state = cast(ScalerState, scaler.state_dict()) if scaler is not None else None
        return {"name": self.name, "scaler": state}

    def load_state_dict(self, state: PrecisionState) -> None:
        """Restore a saved state.

        Raises:
            PrecisionMismatch: The state was saved by a run of another precision, so that no step
                could be repeated to the bit.
        """
        if state["name"] != self.name:
            raise PrecisionMismatch(
                f"The run was saved with precision {state['name']!r} and is now set to "
                f"{self.name!r}. Set precision={state['name']!r} to go on, or load only the "
                "weights."
            )
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(dict(state["scaler"]))
            # It keeps its scale as a tensor from the first loss that it scales, and a run may go on
            # behind that one: at the step of an optimizer.
            self.scaler.scale(torch.zeros((), device=self._device))

    def __repr__(self) -> str:
        return f"Precision({self.name!r}, device={self.device_type!r})"


def _canonical(name: object) -> Name:
    text = str(name).lower() if isinstance(name, (str, int)) and not isinstance(name, bool) else ""
    if text in _ALIASES:
        return _ALIASES[text]
    if text in _ELSEWHERE:
        raise UnknownPrecision(
            f"precision={name!r} is a property of the model, not of the run: {_ELSEWHERE[text]}, "
            "and leave precision='32'."
        )
    raise UnknownPrecision(
        f"precision={name!r} is unknown. Choose '32', 'bf16' (mixed with bfloat16) or 'fp16' "
        f"(mixed with float16, gradients scaled); also taken: {', '.join(sorted(_ALIASES))}."
    )
