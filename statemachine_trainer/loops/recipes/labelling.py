"""Who labels the samples that were asked for: the data set itself, a function, or a person."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from statemachine_trainer.files import path_given
from statemachine_trainer.loops.loop_errors import TrainingError

Labeller = Callable[[Sequence[int], Any], Sequence[Any] | None]
"""Called with the indices that were asked for and the data set; None: not yet, ask again later."""


class BadLabels(TrainingError):
    """The labels that came are not those that were asked for."""


def hidden_labels(indices: Sequence[int], dataset: Any) -> list[Any]:
    """Read the labels that the data set has had all along: the second part of its samples."""
    return [_plain(dataset[i][1]) for i in indices]


def _plain(label: Any) -> Any:
    """A class as a Python number: thousands of them are to be written down."""
    small = isinstance(label, torch.Tensor) and label.dim() == 0 and not label.is_floating_point()
    return label.item() if small else label


class LabelFolder:
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

        Raises:
            BadLabels: There are labels for samples that were not asked for.
        """
        answer = self.folder / f"answer-{done:06d}.json"
        if not answer.exists():
            self._ask(indices, done)
            return None
        try:
            labels = {int(index): label for index, label in json.loads(answer.read_text()).items()}
        except (ValueError, AttributeError) as error:
            raise BadLabels(
                f"{str(answer)!r} cannot be read ({error}). It has to be JSON: "
                '{"<index>": label, ...}.'
            ) from None
        if strange := sorted(set(labels) - set(indices)):
            raise BadLabels(
                f"{str(answer)!r} has a label for {strange[0]}, which was not asked for. Is it the "
                "answer of another run? Move it away, or use another folder."
            )
        return [labels[i] for i in indices] if set(labels) == set(indices) else None

    def _ask(self, indices: Sequence[int], done: int) -> None:
        question = self.folder / f"question-{done:06d}.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = question.with_suffix(".tmp")
        draft.write_text(json.dumps({"indices": list(indices)}) + "\n")
        draft.replace(question)


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
