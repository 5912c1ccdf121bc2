"""The demonstration: a small convolutional network learns handwritten digits.

The data are scikit-learn's copy of "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak,
UCI Machine Learning Repository, 1998): 1797 pictures of 8 x 8 pixels, ten classes.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer import __version__
from statemachine_trainer.files import path_given
from statemachine_trainer.graph.dot import GraphvizMissing
from statemachine_trainer.graph.graph import Graph
from statemachine_trainer.loops.metrics.log import log
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.observe import MetricsTable, Progress
from statemachine_trainer.run_record import JOURNAL_FILES, RECORD
from statemachine_trainer.trainer import Trainer

NEEDED_ACCURACY: Final = 0.97
BATCH_SIZE: Final = 64
_FILES: Final = ("result.json", "weights.safetensors", "graph.mmd")
_PICTURE: Final = "graph.svg"
_OF_A_RUN: Final = (RECORD, *JOURNAL_FILES, "blackbox-*.ring", "page.json", "earlier-*")
"""What a run before this one may have left."""


class DemoDataMissing(StateMachineError):
    """The package that has the data set is not installed."""


class FolderInUse(StateMachineError):
    """The folder for the run cannot be used."""


@dataclass(frozen=True, slots=True)
class Digits:
    """The data in three parts, each with the classes in the same proportions.

    Attributes:
        train: Pairs of pictures (1, 8, 8) in [0, 1] and classes.
        validation: The same, looked at after each epoch.
        test: The same, looked at once.
    """

    train: TensorDataset
    validation: TensorDataset
    test: TensorDataset


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What a run of the demonstration found.

    Attributes:
        folder: Where the run was written.
        validation_accuracy: After the last epoch.
        test_accuracy: Of the same weights.
        seconds: How long the fit took.
    """

    folder: Path
    validation_accuracy: float
    test_accuracy: float
    seconds: float

    @property
    def good(self) -> bool:
        """Whether the network has learnt what it should."""
        return min(self.validation_accuracy, self.test_accuracy) >= NEEDED_ACCURACY


