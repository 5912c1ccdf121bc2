"""Draw the pictures of the documentation: the graph, its heat, k-fold, a swap.

They need pygraphviz and change with its version, so that no test compares them; `graph.mmd` and
`swap.txt` are text, and `tests/graph/test_pictures.py` holds them true.

Usage: python tools/draw_pictures.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer.graph.drawable import Drawable
from statemachine_trainer.graph.graph import Graph
from statemachine_trainer.loops import FitLoop, KFoldLoop, SAMLoop
from statemachine_trainer.trainer import Trainer

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"


def heat_of_digits() -> dict[str, float]:
    """Where the time goes when a small perceptron learns handwritten digits: measured, each time."""
    digits = load_digits()
    inputs = torch.tensor(digits.data, dtype=torch.float32) / 16
    data = TensorDataset(inputs, torch.tensor(digits.target))
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    trainer = Trainer(max_epochs=3, progress=False)
    loader = DataLoader(data, batch_size=32, shuffle=True)
    with trainer.profile() as profile:
        trainer.fit(
            model,
            loader,
            DataLoader(data, batch_size=64),
            loss=nn.functional.cross_entropy,
            optimizer=torch.optim.Adam,
        )
    return profile.heat()


def default_graph() -> Graph:
    """The graph of the default loop."""
    return Trainer().graph()


def swapped(path: str | None = None) -> Drawable:
    """What changes if `SAMLoop` takes the place of `OptimizerLoop`; in one loop alone, if given."""
    trainer = Trainer()
    trainer.loop.replace(optimizer=SAMLoop(rho=0.05))
    before, after = default_graph(), trainer.graph()
    return before.diff(after) if path is None else before.open(path).diff(after.open(path))


def draw(folder: Path) -> None:
    """Write all pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = default_graph()
    graph.save(folder / "graph.svg")
    graph.save(folder / "graph.mmd")
    for theme in ("light", "dark"):
        graph.save(folder / f"graph-{theme}.png", theme=theme, pixels_per_inch=96)
    graph.save(folder / "heat.svg", heat=heat_of_digits())
    folds = Trainer(KFoldLoop(folds=5, fit=FitLoop(max_epochs=3))).graph()
    folds.collapse(2).save(folder / "kfold.svg")
    swapped("batch.optimizer").save(folder / "swap.svg")
    swapped("batch.optimizer").save(folder / "swap.txt")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
