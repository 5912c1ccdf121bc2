"""Training a part of a model from an epoch on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from statemachine_trainer.loops.recipes.phases import check_names, freeze, thaw
from statemachine_trainer.loops.settings_checks import whole_number
from statemachine_trainer.machine.keywords import HasSettings


class Unfreeze(HasSettings):
    """Keeps parts of a model frozen until an epoch, and trains them from then on.

    Frozen parts get no gradients, and are in evaluation mode: neither their weights nor their statistics of
    batch normalization move. The optimizer may hold their parameters from the beginning.

    Example:
        >>> Unfreeze("backbone", epoch=3)
        Unfreeze('backbone', epoch=3)

    Args:
        *names: Of modules, all of whose parts are meant, and of parameters.
        epoch: Number of the first epoch, from 0, that trains them.

    Raises:
        SettingError: No name, or a number that is none; when the fit begins, a name that the model does not have.
    """

    def __init__(self, *names: str, epoch: int) -> None:
        self.names = names
        self.epoch = whole_number(self, "epoch", epoch, 1)
        whole_number(self, "names", len(names), 1, " Name at least one part of the model.")
        self._frozen: Sequence[str] = ()
        self._asleep: Sequence[str] = ()

    def __repr__(self) -> str:
        return f"Unfreeze({', '.join(map(repr, self.names))}, epoch={self.epoch})"

    def on_exit_fit_start(self, trainer: Any) -> None:
        """Freeze the parts, as a run begins."""
        context = trainer.context
        if context.counts.batch == 0 and not self._frozen:
            check_names(context.model, self.names, repr(self))
            self._frozen, self._asleep = freeze(context.model, self.names)

    def on_epoch_start(self, trainer: Any) -> None:
        """Unfreeze them, once it is time."""
        if trainer.context.counts.epoch >= self.epoch and (self._frozen or self._asleep):
            thaw(trainer.context.model, self._frozen, self._asleep)
            self._frozen, self._asleep = (), ()

    def state_dict(self) -> dict[str, Any]:
        """Return what is frozen."""
        return {"frozen": [*self._frozen], "asleep": [*self._asleep]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._frozen, self._asleep = [*state["frozen"]], [*state["asleep"]]
