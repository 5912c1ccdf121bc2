"""The settings of the compiled step, and what it takes note of in a run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Final, Literal

import torch

from statemachine_trainer.loops.compiled import private
from statemachine_trainer.loops.compiled.capture import LogRecorder
from statemachine_trainer.loops.compiled.compiled_errors import NotCompiled
from statemachine_trainer.loops.compiled.compiling import Backend
from statemachine_trainer.loops.compiled.fused import FusedStep
from statemachine_trainer.loops.compiled.readers import Readers
from statemachine_trainer.loops.compiled.wording import place_of_step
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.optimizer import OptimizerLoop
from statemachine_trainer.loops.settings_checks import flags, refuse, whole_number
from statemachine_trainer.loops.stepping import NonFinite
from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.machine.fields import RUN, field

Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]

_MODES: Final = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


class CompilingLoop(OptimizerLoop):
    """Base of `CompiledStep`, which has the states; see there."""

    eager: str | None = field(None, scope=RUN)
    """Why nothing is compiled any more."""

    apart: list[int] = field(factory=list, scope=RUN)
    """The optimizers whose step is not part of the compiled call."""

    graphs: list[str] = field(factory=list, scope=RUN)
    """What was captured in this run, also by the processes before this one."""

    again: int = field(0, scope=RUN)
    """How often a graph was captured that was known."""

    compared: list[str] = field(factory=list, scope=RUN)
    """The programs that were compared with the step without the compiler."""

    difference: float | None = field(None, scope=RUN)
    """The largest difference found so, relative to the change of a step; None before the first."""

    settings: dict[int, list[str]] = field(factory=dict, scope=RUN)
    """The settings that the groups of each optimizer have had."""

    def __init__(
        self,
        *,
        accumulate: int | Mapping[int, int] = 1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        nonfinite_loss: NonFinite = "ignore",
        mode: Mode = "default",
        options: Mapping[str, Any] | None = None,
        backend: Backend = "inductor",
        same_random: bool = True,
        most_graphs: int = 16,
        verify: int | Literal["first"] | None = "first",
        differs: Literal["warn", "raise"] = "warn",
    ) -> None:
        super().__init__(
            accumulate=accumulate,
            clip_norm=clip_norm,
            clip_value=clip_value,
            nonfinite_loss=nonfinite_loss,
        )
        if mode not in _MODES:
            raise SettingError(f"CompiledStep(mode={mode!r}): use one of {', '.join(_MODES)}.")
        self.mode = mode
        if backend not in ("inductor", "eager"):
            raise SettingError(f"CompiledStep(backend={backend!r}): use 'inductor' or 'eager'.")
        self.backend: Backend = backend
        if verify is not None and verify != "first" and not _is_count(verify):
            raise SettingError(
                f"CompiledStep(verify={verify!r}): use a whole number from 1, 'first' or None."
            )
        if differs not in ("warn", "raise"):
            raise SettingError(f"CompiledStep(differs={differs!r}): use 'warn' or 'raise'.")
        self.verify = verify
        self._often = isinstance(verify, int)
        self.differs = differs
        if not isinstance(options or {}, Mapping):
            refuse(self, "options", options, "give a dict, as for torch.compile.")
        flags(self, same_random=same_random)
        self.options = dict(options or {})
        self.same_random = same_random
        self.most_graphs = whole_number(self, "most_graphs", most_graphs, 1)
        self._fused: dict[int, FusedStep] = {}
        self._recorder = LogRecorder()
        self._readers = Readers()

    def __getstate__(self) -> dict[str, Any]:
        """Copies compile for themselves."""
        return {
            **super().__getstate__(),
            "_fused": {},
            "_readers": Readers(),
            "_wrapped": (None, None),
        }

    # -- going without ---------------------------------------------------------------------------

    def _give_up(self, why: str) -> None:
        self.eager = why
        self._fused.clear()
        place = "" if ".py" in why else place_of_step(self.context.model)
        where = f" (the step: {place})" if place else ""
        warn(f"CompiledStep does as OptimizerLoop from here on: {why}{where}.")

    def _set_apart(self, index: int, why: str) -> None:
        self.apart.append(index)
        warn(f"{why}.")


def warn(text: str) -> None:
    """Tell that something is not compiled, of the line that runs the trainer."""
    warnings.warn(" ".join(text.split()), NotCompiled, stacklevel=level_of_caller())


def settings_of(mode: Mode, device: torch.device) -> dict[str, Any]:
    """Return the settings of the compiler for a mode."""
    # What the settings of the user leave open. On the CPU the calls between kernels are compiled
    # too; shapes were looked at already.
    settings: dict[str, Any] = {"size_asserts": False, "cpp_wrapper": device.type == "cpu"}
    if mode != "default":
        settings.update(private.settings_of_mode(mode))
    return settings


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