class DigitNet(nn.Module):
    """Three convolutions with batch norm, dropout, and a linear layer: 26 thousand weights.

    Args:
        steps: Optimizer steps of the whole run, for the learning rate's one cycle (Smith & Topin,
            "Super-convergence", 2018).
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout2d(0.1),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * 2 * 2, 10),
        )

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the logits (batch, 10) of pictures (batch, 1, 8, 8)."""
        logits: torch.Tensor = self.layers(pictures)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return the loss of a batch."""
        pictures, classes = batch
        logits = self(pictures)
        loss = F.cross_entropy(logits, classes, label_smoothing=0.05)
        log("loss", loss, prog_bar=True)
        log("accuracy", _accuracy(logits, classes))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log loss and accuracy of a batch."""
        pictures, classes = batch
        logits = self(pictures)
        log("val_loss", F.cross_entropy(logits, classes))
        log("val_accuracy", _accuracy(logits, classes))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log the accuracy of a batch."""
        pictures, classes = batch
        log("test_accuracy", _accuracy(self(pictures), classes))

    def configure_optimizers(self) -> dict[str, Any]:
        """Adam with decoupled weight decay, its learning rate in one cycle."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def load_digits(seed: int) -> Digits:
    """Load the data: 70 % for training, 15 % for validation, 15 % for the test.

    Raises:
        DemoDataMissing: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DemoDataMissing(
            "The demonstration trains on a data set of scikit-learn, which is not installed. "
            "Install it: pip install 'statemachine-trainer[demo]'"
        ) from error
    pictures, classes = datasets.load_digits(return_X_y=True)
    parts = []
    rest, rest_classes = pictures, classes
    for size in (round(0.15 * len(classes)), round(0.15 * len(classes))):
        rest, part, rest_classes, part_classes = train_test_split(
            rest, rest_classes, test_size=size, stratify=rest_classes, random_state=seed
        )
        parts.append(_dataset(part, part_classes))
    return Digits(_dataset(rest, rest_classes), *parts)


def run_demo(
    *,
    epochs: int = 12,
    seed: int = 0,
    out: Path | None = None,
    quiet: bool = False,
    say: Callable[[str], object] = print,
) -> DemoResult:
    """Train on the digits, and write the run into a folder.

    Args:
        epochs: Passes over the training data.
        seed: Of the split, the weights, the order of the data and the dropout.
        out: The folder; a new one below `runs` unless given.
        quiet: Say nothing but the result.
        say: Called with each line.

    Raises:
        DemoDataMissing: scikit-learn is not installed.
        FolderInUse: The folder is a file, or has something else in it.
    """
    digits = load_digits(seed)
    folder = _prepare(out)
    torch.manual_seed(seed)
    train = DataLoader(digits.train, batch_size=BATCH_SIZE, shuffle=True)
    model = DigitNet(epochs * len(train))
    table = MetricsTable(None if quiet else say)
    trainer = Trainer(
        max_epochs=epochs,
        seed=seed,
        callbacks=[table],
        run=folder,
        progress=False if quiet else Progress(table=False),
    )
    graph = trainer.graph()
    if not quiet:
        _introduce(say, digits, model, epochs)
    with _one_thread():
        began = time.monotonic()
        trainer.fit(model, train, DataLoader(digits.validation, batch_size=256))
        seconds = time.monotonic() - began
        validation = dict(table.records[-1].validation)
        test = trainer.test(model, DataLoader(digits.test, batch_size=256))
    result = DemoResult(folder, validation["val_accuracy"], test["test_accuracy"], seconds)
    settings = {"epochs": epochs, "seed": seed, "batch_size": BATCH_SIZE}
    _write(result, graph.to_mermaid(), model, settings)
    picture = _draw(graph, folder)
    if not quiet:
        say("")
    _conclude(say, result)
    if not quiet:
        say(f"The loop that trained, as a picture: {picture}")
    return result


@contextmanager
def _one_thread() -> Iterator[None]:
    """Train in one thread: more win little for so small a network, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _accuracy(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    return (logits.argmax(1) == classes).float().mean()


def _dataset(pictures: Any, classes: Any) -> TensorDataset:
    scaled = torch.as_tensor(pictures, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return TensorDataset(scaled, torch.as_tensor(classes, dtype=torch.int64))


def _prepare(out: Path | None) -> Path:
    """Make the folder of the run, before any work is done that could be lost for want of it."""
    if out is not None:
        path_given(out)  # no address of something else
    folder = out if out is not None else _new_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(path.name for path in folder.iterdir() if not _is_ours(path.name))
        if others:
            raise FolderInUse(
                f"The folder {folder} has other files in it, such as {others[0]!r}. Name a new or "
                "an empty one with --out."
            )
        (folder / _FILES[0]).unlink(missing_ok=True)  # that of a run before
    except OSError as error:
        raise FolderInUse(
            f"The run cannot be written to {folder}: {error.strerror}. Name another folder with "
            "--out."
        ) from error
    return folder


def _is_ours(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in (*_FILES, _PICTURE, *_OF_A_RUN))


def _new_folder() -> Path:
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    taken = [
        Path("runs") / f"demo-{now}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 99)))
    ]
    return next(path for path in taken if not path.exists())


def _introduce(say: Callable[[str], object], digits: Digits, model: nn.Module, epochs: int) -> None:
    sizes = [len(part) for part in (digits.train, digits.validation, digits.test)]
    weights = sum(p.numel() for p in model.parameters())
    say(
        f"Handwritten digits: {sizes[0]} to train on, {sizes[1]} for validation, {sizes[2]} to test."
    )
    say(f"A convolutional network of {weights} weights, {epochs} epochs.")
    say("")


def _draw(graph: Graph, folder: Path) -> str:
    """Draw the loop into the folder; return where the picture is, or how to get one."""
    try:
        graph.save(folder / _PICTURE)
    except GraphvizMissing:
        (folder / _PICTURE).unlink(missing_ok=True)  # that of a run before
        return f"paste {folder / 'graph.mmd'} into https://mermaid.live"
    return str(folder / _PICTURE)


def _conclude(say: Callable[[str], object], result: DemoResult) -> None:
    say(
        f"Accuracy {result.validation_accuracy:.2%} in validation, {result.test_accuracy:.2%} in "
        f"the test, after {result.seconds:.1f} s of training."
    )
    say(f"Written to {result.folder}: {', '.join(_FILES)}.")
    say(f"More of the run: smt inspect {result.folder}")


def _write(result: DemoResult, graph: str, model: nn.Module, settings: dict[str, int]) -> None:
    folder = result.folder
    (folder / "graph.mmd").write_text(graph, encoding="utf-8")
    weights = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    save_file(weights, folder / "weights.safetensors")
    facts = {
        "validation_accuracy": result.validation_accuracy,
        "test_accuracy": result.test_accuracy,
        "seconds": round(result.seconds, 3),
        "settings": settings,
        "versions": _versions(),
        "device": str(next(model.parameters()).device),
        "threads": torch.get_num_threads(),
    }
    text = json.dumps(facts, indent=2) + "\n"
    (folder / "result.json").write_text(text, encoding="utf-8")


def _versions() -> dict[str, str]:
    return {
        "statemachine_trainer": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scikit-learn": importlib.metadata.version("scikit-learn"),
        "platform": f"{sys.platform} {platform.machine()}",
    }
