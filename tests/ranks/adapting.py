"""Checkpoints of what is trained alone, of a model that is cut up among two ranks.

All in one launch: each answers with what came of it, as JSON.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from statemachine_trainer import load_weights
from statemachine_trainer.callbacks import EMA, Checkpoints
from statemachine_trainer.parallel.cut_up import is_cut_up, local_of
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.snapshot import Retention
from tests.ranks.together import FOLDER, RANK, cut_up, from_all, loader, play, refusal, trainer


class Adapted(nn.Module):
    """A large frozen layer, and a small one that is trained."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.base = nn.Linear(3, 4001)
        self.top = nn.Linear(4001, 1)
        self.base.requires_grad_(False)
        self.top.weight.requires_grad_(False)
        self.by_hand = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.by_hand and RANK == 1:
            with torch.no_grad():
                local_of(self.base.weight).mul_(1.5)
        return nn.functional.mse_loss(self.top(self.base(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([self.top.bias], lr=0.05)


def adapted(seed: int = 0) -> Adapted:
    """A model that is cut up among the ranks."""
    model = Adapted(seed)
    return cast(Adapted, cut_up(model, model.base, model.top))


def fit(model: nn.Module, folder: str, resume: Path | None = None, **settings: Any) -> Any:
    """Fit with checkpoints of what is trained; return them."""
    kept = Retention(last=99)
    made = Checkpoints(FOLDER / folder, every=3, retention=kept, parameters="trainable", **settings)
    with_average = [EMA(0.9)]
    trainer(checkpoints=made, callbacks=with_average).fit(model, loader(), resume=resume)
    return made


def whole(model: nn.Module) -> Any:
    """The weights, put together. A collective."""
    parts: dict[str, Any] = model.state_dict()
    return {
        name: (one.full_tensor() if is_cut_up(one) else one).tolist() for name, one in parts.items()
    }


def size_of(folder: Path) -> int:
    """Bytes of all files of a checkpoint."""
    return sum(one.stat().st_size for one in folder.iterdir())


def it_goes_on() -> Any:
    model = adapted()
    made = fit(model, "whole")
    undisturbed = whole(model)
    first = sorted(one for one in made.store.root.iterdir() if one.name[:3] == "000")[0]
    again = adapted()
    fit(again, "again", first)
    return {
        "same": from_all(whole(again) == undisturbed),
        "size": size_of(first),
        "others": from_all(refusal(lambda: fit(adapted(1), "other", first))),
        "alone": from_all(alone(first, again)),
    }


def alone(checkpoint: Path, model: Adapted) -> Any:
    """Whether one process gets the frozen rest from its model, and what is said of another one."""
    with Ranks.apart():
        plain, average = Adapted(), Adapted()
        load_weights(plain, checkpoint)
        load_weights(average, checkpoint, average=True)
        said = refusal(lambda: load_weights(Adapted(1), checkpoint))
    same = torch.equal(plain.base.weight, Adapted().base.weight)
    moved = not torch.equal(plain.top.bias, average.top.bias)
    return [same, moved, said.partition(" of its")[0]]


def in_the_background() -> Any:
    model = adapted()
    made = fit(model, "background", background=True)
    made.store.wait()
    again = adapted()
    last = sorted(one for one in made.store.root.iterdir() if one.name[:3] == "000")[1]
    fit(again, "background-again", last)
    return {"same": from_all(whole(again) == whole(model)), "size": size_of(last)}


def changed_by_hand_at_one_rank() -> Any:
    """What one rank changes is written by both."""
    model = adapted()
    model.by_hand = True
    made = fit(model, "by-hand", at_end=True)
    assert made.last is not None
    again = adapted()
    load_weights(again, made.last)
    return {"same": from_all(whole(again) == whole(model)), "size": size_of(made.last)}


def of_all() -> Any:
    """The size of a checkpoint of all weights."""
    made = Checkpoints(FOLDER / "all", every=3)
    trainer(checkpoints=made, callbacks=[EMA(0.9)]).fit(adapted(), loader())
    assert made.last is not None
    return size_of(made.last)


SCENES = [it_goes_on, in_the_background, changed_by_hand_at_one_rank, of_all]

if __name__ == "__main__":
    play(SCENES)
