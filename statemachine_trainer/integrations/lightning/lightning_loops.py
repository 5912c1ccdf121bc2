"""What callbacks and modules take for the loops of Lightning's trainer: counters, limits and data."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from torch.utils.data import DataLoader, SequentialSampler

from statemachine_trainer.data import length_of, limit_batches
from statemachine_trainer.integrations.lightning.library import NotAvailable
from statemachine_trainer.integrations.lightning.standing import Standing


class _LoopView:
    """Base of the views: says what to do about what is not here."""

    _address = "fit_loop"
    restarting = is_resuming = restarted_mid_epoch = restarted_on_epoch_start = False
    _restarting = False

    def __init__(self, standing: Standing) -> None:
        self._standing = standing

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotAvailable(
            f"`trainer.{self._address}.{name}` of Lightning does not exist here: the loops are "
            "`trainer.owner.loop`, and `trainer.owner.graph()` shows them. See docs/migration.md."
        )

    def setup_data(self) -> None:
        """Do nothing: the data are there when the fit or the evaluation has begun."""

    def _counts(self, done: int, begun: int | None = None) -> Any:
        begun = done if begun is None else begun
        return SimpleNamespace(ready=begun, started=begun, processed=done, completed=done)


class FitLoopView(_LoopView):
    """What is taken for `trainer.fit_loop`.

    Args:
        standing: Where the run stands.
        validation: What is taken for its validation loop.
    """

    def __init__(self, standing: Standing, validation: EvaluationLoopView) -> None:
        super().__init__(standing)
        self.epoch_loop = EpochLoopView(standing, validation)
        self._more_batches = 0

    @property
    def max_epochs(self) -> int | None:
        most = self._standing.owner.loop.limits().max_epochs
        return -1 if most is None else int(most)

    @max_epochs.setter
    def max_epochs(self, value: int | None) -> None:
        self._standing.owner.loop.max_epochs = None if value in (None, -1) else value

    @property
    def min_epochs(self) -> int:
        return self._standing.fitting.limits.min_epochs

    @min_epochs.setter
    def min_epochs(self, value: int | None) -> None:
        self._standing.owner.loop.min_epochs = value or 0

    @property
    def max_steps(self) -> int:
        return self.epoch_loop.max_steps

    @property
    def min_steps(self) -> int:
        return self.epoch_loop.min_steps

    @property
    def max_batches(self) -> float:
        """Batches of an epoch; a number that is set here is only remembered."""
        return self._standing.training_batches + self._more_batches

    @max_batches.setter
    def max_batches(self, value: float) -> None:
        self._more_batches = int(value - self._standing.training_batches)

    @property
    def batch_idx(self) -> int:
        return self.epoch_loop.batch_idx

    @property
    def total_batch_idx(self) -> int:
        return self.epoch_loop.total_batch_idx

    @property
    def epoch_progress(self) -> Any:
        epoch = self._standing.fitting.counts.epoch
        counts = self._counts(epoch, epoch + 1)
        return SimpleNamespace(total=counts, current=counts)

    @property
    def _skip_backward(self) -> bool:
        return self._standing.skip_backward

    @_skip_backward.setter
    def _skip_backward(self, value: bool) -> None:
        self._standing.skip_backward = value

    def _should_accumulate(self) -> bool:
        return self.epoch_loop._should_accumulate()

    @property
    def _combined_loader(self) -> CombinedView:
        """The training loader, as Lightning has it in a `CombinedLoader`."""
        return CombinedView([self._standing.train_dataloader])

    @property
    def _data_source(self) -> Any:
        given = self._standing.train_dataloader
        return _source(self._standing, given is not None, "train_dataloader")

    @property
    def done(self) -> bool:
        return self._standing.fitting.limit_reached is not None

    @property
    def skip(self) -> bool:
        return self.done


class EpochLoopView(_LoopView):
    """What is taken for `trainer.fit_loop.epoch_loop`.

    Args:
        standing: Where the run stands.
        validation: What is taken for its validation loop.
    """

    _address = "fit_loop.epoch_loop"

    def __init__(self, standing: Standing, validation: EvaluationLoopView) -> None:
        super().__init__(standing)
        self.val_loop = validation

    @property
    def max_steps(self) -> int:
        most = self._standing.owner.loop.limits().max_steps
        return -1 if most is None else int(most)

    @max_steps.setter
    def max_steps(self, value: int) -> None:
        self._standing.owner.loop.max_steps = None if value == -1 else value

    @property
    def min_steps(self) -> int:
        return self._standing.fitting.limits.min_steps

    @property
    def batch_idx(self) -> int:
        """Number of the batch in flight, or of the last one, within the epoch; -1 before the first."""
        return int(self.batch_progress.current.ready) - 1

    @property
    def total_batch_idx(self) -> int:
        """Number of the batch in flight, or of the last one, over the run."""
        return int(self.batch_progress.total.ready) - 1

    @property
    def batch_progress(self) -> Any:
        standing = self._standing
        done, in_epoch = standing.batches_done
        counts = standing.fitting.counts
        flying = standing.batch_in_flight
        return SimpleNamespace(
            total=self._counts(done, counts.batch + flying),
            current=self._counts(in_epoch, counts.batch_in_epoch + flying),
            is_last_batch=counts.batch_in_epoch + flying == counts.batches_per_epoch,
        )

    @property
    def global_step(self) -> int:
        return sum(slot.steps for slot in self._standing.fitting.slots)

    @property
    def _batches_that_stepped(self) -> int:
        return self._standing.batches_stepped

    @property
    def automatic_optimization(self) -> Any:
        steps = self.global_step if self._standing.automatic else 0
        step = SimpleNamespace(total=self._counts(steps), current=self._counts(steps))
        progress = SimpleNamespace(optimizer_steps=steps, optimizer=SimpleNamespace(step=step))
        return SimpleNamespace(optim_progress=progress)

    def _num_ready_batches_reached(self) -> bool:
        return bool(self.batch_progress.is_last_batch)

    def _should_accumulate(self) -> bool:
        """Whether the batch in flight, or the last one, leaves its accumulation window open."""
        progress = self.batch_progress
        size = self._standing.accumulate_grad_batches if self._standing.automatic else 1
        return not progress.is_last_batch and bool(progress.current.ready % size)

    def _should_check_val_epoch(self) -> bool:
        every = self._standing.setting("validate_epochs", 1)
        turn = (self._standing.fitting.counts.epoch + 1) % every == 0
        return bool(self._standing.fitting.validation) and turn


class EvaluationLoopView(_LoopView):
    """What is taken for `trainer.validate_loop`, `trainer.test_loop` and a fit's validation loop.

    Args:
        standing: Where the run stands.
        kind: "validation", "test" or "predict".
        address: Its name in messages.
    """

    inference_mode = True

    def __init__(self, standing: Standing, kind: str, address: str) -> None:
        super().__init__(standing)
        self._kind = kind
        self._address = address

    @property
    def batch_progress(self) -> Any:
        standing = self._standing
        before = standing.evaluated_in_all.get(self._kind, 0)
        flying = standing.evaluation_in_flight
        return SimpleNamespace(
            total=self._counts(before, before + flying),
            current=self._counts(standing.evaluated - flying, standing.evaluated),
            is_last_batch=standing.evaluated == sum(self.max_batches or [0]),
        )

    @property
    def max_batches(self) -> list[float]:
        return batches_of(self._standing, self._kind)

    @property
    def num_dataloaders(self) -> int:
        return len(self._feeds)

    @property
    def _has_run(self) -> bool:
        return bool(self._standing.evaluated_in_all.get(self._kind))

    @property
    def _combined_loader(self) -> CombinedView | None:
        loaders = [feed.loader for _, feed in self._feeds]
        return CombinedView(loaders) if loaders else None

    @property
    def _data_source(self) -> Any:
        name = {"validation": "val"}.get(self._kind, self._kind)
        fitting = self._kind == "validation" and self._standing.stage == "fit"
        given = self._standing.validates if fitting else bool(self._feeds)
        return _source(self._standing, given, f"{name}_dataloader")

    @property
    def _feeds(self) -> Any:
        return feeds_of(self._standing, self._kind)


class PredictionLoopView(EvaluationLoopView):
    """What is taken for `trainer.predict_loop`.

    Args:
        standing: Where the run stands.
    """

    return_predictions = True

    def __init__(self, standing: Standing) -> None:
        super().__init__(standing, "predict", "predict_loop")
        self._indices: list[list[list[int]]] = []

    @property
    def predictions(self) -> Any:
        """The predictions by batch; with several loaders a list of such lists."""
        found = list(getattr(self._standing.owner.driver.root, "predictions", []))
        return found[0] if len(found) == 1 else found

    @property
    def current_batch_indices(self) -> list[int]:
        """Numbers of the samples in the batch in flight; empty where the loader is not read in order."""
        context = self._standing.context
        loader = self._feeds[context.dataloader_idx][1].loader
        return _indices(loader, context.batch_idx)

    @property
    def epoch_batch_indices(self) -> list[list[list[int]]]:
        """The same of all batches, by loader."""
        return [
            [
                _indices(feed.loader, number)
                for number in range(int(most) if math.isfinite(most) else 0)
            ]
            for (_, feed), most in zip(self._feeds, self.max_batches, strict=True)
        ]


def feeds_of(standing: Standing, kind: str) -> Any:
    """Return the loaders of an evaluation with their names; none where it does not run."""
    if not standing.has_begun:
        return []
    if kind == "validation" and standing.stage in ("fit", "validate"):
        return standing.context.validation
    if kind == "validation":
        return standing.fitting.validation if standing.has_fitted else []
    return standing.context.validation if standing.stage == kind else []


def batches_of(standing: Standing, kind: str) -> list[float]:
    """Return how many batches of each loader are evaluated; infinity where nobody knows."""
    limit = limit_of(standing, kind)
    found = []
    for name, feed in feeds_of(standing, kind):
        known = limit_batches(limit, length_of(feed.loader), name)
        found.append(math.inf if known is None else known)
    return found


def limit_of(standing: Standing, kind: str) -> int | float | None:
    """Return the limit on batches of an evaluation; None for none."""
    if not standing.has_begun:
        return None
    inside = kind == "validation" and standing.stage == "fit"
    root = standing.fitting.trainer.loop if inside else standing.owner.driver.root
    for _, loop in root.walk():
        if getattr(loop, "kind", None) == kind and not hasattr(loop, "batches"):
            limit: int | float | None = loop.limit_batches
            return limit
    return None


class CombinedView:
    """What is taken for the `CombinedLoader` of a loop: its loaders and its length.

    Args:
        loaders: The loaders that are read one after the other, or one of them.
    """

    limits = None

    def __init__(self, loaders: list[Any]) -> None:
        self.flattened = getattr(getattr(loaders[0], "combined", None), "flattened", loaders)
        given = loaders[0] if len(loaders) == 1 else loaders
        self.iterables = getattr(given, "iterables", given)
        self._lengths = [length_of(one) for one in loaders]

    def __len__(self) -> int:
        known = [length for length in self._lengths if length is not None]
        if len(known) < len(self._lengths):
            raise NotImplementedError("The length of one of the loaders is not known.")
        return sum(known)

    @property
    def sampler(self) -> Any:
        """The sampler of the loader, or a list of those of several."""
        found = [getattr(one, "sampler", None) for one in self.flattened]
        return found[0] if len(found) == 1 else found


def _source(standing: Standing, is_given: bool, name: str) -> Any:
    """Return what is taken for Lightning's `_DataLoaderSource`."""
    module = standing.module
    own = is_given and standing.library.is_overridden(name, module)
    return SimpleNamespace(
        is_defined=lambda: is_given,
        is_module=lambda: own,
        instance=module if own else None,
        name=name,
    )


def _indices(loader: Any, number: int) -> list[int]:
    """Numbers of the samples in a batch of a loader that is read in order."""
    if not isinstance(loader, DataLoader) or not isinstance(loader.sampler, SequentialSampler):
        return []
    size = loader.batch_size or 1
    return list(range(number * size, min((number + 1) * size, len(loader.sampler))))
