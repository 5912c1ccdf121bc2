"""Pictures as trackers take them: arrays of bytes, in rows and columns, with colours last."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch

from statemachine_trainer.loops.loop_errors import SettingError

_COLOURS = (1, 3, 4)


def array_of_image(image: object) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return an image as bytes of shape (height, width, colours), with 1, 3 or 4 colours.

    Args:
        image: A tensor of shape (colours, height, width) or (height, width), an array of shape
            (height, width, colours) or (height, width), or an image of PIL. Bytes, or fractions from 0 to 1.

    Raises:
        SettingError: It is something else, or has values out of range.
    """
    if isinstance(image, torch.Tensor):
        plain = image.detach().cpu().clone()  # torch lets none be resized that numpy has seen
        if plain.dim() == 3:
            plain = plain.permute(1, 2, 0)
        values = plain.float().numpy() if plain.is_floating_point() else plain.numpy()
    else:
        values = np.asarray(image)
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] not in _COLOURS or not values.size:
        raise SettingError(
            f"An image of shape {tuple(getattr(image, 'shape', ()))} is none. Give a tensor of shape (3, height, "
            "width) or (height, width), or an array of shape (height, width, 3)."
        )
    if values.dtype == np.bool_:
        values = values.astype(np.float32)
    fractions = values.dtype.kind == "f"
    most = 1 if fractions else 255
    if values.dtype.kind not in "fiu" or not (values.min() >= 0 and values.max() <= most):
        raise SettingError(
            "An image has values from 0 to 1, or whole numbers from 0 to 255. Scale it: (image - image.min()) / "
            "(image.max() - image.min())."
        )
    return (values * 255).round().astype(np.uint8) if fractions else values.astype(np.uint8)


def array_of_figure(figure: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Draw a figure of matplotlib, and return it as an image.

    Raises:
        SettingError: It is none.
    """
    if not hasattr(figure, "savefig") or not hasattr(figure, "canvas"):
        raise SettingError(f"{figure!r} is no figure of matplotlib: plt.figure(), or ax.figure.")
    canvas = import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def array_of_numbers(values: object) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return numbers in a row, for a histogram.

    Raises:
        SettingError: There are none, or some are not finite.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().clone().numpy()
    try:
        found = np.asarray(values, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        found = np.empty(0)
    if not found.size or not np.isfinite(found).all():
        raise SettingError(
            "A histogram needs numbers, at least one, and none that is NaN or infinite."
        )
    return found
