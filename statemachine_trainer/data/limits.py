"""How many batches of a pass are used: a count, or a fraction of the whole."""

from __future__ import annotations

from statemachine_trainer.data.errors import BadLimit


def limit_batches(limit: int | float | None, length: int | None, name: str = "train") -> int | None:
    """The number of batches to use of each pass over a loader.

    Args:
        limit: ``None`` for all; an ``int`` for at most so many batches, 0 for none; a ``float``
            from 0.0 to 1.0 for this fraction of them, rounded down. So ``1`` is one batch, and
            ``1.0`` is all of them.
        length: batches in a pass, ``None`` if unknown
        name: the loader's name, for the error

    Returns:
        the number of batches, or ``None`` for as many as there are (the length is unknown)

    Raises:
        BadLimit: for a negative limit, a bool, a fraction above 1 or of an unknown length, and for
            a fraction that leaves no batch

    >>> limit_batches(1, 40), limit_batches(1.0, 40), limit_batches(0.25, 10)
    (1, 40, 2)
    """
    if limit is None:
        return length
    if isinstance(limit, bool) or not isinstance(limit, (int, float)):
        raise BadLimit(
            f"The limit on the batches of {name!r} is {limit!r}. Give an int (a count of batches), "
            "a float from 0.0 to 1.0 (a fraction of them) or None (all of them)."
        )
    if isinstance(limit, int):
        return _count(limit, length, name)
    return _fraction(limit, length, name)


def describe_limit(limit: int | float | None) -> str:
    """How a limit is understood, in words: the place where 1 and 1.0 part.

    >>> describe_limit(1), describe_limit(1.0)
    ('1 batch (int: a count)', 'all batches (float: 100% of them)')
    >>> describe_limit(0.1)
    '10% of the batches (float: a fraction)'
    """
    if limit is None:
        return "all batches"
    if isinstance(limit, int):
        return f"{limit} {'batch' if limit == 1 else 'batches'} (int: a count)"
    if limit == 1.0:
        return "all batches (float: 100% of them)"
    return f"{100 * limit:g}% of the batches (float: a fraction)"


def _count(limit: int, length: int | None, name: str) -> int:
    if limit < 0:
        raise BadLimit(
            f"The limit on the batches of {name!r} is {limit}, taken as a count (an int), which "
            "can not be negative. Use None for all batches, 0 for none."
        )
    return limit if length is None else min(limit, length)


def _fraction(limit: float, length: int | None, name: str) -> int | None:
    if not 0.0 <= limit <= 1.0:
        raise BadLimit(
            f"The limit on the batches of {name!r} is {limit}, taken as a fraction (a float), "
            "which must lie between 0.0 and 1.0. "
            f"For a count of batches give an int{_as_int(limit)}."
        )
    if limit == 1.0:
        return length
    if limit == 0.0:
        return 0
    if length is None:
        raise BadLimit(
            f"The limit on the batches of {name!r} is {limit}, taken as a fraction (a float), but "
            "the loader has no length to take a fraction of. Give a count of batches (an int)."
        )
    count = int(length * limit)
    if count == 0 and length > 0:
        raise BadLimit(
            f"The limit on the batches of {name!r} is {limit}, taken as a fraction (a float): "
            f"{limit} of {length} {'batch' if length == 1 else 'batches'} leaves none. Give a "
            "count (an int), a larger fraction, or 0 to use no batch on purpose."
        )
    return count


def _as_int(limit: float) -> str:
    return f", {int(limit)}" if limit == limit and 1.0 < limit < 1e9 else ""
