"""The metrics of a run by name: a name that nobody has logged is answered with the nearest ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from statemachine_trainer.loops.loop_errors import UnknownMetric
from statemachine_trainer.machine.errors import suggest


class NamedValues(dict[str, float]):
    """A dict of metrics. Its KeyError offers the nearest names."""

    def __missing__(self, name: str) -> NoReturn:
        raise UnknownMetric(f"No metric {name!r} is known. {near_metric(name, self)}")


def near_metric(name: str, known: Iterable[str], *, validated: bool = True) -> str:
    """Return what may have been meant by the name of a metric that was not logged.

    Args:
        name: The name.
        known: The names that were logged.
        validated: Whether the fit has validation data.
    """
    known = list(known)
    if not validated and f"{name}".startswith("val"):
        return "The fit has no validation data: fit(model, train, validation)."
    if not known:
        return "Nothing was logged. Log it in a step: self.log('name', value)."
    return suggest(name, known)
