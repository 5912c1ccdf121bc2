"""Labellers: the data set itself, a function, or a person."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from statemachine_trainer.files import path_given
from statemachine_trainer.loops.loop_errors import TrainingError
from statemachine_trainer.machine.keywords import HasSettings

_log = logging.getLogger(__name__)

_SHOWN = 10
"""Missing labels that are named."""

Labeller = Callable[[Sequence[int], Any], Sequence[Any] | Mapping[int, Any] | None]
"""Called with the indices that were asked for and the data set. It returns their labels in the same
order, or by index; None: not yet, ask again later."""


class BadLabels(TrainingError):
    """The labels that came are not those that were asked for."""


def in_order(found: object, indices: Sequence[int]) -> list[Any]:
    """Return the labels of samples in the order in which these were asked for.

    Args:
        found: What a labeller returned: labels in order, or a mapping of indices to labels.
        indices: The samples.

    Raises:
        BadLabels: It is neither, or not one label for each sample.
    """
    if isinstance(found, Mapping):
        wrong = [*({*found} ^ {*indices})]
        if wrong:
            here = "was not asked for" if wrong[0] in found else "is missing"
            raise BadLabels(
                f"The labeller returned a dict in which {wrong[0]!r} {here}. Return {{index: label}} "
                "with the indices asked for, all of them, or None for none yet."
            )
        found = [found[index] for index in indices]
    if not isinstance(found, Iterable) or isinstance(found, str | bytes | Set):
        raise BadLabels(
            f"The labeller returned a {type(found).__name__}. Return a list with a label for each sample "
            "asked for, in their order, or {index: label}, or None for none yet."
        )
    labels = [_plain(label) for label in found]
    if len(labels) != len(indices):
        raise BadLabels(
            f"The labeller returned {len(labels)} labels for {len(indices)} samples. Return "
            "one for each, or None for none yet."
        )
    return labels


def check_labels(
    labels: Sequence[Any],
    names: Sequence[str],
    *,
    classes: int | None = None,
    like: Sequence[Any] = (),
) -> None:
    """Refuse labels that a model cannot be trained on, before they are part of the run.

    Args:
        labels: The labels.
        names: Where each is, for the error: of a file and a key in it, or of a sample.
        classes: The number of classes that the model tells apart; None if that is not known.
        like: Labels that are there already, which say of what type labels are.

    Raises:
        BadLabels: One is none, a bool, not finite, a class that there is not, or of another type
            than the others.
    """
    first: tuple[str, Any] | None = ("an earlier label", like[0]) if like else None
    for label, name in zip(labels, names, strict=True):
        if wrong := _what_is_wrong(label, classes):
            raise BadLabels(f"The label of {name} is {label!r}: {wrong}")
        if first is None:
            first = (name, label)
        elif _kind(label) != _kind(first[1]):
            raise BadLabels(
                f"The label of {name} is {label!r}, of another type than {first[0]}, {first[1]!r}. Give "
                "all labels in one form."
            )


def _what_is_wrong(label: Any, classes: int | None) -> str:
    if label is None:
        return "it has none. Leave the sample out as long as it has no label."
    if isinstance(label, bool):
        numbers = {None: "", 1: ", 0 or 1", 2: ", 0 or 1"}
        return f"write the number of the class{numbers.get(classes, f', from 0 to {(classes or 0) - 1}')}."
    if isinstance(label, float) and not math.isfinite(label):
        return "a label is a finite number."
    if classes is None or classes < 2:
        return ""
    if isinstance(label, int) and not 0 <= label < classes:
        return f"the model tells {classes} classes apart, 0 to {classes - 1}."
    if isinstance(label, str | float):
        return f"write the number of the class, from 0 to {classes - 1}."
    return ""


def _kind(label: Any) -> object:
    if isinstance(label, int | float):
        return "number"
    if isinstance(label, list | tuple):
        return len(label)
    if isinstance(label, torch.Tensor):
        return tuple(label.shape)
    return type(label)


def hidden_labels(indices: Sequence[int], dataset: Any) -> list[Any]:
    """Read the labels that the data set has had all along: the second part of its samples."""
    return [_plain(dataset[i][1]) for i in indices]


def _plain(label: Any) -> Any:
    """Convert a class to a Python number: thousands of them are saved."""
    small = isinstance(label, torch.Tensor) and label.dim() == 0 and not label.is_floating_point()
    return label.item() if small else label


class LabelFolder(HasSettings):
    """A person labels: questions are written to a folder, and answers are read from it.

    The question is a file `question-<samples labelled so far>.json` with the list of the `indices`
    asked for. The answer belongs beside it as `answer-<the same>.json`: `{"<index>": label, ...}`.
    Until it is there and has all of them, the machine rests: `fit` and `run` return, the process
    may end, and the run goes on when it is called again.

    Args:
        folder: Where; made when the first question is asked.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = path_given(folder)

    def __call__(self, indices: Sequence[int], dataset: Any, done: int = 0) -> list[Any] | None:
        """Return the labels if they have come; else see to it that the question is there.

        The log tells which labels an answer lacks.

        Args:
            indices: The samples that are asked about.
            dataset: Not looked at.
            done: Samples labelled before.

        Raises:
            BadLabels: The file is no answer: it cannot be read, has a key twice, or has labels for
                samples that were not asked for.
        """
        answer = self.answer(done)
        if not answer.exists():
            self._ask(indices, done)
            return None
        found = self._read(answer)
        if strange := sorted(set(found) - set(indices)):
            raise BadLabels(
                f"{str(answer)!r} has a label for {strange[0]}, which was not asked for. Is it the "
                "answer of another run? Move it away, or use another folder."
            )
        if missing := [str(one) for one in indices if one not in found]:
            _log.warning(
                "%s has %d of %d labels and is not read before it has all: %s %s missing.",
                answer,
                len(found),
                len(indices),
                ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else ""),
                "is" if len(missing) == 1 else "are",
            )
            return None
        return [found[i] for i in indices]

    def answer(self, done: int) -> Path:
        """Return the file for the answer to the question that was asked after `done` labels."""
        return self.folder / f"answer-{done:06d}.json"

    def question(self, done: int) -> Path:
        """Return the file with the question that is asked after `done` labels."""
        return self.folder / f"question-{done:06d}.json"

    def _read(self, answer: Path) -> dict[int, Any]:
        try:
            pairs = json.loads(answer.read_text(encoding="utf-8"), object_pairs_hook=_Pairs)
        except (ValueError, OSError, RecursionError) as error:
            raise _unreadable(answer, str(error)) from None
        if not isinstance(pairs, _Pairs):
            raise _unreadable(answer, f"it holds a {type(pairs).__name__}")
        found: dict[int, Any] = {}
        for key, label in pairs:
            if not key.isascii() or not key.isdigit():
                raise _unreadable(answer, f"its key {key!r} is no index")
            if int(key) in found:
                raise BadLabels(
                    f"{str(answer)!r} has two labels for {int(key)}: {found[int(key)]!r} and {label!r}. "
                    "Keep the right one."
                )
            if isinstance(label, _Pairs):
                raise BadLabels(
                    f"The label of {int(key)} in {str(answer)!r} is an object. Write a number, or a list."
                )
            found[int(key)] = label
        return found

    def _ask(self, indices: Sequence[int], done: int) -> None:
        question = self.question(done)
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = question.with_suffix(".tmp")
        draft.write_text(json.dumps({"indices": list(indices)}) + "\n")
        draft.replace(question)


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON, with every key that it has."""


def _unreadable(answer: Path, why: str) -> BadLabels:
    return BadLabels(
        f"{str(answer)!r} cannot be read as an answer ({why}). It has to be JSON: "
        '{"<index>": label, ...}.'
    )


class Labelled(Dataset[Any]):
    """Some samples of a data set, each with the label that it got.

    Args:
        dataset: Its samples are inputs, or pairs whose second part is not looked at.
        indices: Which ones.
        labels: Their labels, in the same order.
    """

    def __init__(self, dataset: Any, indices: Sequence[int], labels: Sequence[Any]) -> None:
        self.dataset = dataset
        self.indices = [*indices]
        self.labels = [*labels]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        sample = self.dataset[self.indices[number]]
        pair = isinstance(sample, tuple | list) and len(sample) == 2
        return (sample[0] if pair else sample), self.labels[number]
