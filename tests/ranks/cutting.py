"""Short fits of two ranks that cut batches where memory runs out at one of them. See `together`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.loops import SplittingLoop
from tests.ranks.together import (
    DATA,
    FOLDER,
    INPUTS,
    RANK,
    Task,
    exchanges,
    fitted,
    loader,
    play,
    refusal,
    refused,
    trained,
    trainer,
)

PLENTY = 99
UNEVEN = TensorDataset(INPUTS[:28], INPUTS[:28].sum(1, keepdim=True))
"""Batches of 4, 4, 4 and 2 samples at each rank."""


class Short(Task):
    """Has memory for so many samples only, by rank; else it raises on its way forward or backward."""

    def __init__(self, fits: tuple[int, int] = (PLENTY, PLENTY), where: str = "forward") -> None:
        super().__init__({})
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.fits, self.where, self.sizes = fits, where, list[int]()

    def check(self, size: int, where: str) -> None:
        if where == self.where and size > self.fits[RANK]:
            raise torch.OutOfMemoryError(f"{size} samples do not fit")

    def loss(self, batch: Any) -> torch.Tensor:
        """The loss; in the backward pass memory runs out when the last layer has its gradient."""
        size = len(batch[0])
        self.sizes.append(size)
        self.check(size, "forward")
        hidden = self.net[1](self.net[0](batch[0]))
        hidden.register_hook(lambda _: self.check(size, "backward"))
        return nn.functional.mse_loss(self.net[2](hidden), batch[1])


def once(model: Task, data: Any = DATA, **settings: Any) -> list[Any]:
    """The weights after a fit of torch's wrapper, with memory for all of it."""
    trainer(**settings).fit(DistributedDataParallel(model), loader(data))
    return trained(model)


def plain_and_ready(name: str, make: Callable[[], Task], **settings: Any) -> Any:
    """The same without and with the setting, while all fits."""
    return [once(make(), **settings), fitted(name, make, on_oom="split", **settings)["weights"]]


def while_all_fits() -> Any:
    return plain_and_ready("fits", lambda: Task({}))


def while_all_fits_with_open_windows() -> Any:
    return plain_and_ready("fits-windows", lambda: Task({}), accumulate=3)


def whole_and_cut(
    name: str, fits: tuple[int, int], where: str, data: Any = DATA, **settings: Any
) -> Any:
    """A fit with memory for all, and what one without comes to, also from its checkpoints."""
    made: list[Short] = []

    def make() -> Short:
        made.append(Short(fits, where))
        return made[-1]

    def step() -> dict[str, Any]:
        return {"optimizer": SplittingLoop(**settings)}

    accumulate = settings.get("accumulate", 1)
    found = fitted(name, make, loop=step, data=data)
    return [
        once(Short(), data, accumulate=accumulate),
        {**found, "sizes": made[0].sizes},
    ]


def one_rank_is_short_in_the_forward_pass() -> Any:
    return whole_and_cut("forward", (PLENTY, 2), "forward")


def one_rank_is_short_in_the_backward_pass() -> Any:
    return whole_and_cut("backward", (1, PLENTY), "backward")


def one_rank_is_short_within_windows() -> Any:
    return whole_and_cut("windows", (PLENTY, 3), "backward", accumulate=3, data=UNEVEN)


def larger_pieces_are_tried_again() -> Any:
    return whole_and_cut("larger", (PLENTY, 1), "backward", try_larger=2, accumulate=2)


def ranks_have_batches_of_other_sizes() -> Any:
    """One rank has 8 samples a batch and no shortage, the other one 2 or 3, of which one fits."""
    found = []
    for fits in ((PLENTY, PLENTY), (PLENTY, 1)):
        model, draw = Short(fits, "backward"), torch.Generator().manual_seed(RANK)
        sizes = [8, 8, 8] if RANK == 0 else [2, 3, 3]
        batches = [
            (torch.randn(n, 3, generator=draw), torch.randn(n, 1, generator=draw)) for n in sizes
        ]
        trainer(max_epochs=1, on_oom="split").fit(DistributedDataParallel(model), batches)
        found.append({"weights": trained(model), "sizes": model.sizes})
    return found


def it_goes_on_from_within_a_batch() -> Any:
    ends = []
    for number, place in enumerate(["smaller_pieces", "backward:next_piece"]):
        folder = FOLDER / f"within-{number}"
        model = Short((PLENTY, 2), "backward")
        one = trainer(max_epochs=1, on_oom="split", checkpoints=Checkpoints(folder))
        one.start(DistributedDataParallel(model), loader())
        one.run(until=place)
        one.checkpoint()
        (saved,) = (path for path in folder.iterdir() if path.name[:3].isdigit())
        one.run()
        other = Short((PLENTY, 2), "backward")
        goes_on = trainer(max_epochs=1, on_oom="split")
        goes_on.fit(DistributedDataParallel(other), loader(), resume=saved)
        ends.append([trained(model), trained(other), other.sizes])
    return ends


def a_sample_does_not_fit_at_one_rank() -> Any:
    """All raise; and when there is memory, all go on."""
    model = Short((PLENTY, 0), "forward")
    one = trainer(max_epochs=1, on_oom="split")
    said = ""
    try:
        one.fit(DistributedDataParallel(model), loader())
    except torch.OutOfMemoryError as error:
        said = "\n".join([str(error), *getattr(error, "__notes__", [])])
    model.fits = (PLENTY, PLENTY)
    one.run()
    return {"said": said, "weights": trained(model)}


class Wrapped(Short):
    """Wraps its network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = DistributedDataParallel(self.net)  # type: ignore[assignment]


def networks_that_are_wrapped_inside() -> Any:
    return refused(Wrapped(), on_oom="split")


def a_wrapper_with_a_hook() -> Any:
    wrapper = DistributedDataParallel(Short())
    wrapper.register_comm_hook(None, default_hooks.fp16_compress_hook)
    return refusal(lambda: trainer(on_oom="split").fit(wrapper, loader(DATA)))


def exchanges_of_a_batch() -> Any:
    """In the group in which ranks agree: while all fits, and in two pieces."""
    inputs = INPUTS.repeat(4, 1)
    data = TensorDataset(inputs, inputs.sum(1, keepdim=True))

    def run(size: int, fits: int) -> None:
        one = trainer(max_epochs=1, max_steps=size, on_oom="split")
        one.fit(DistributedDataParallel(Short((fits, PLENTY))), loader(data))

    return [exchanges(partial(run, fits=fits))[1] for fits in (PLENTY, 2)]


SCENES = [
    while_all_fits,
    while_all_fits_with_open_windows,
    one_rank_is_short_in_the_forward_pass,
    one_rank_is_short_in_the_backward_pass,
    one_rank_is_short_within_windows,
    larger_pieces_are_tried_again,
    ranks_have_batches_of_other_sizes,
    it_goes_on_from_within_a_batch,
    a_sample_does_not_fit_at_one_rank,
    networks_that_are_wrapped_inside,
    a_wrapper_with_a_hook,
    exchanges_of_a_batch,
]


if __name__ == "__main__":
    play(SCENES)
