"""Predictions in a folder: written batch by batch, so that memory holds a few, and read again in their order."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, overload

import torch

from statemachine_trainer.files import path_given, read_json, shown
from statemachine_trainer.loops.loop_errors import SettingError, TrainingError
from statemachine_trainer.parallel.ranks import Ranks

BATCHES_PER_FILE: Final = 16
_INDEX: Final = "predictions.json"
_LONGEST_INDEX: Final = 10_000_000
_PLAIN: Final = (bool, int, float, complex, str, bytes, type(None))


class UnwritablePrediction(TrainingError):
    """A prediction holds something that no file can hold without pickle."""


class NoPredictions(TrainingError):
    """A folder holds no predictions, or not all of them."""


class Predictions(Sequence[Any]):
    """Predictions by batch, read from a folder as they are asked for; one file is in memory at a time.

    What `trainer.predict(model, loader, to="folder")` returns. With several loaders it is the sequence of all batches
    of the first one, then those of the second; `of` has those of one.

    Args:
        folder: Where they were written.

    Attributes:
        folder: Where they are.
        loaders: How many batches there are of each loader, by its name.

    Raises:
        NoPredictions: There are none, or the prediction did not come to its end.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = path_given(folder)
        try:
            index = read_json(self.folder / _INDEX, _LONGEST_INDEX)
            self.loaders: dict[str, int] = {one["name"]: one["batches"] for one in index["loaders"]}
            self._size: int = index["batches_per_file"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NoPredictions(
                f"{shown(self.folder)} holds no predictions as a whole: there is no {_INDEX} that can be read. It is "
                "written last, so the prediction may have been interrupted. Predict again."
            ) from error
        self._loaded: tuple[Path | None, list[Any]] = (None, [])

    def __repr__(self) -> str:
        return f"<Predictions of {len(self)} batches in {shown(self.folder)!r}>"

    def __len__(self) -> int:
        return sum(self.loaders.values())

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[one] for one in range(len(self))[index]]
        place = range(len(self))[index]
        for number, count in enumerate(self.loaders.values()):
            if place < count:
                return self._read(number, place)
            place -= count
        raise IndexError(index)

    def of(self, loader: str) -> Iterator[Any]:
        """Yield the predictions of one loader, in their order.

        Raises:
            NoPredictions: There is no loader of this name.
        """
        if loader not in self.loaders:
            raise NoPredictions(
                f"There are no predictions of {loader!r}; there are those of {', '.join(map(repr, self.loaders))}."
            )
        number = [*self.loaders].index(loader)
        for place in range(self.loaders[loader]):
            yield self._read(number, place)

    def _read(self, loader: int, place: int) -> Any:
        file = self.folder / _file_name(loader, place // self._size)
        if self._loaded[0] != file:
            try:
                self._loaded = (file, torch.load(file, map_location="cpu", weights_only=True))
            except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                raise NoPredictions(
                    f"{shown(file)} is missing or damaged ({type(error).__name__}). Predict again."
                ) from error
        return self._loaded[1][place % self._size]


class PredictionWriter:
    """Writes predictions into a folder, in their order. Each file appears as a whole, and the index last.

    Args:
        folder: Where; made if need be. With several ranks each writes into a folder in it, "rank-0" and so on.

    Raises:
        SettingError: The folder holds predictions already, or cannot be made.
        NoPath: It is no path.
    """

    def __init__(self, folder: str | Path) -> None:
        ranks = Ranks.here()
        self.folder = path_given(folder)
        if ranks is not None:
            self.folder /= f"rank-{ranks.rank}"
        if (self.folder / _INDEX).exists():
            raise SettingError(
                f"predict(to={os.fspath(folder)!r}): this folder holds predictions already. Name another one, or "
                "remove it."
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingError(
                f"predict(to={os.fspath(folder)!r}): this folder cannot be made ({error.strerror or error}). Name "
                "another one."
            ) from error
        self._waiting: list[Any] = []
        self._counts: list[int] = []

    def add(self, trainer: Any) -> None:
        """Take the prediction of the batch in flight; a receiver of `predict_step:exit`."""
        context = trainer.context
        while len(self._counts) <= context.dataloader_idx:
            self._write()
            self._counts.append(0)
        self._counts[-1] += 1
        self._waiting.append(_writable(context.output, f"of batch {context.batch_idx}"))
        if len(self._waiting) == BATCHES_PER_FILE:
            self._write()

    def finish(self, names: Sequence[str]) -> Predictions:
        """Write the rest and the index; return what was written.

        Args:
            names: Those of the loaders.
        """
        self._write()
        counts = [*self._counts, *[0] * (len(names) - len(self._counts))]
        loaders = [
            {"name": name.removeprefix("predict/"), "batches": count}
            for name, count in zip(names, counts, strict=True)
        ]
        index = {"batches_per_file": BATCHES_PER_FILE, "loaders": loaders}

        def write(path: Path) -> None:
            path.write_text(json.dumps(index), encoding="utf-8")

        _appear(self.folder / _INDEX, write)
        return Predictions(self.folder)

    def _write(self) -> None:
        if not self._waiting:
            return
        predictions, self._waiting = self._waiting, []
        number = (self._counts[-1] - 1) // BATCHES_PER_FILE
        path = self.folder / _file_name(len(self._counts) - 1, number)
        _appear(path, lambda place: torch.save(predictions, place))


def _file_name(loader: int, number: int) -> str:
    return f"loader-{loader}-{number:06}.pt"


def _appear(path: Path, write: Any) -> None:
    """Write a file such that it is there as a whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _writable(tree: Any, where: str, path: str = "prediction") -> Any:
    """Return a prediction as a file holds it: tensors on the CPU with memory of their own, mappings as dicts.

    Raises:
        UnwritablePrediction: It holds something else.
    """
    if type(tree) in (torch.Tensor, torch.nn.Parameter):
        # A copy, because a file would hold all that a view is a part of.
        return tree.detach().to("cpu", copy=True).clone()
    if isinstance(tree, Mapping):
        return {
            _writable(key, where, f"a key of {path}"): _writable(one, where, f"{path}[{key!r}]")
            for key, one in tree.items()
        }
    if type(tree) in (list, tuple):
        return type(tree)(
            _writable(one, where, f"{path}[{place}]") for place, one in enumerate(tree)
        )
    if type(tree) in _PLAIN:
        return tree
    raise UnwritablePrediction(
        f"The prediction {where} has a {type(tree).__name__} at {path}, which no file holds without pickle. Return "
        "tensors, numbers and texts, and lists, tuples and dicts of them; of an array make torch.from_numpy(array)."
    )
