"""The state of every global random number generator, written down and put back."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from statemachine_trainer.machine.errors import StateMachineError, level_of_caller

Device = torch.device | str | int


class UnknownGenerator(StateMachineError):
    """A generator whose state can not be written down."""


class RngNotRestored(UserWarning):
    """A device's generator was written down, but this machine has no such device."""


def devices_in_use() -> tuple[torch.device, ...]:
    """The accelerators whose backend somebody has initialised.

    Asking initialises nothing: a process that has not touched CUDA may still fork afterwards.
    """
    found: list[torch.device] = []
    for kind in ("cuda", "xpu"):
        backend = getattr(torch, kind, None)
        if backend is not None and backend.is_initialized():
            found += [torch.device(kind, index) for index in range(backend.device_count())]
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return tuple(found)


def rng_state(devices: Iterable[Device] = ()) -> dict[str, Any]:
    """What every global generator needs to draw the same numbers again.

    Args:
        devices: accelerators to include beside the CPU, for example ``devices_in_use()``; one whose
            backend nobody has initialised has drawn nothing and is left out

    Returns:
        a plain tree: ``python``, ``numpy`` (its legacy global generator), ``torch`` (CPU) and
        ``devices`` by name
    """
    return {
        "python": _python_state(),
        "numpy": _numpy_state(),
        "torch": torch.get_rng_state(),
        "devices": {
            str(device): state
            for device in map(_indexed, devices)
            if (state := _device_state(device)) is not None
        },
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Put every global generator where ``rng_state`` found it.

    A device that this machine does not have is left out with `RngNotRestored`.
    """
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    legacy = (name, keys.numpy().astype(np.uint32), position, has_gauss, cached)
    np.random.set_state(legacy)
    torch.set_rng_state(state["torch"])
    for device, device_state in state["devices"].items():
        _restore_device(torch.device(device), device_state)


@contextmanager
def isolated_rng(devices: Iterable[Device] | None = None) -> Iterator[None]:
    """Run a block that may draw as it likes: afterwards, every generator is as if it had not run.

    Args:
        devices: accelerators to cover beside the CPU; ``None`` for those in use on entry
    """
    put_back = keep_rng(devices)
    try:
        yield
    finally:
        put_back()


def keep_rng(devices: Iterable[Device] | None = None) -> Callable[[], None]:
    """Return a function that puts every global generator where it is now; cheaper than `rng_state`.

    Args:
        devices: Accelerators to cover beside the CPU; None for those in use.
    """
    used = devices_in_use() if devices is None else devices
    on_devices = {device: _device_state(device) for device in map(_indexed, used)}
    python, cpu = random.getstate(), torch.get_rng_state()
    legacy = np.random.get_state(legacy=False)

    def put_back() -> None:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(cpu)
        for device, state in on_devices.items():
            if state is not None:
                _restore_device(device, state)

    return put_back


def _python_state() -> tuple[int, torch.Tensor, float | None]:
    version, words, gauss = random.getstate()
    # By numpy: torch takes several times as long for a tuple of numbers.
    return version, torch.from_numpy(np.array(words, dtype=np.int64)), gauss


def _numpy_state() -> tuple[str, torch.Tensor, int, int, float]:
    state = np.random.get_state(legacy=False)
    assert isinstance(state, dict)
    if state["bit_generator"] != "MT19937":
        raise UnknownGenerator(
            f"numpy's global generator is a {state['bit_generator']}, whose state is of a "
            "kind that is not written down. Leave numpy.random on MT19937 "
            "(numpy.random.set_bit_generator changed it)."
        )
    inner = state["state"]
    keys = torch.from_numpy(inner["key"].astype(np.int64))
    return "MT19937", keys, int(inner["pos"]), int(state["has_gauss"]), float(state["gauss"])


def _indexed(device: Device) -> torch.device:
    """``cuda`` alone means the current device: name it, so that it is restored on the same one."""
    given = torch.device(device)
    if given.type not in ("cuda", "xpu") or given.index is not None:
        return given
    backend = getattr(torch, given.type)
    return torch.device(given.type, backend.current_device() if backend.is_initialized() else 0)


def _device_state(device: torch.device) -> torch.Tensor | None:
    state: torch.Tensor
    if device.type == "mps":
        state = torch.mps.get_rng_state()
        return state
    if device.type in ("cuda", "xpu"):
        backend = getattr(torch, device.type)
        if not backend.is_initialized():
            return None
        state = backend.get_rng_state(device)
        return state
    return None


def _restore_device(device: torch.device, state: torch.Tensor) -> None:
    if device.type == "mps" and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state)
        return
    backend = getattr(torch, device.type, None)
    count = backend.device_count() if device.type in ("cuda", "xpu") and backend is not None else 0
    if backend is not None and (device.index or 0) < count:
        backend.set_rng_state(state, device)  # waits for the backend if nobody has initialised it
        return
    warnings.warn(
        f"The state of the generator of {device} was written down, but there is no {device} here: "
        "what is drawn on an accelerator differs from an uninterrupted run. Resume on a machine "
        "with the same devices.",
        RngNotRestored,
        stacklevel=level_of_caller(),
    )


def seed_everything(seed: int) -> None:
    """Seed the global generators of python, numpy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
