"""What Dynamo says, in the words of the code that it says it of."""

from __future__ import annotations

import re
from types import FunctionType
from typing import Any, Final

from torch import nn

_PLAIN: Final = {
    "data-dependent": "A condition, or a shape, depends on a number read from a tensor",
    "Tensor.item": "A condition, or a number that is kept, depends on a number read from a tensor",
    "function marked as skipped": "It calls a function that the compiler does not read",
    "Unsupported method call": "It calls a method that the compiler does not know",
    "Module-level backwards hooks": "A module has a hook on its backward pass",
    "torch.compiler.disable()": "It calls a function that is switched off for the compiler",
    "Missing tp_iternext": "It calls next() on an iterator, which moves on",
    "Failed to convert args/kwargs to proxy": "It hands an object that is no tensor to an operation",
    "returning intermediate with requires_grad_()": (
        "It calls requires_grad_() on a tensor that it computes with"
    ),
    "Unsafe side effect": "A function that is differentiated for itself changes something outside",
    "torch.* op returned non-Tensor": "It reads from torch what is no tensor",
}
"""Parts of what Dynamo says, and what is said in their place."""

_NAMES: Final = (
    (r"L\['training'\]\.__self__", "self"),
    (r"L\['split'\]", "batch"),
    (r"L\['(\w+)'\]", r"\1"),
    (r"G\['__import_[^']*'\]\.", ""),
    (r"G\['(\w+)'\]", r"\1"),
    (r"\._(?:modules|parameters|buffers)\['(\w+)'\]", r".\1"),
    (r"\._(?:modules|parameters|buffers)\['?(\w+)'?\]", r"[\1]"),
    (r"___\w+\((.*?)\)", r"\1"),
)
"""How Dynamo writes names, and how the code does."""


def reason(error: BaseException) -> str:
    """Say what Dynamo cannot trace, and the innermost line of the user's code."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = lines[0] if lines else type(error).__name__
    plain = next((words for part, words in _PLAIN.items() if part in str(error)), None)
    explained = next((x for x in lines if x.startswith("Explanation:")), "")
    places = [line for line in lines if line.startswith("File ")]
    own = [place for place in places if "/torch/" not in place]
    where = f", in {(own or places)[-1].removeprefix('File ')}" if places else ""
    why = "" if plain else explained.removeprefix("Explanation:").strip().rstrip(".")
    return f"{(plain or told).rstrip('.')}{where}{'. ' if why else ''}{why}"


def condition(text: str) -> str:
    """Say which test of a captured step does not hold, and where the step reads what is tested."""
    test, _, comment = text.partition("#")
    for written, meant in _NAMES:
        test = re.sub(written, meant, test)
    place = re.search(r"([^#\s][^#]*:\d+ in [\w<>]+)", comment)
    return f"`{test.strip()}`" + (f", at {place[1]}" if place else "")


def place_of_step(model: nn.Module) -> str:
    """Return where the training step of a model stands; empty if that is not known."""
    step: Any = getattr(type(model), "training_step", None)
    if not isinstance(step, FunctionType):
        return ""
    return f"{step.__code__.co_filename}:{step.__code__.co_firstlineno}"
