"""Switches of torch that are set while a trainer runs, and put back afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, Literal

import torch

from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.settings_checks import flags, one_of, refuse

Deterministic = bool | Literal["warn"] | None
MatmulPrecision = Literal["highest", "high", "medium"]

_CUBLAS: Final = "CUBLAS_WORKSPACE_CONFIG"


class Switches:
    """How torch computes while a trainer runs; None and False leave a switch as it is.

    Args:
        deterministic: Allow deterministic algorithms alone: an operation that has none is an error, or a warning with
            "warn"; False allows all.
        benchmark: Let cuDNN try its algorithms, and take the fastest for each shape.
        detect_anomaly: Have a backward pass that yields NaN name the operation of the forward pass. Slow.
        matmul_precision: How exact products of 32-bit matrices are: "highest", "high" (TF32) or "medium" (bfloat16).

    Attributes:
        given: Those that are set, by name.

    Raises:
        SettingError: One is out of its range, or two contradict each other.
    """

    def __init__(
        self,
        *,
        deterministic: Deterministic = None,
        benchmark: bool | None = None,
        detect_anomaly: bool = False,
        matmul_precision: MatmulPrecision | None = None,
    ) -> None:
        if not (
            deterministic is None or isinstance(deterministic, bool) or deterministic == "warn"
        ):
            refuse("Trainer", "deterministic", deterministic, "use True, 'warn' or False.")
        if benchmark is not None:
            flags("Trainer", benchmark=benchmark)
        flags("Trainer", detect_anomaly=detect_anomaly)
        if matmul_precision is not None:
            one_of("Trainer", "matmul_precision", matmul_precision, ("highest", "high", "medium"))
        if deterministic and benchmark:
            raise SettingError(
                f"Trainer(deterministic={deterministic!r}, benchmark=True): cuDNN would choose its algorithms by their "
                "time, which differs from run to run. Leave one of them out."
            )
        self.deterministic = deterministic
        self.benchmark = False if deterministic else benchmark
        self.detect_anomaly = detect_anomaly
        self.matmul_precision: MatmulPrecision | None = matmul_precision
        given: dict[str, object] = {
            "deterministic": deterministic,
            "benchmark": benchmark,
            "detect_anomaly": detect_anomaly or None,
            "matmul_precision": matmul_precision,
        }
        self.given = {name: value for name, value in given.items() if value is not None}

    @contextmanager
    def on(self) -> Iterator[None]:
        """Context manager around every run: sets the switches, and puts them back as they were."""
        with ExitStack() as stack:
            if self.deterministic is not None:
                stack.enter_context(_deterministic(self.deterministic))
            if self.benchmark is not None:
                stack.enter_context(_benchmark(self.benchmark))
            if self.matmul_precision is not None:
                stack.enter_context(_products(self.matmul_precision))
            if self.detect_anomaly:
                stack.enter_context(torch.autograd.set_detect_anomaly(True))
            yield


@contextmanager
def _deterministic(wanted: bool | Literal["warn"]) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(_CUBLAS)
    if wanted:  # cuBLAS is deterministic with a workspace of a fixed size alone
        os.environ.setdefault(_CUBLAS, ":4096:8")
    torch.use_deterministic_algorithms(bool(wanted), warn_only=wanted == "warn")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        if workspace is None:
            os.environ.pop(_CUBLAS, None)


@contextmanager
def _benchmark(wanted: bool) -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before, cudnn.benchmark = cudnn.benchmark, wanted
    try:
        yield
    finally:
        cudnn.benchmark = before


@contextmanager
def _products(wanted: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(wanted)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
