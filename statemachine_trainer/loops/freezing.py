"""Parts of a model that are left as they are for a while."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from statemachine_trainer.loops.errors import SettingError
from statemachine_trainer.machine.errors import suggest

Freeze = Sequence[str]
"""Names of modules and parameters."""


def freeze(model: nn.Module, names: Freeze) -> tuple[list[str], list[str]]:
    """Switch off gradients, and put modules into evaluation mode: nothing of them moves.

    Args:
        model: The model.
        names: Of modules, all of whose parts are meant, and of parameters.

    Returns:
        The names of the parameters and modules that were changed by it, for `thaw`.
    """
    frozen = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and _within(name, names)
    ]
    asleep = [
        name for name, module in model.named_modules() if module.training and _within(name, names)
    ]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    for name in asleep:
        model.get_submodule(name).training = False
    return frozen, asleep


def thaw(model: nn.Module, frozen: Sequence[str], asleep: Sequence[str]) -> None:
    """Undo what `freeze` did."""
    for name in frozen:
        model.get_parameter(name).requires_grad_(True)
    for name in asleep:
        model.get_submodule(name).training = True


def check_names(model: nn.Module, names: Freeze, where: str) -> None:
    """Refuse names that the model does not have.

    Raises:
        SettingError: It has none of that name.
    """
    modules = [name for name, _ in model.named_modules() if name]
    known = [*modules, *(name for name, _ in model.named_parameters())]
    for name in names:
        if name not in known:
            raise SettingError(
                f"{where} is to freeze {name!r}, but {type(model).__name__} has no module or "
                f"parameter of that name. {suggest(name, known)}"
            )


def _within(name: str, names: Freeze) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in names)
