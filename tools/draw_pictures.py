"""Draw the pictures of the documentation: the graph, its heat, k-fold, a swap.

They need pygraphviz and change with its version, so that no test compares them; `graph.mmd` and
`swap.txt` are text, and `tests/machine/test_pictures.py` holds them true.

Usage: python tools/draw_pictures.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

from statemachine_trainer.loops import FitLoop, KFoldLoop, SAMLoop
from statemachine_trainer.machine.graph import Graph
from statemachine_trainer.machine.picture import Drawable
from statemachine_trainer.trainer import Trainer

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"
# An example. A run gives its own: `trainer.profile().heat()`.
HEAT = {
    "fit.epoch.fetch": 0.35,
    "fit.epoch.batch.optimizer.forward": 0.6,
    "fit.epoch.batch.optimizer.backward": 1.0,
    "fit.epoch.batch.optimizer.optimizer_step": 0.25,
}


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
    graph.save(folder / "heat.svg", heat=HEAT, running="fit.epoch.batch.batch_end")
    folds = Trainer(KFoldLoop(folds=5, fit=FitLoop(max_epochs=3))).graph()
    folds.collapse(2).save(folder / "kfold.svg")
    swapped("batch.optimizer").save(folder / "swap.svg")
    swapped("batch.optimizer").save(folder / "swap.txt")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
