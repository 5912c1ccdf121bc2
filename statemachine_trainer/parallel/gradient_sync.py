"""How the gradients of a model become the same at all ranks.

`GradientSync` is a model that nothing is done for: one process, or wrappers inside of the model.
`Ddp` is a model in `DistributedDataParallel`. `FullyShard` is one whose parameters `fully_shard`
(FSDP2) has cut up among the ranks. Loops ask their run's object, and know none of the three.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Final, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from statemachine_trainer.parallel.averaging import (
    average,
    averaging,
    check_averaged_here,
    check_none_averages,
)
from statemachine_trainer.parallel.cut_up import is_cut_up, is_fully_sharded

T = TypeVar("T")

_NONE: Final = object()
_STEP: Final = "_statemachine_trainer_step"
_AT_ONCE: Final = 250 * 2**20
"""Bytes of buffers that are sent at once, as torch does."""


class GradientSync:
    """A model whose gradients stay at their rank.

    Args:
        module: The model, without wrappers.

    Attributes:
        module: The model, without wrappers.
        by: What averages the gradients, for messages; "" if nothing does.
        defers: Whether backward passes before the last one of a window may leave the averaging to it.
        sees_all: Whether each backward pass averages gradients, wherever it is begun.
        data_ranks: For each rank, which of those that read data of their own it is, where some read
            the same: they hold parts of the same layers. None where each reads its own.
        several_meshes: Whether parameters are cut up over several meshes.
        averages: Called before each training step: whether its backward pass averages gradients. If
            not, they add up at each rank until one does.
        objector: Called with what this rank thinks of a batch. Returns the first rank that objects to
            it, None if none does. A collective where there are several ranks.
        largest: Called with numbers of this rank. Returns the largest of each over the ranks. A collective
            where there are several ranks.
        mean: Called with the loss that an optimizer evaluates itself. Returns the mean over the ranks,
            so that all of them decide alike. A collective where there are several ranks.
        leave_out: Called where this rank has no loss for a batch, and others may have one. Returns the loss to
            go on with; None if the batch is left out.
        check_left_out: Called before something lasting is made of what the ranks have. Raises an error if they
            have parted. A collective where there are several ranks.
        batch: Returns the number of the batch in the run, from 1.
    """

    by = ""
    defers = False
    sees_all = False
    data_ranks: list[int] | None = None
    several_meshes = False
    averages: Callable[[], bool] = staticmethod(lambda: True)
    objector: Callable[[bool], int | None] = staticmethod(lambda fine: None if fine else 0)
    largest: Callable[[Sequence[float]], Sequence[float]] = staticmethod(lambda values: values)
    mean: Callable[[torch.Tensor], torch.Tensor] = staticmethod(lambda loss: loss)
    leave_out: Callable[[], torch.Tensor | None] = staticmethod(lambda: None)
    check_left_out: Callable[[], None] = staticmethod(lambda: None)
    batch: Callable[[], int] = staticmethod(lambda: 0)

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @property
    def device(self) -> torch.device | None:
        """The device that the model has to stay on; None if it may be moved."""
        return None

    @property
    def left_to_each_rank(self) -> Collection[str]:
        """The names of parameters whose gradients are not averaged on purpose."""
        return ()

    @property
    def waits_inside(self) -> bool:
        """Whether networks inside of the model exchange gradients by themselves in each backward pass."""
        return any(True for _ in self._wrappers())

    def through(self, step: Callable[..., Any], *, own: bool) -> Callable[..., Any]:
        """Return a training step that is run so that its gradients are averaged.

        Args:
            step: The step.
            own: Whether it is a method of the model. It may then use any part of the model, and
                need not call the model as a whole.
        """
        return step

    def by_itself(self, step: Callable[..., Any], kind: str) -> Callable[..., Any]:
        """Return a training step within which, or after which, backward passes begin that nothing here sees.

        Args:
            step: The step.
            kind: What it does, for messages.
        """
        return step

    def averaging(self) -> AbstractContextManager[None]:
        """Within the block, each backward pass averages gradients, if the step is one of `by_itself`."""
        return nullcontext()

    def evaluated(self, step: Callable[..., Any], *, own: bool) -> Callable[..., Any]:
        """Return a step of an evaluation that finds whole parameters, and leaves none."""
        return step

    def prepare(self) -> None:
        """Get the wrappers in the model ready for a fit. A collective.

        Let each `DistributedDataParallel` lay out its buckets before the first step that counts: one
        that finds no unused parameters does so after its first backward pass. This changes the order
        in which the numbers of more than two ranks are added. A resumed run would do it at another
        step than an undisturbed one, and end with other last digits. So one backward pass of zeros
        is made here. It calls no code of the model and draws nothing; gradients and buffers stay.
        """
        for one in self._wrappers():
            if dist.get_world_size(one.process_group) > 2:
                from statemachine_trainer.parallel.buckets import lay_out_buckets, lays_out_anew

                if lays_out_anew(one):
                    lay_out_buckets(one)

    def _wrappers(self) -> Iterator[DistributedDataParallel]:
        for one in self.module.modules():
            if isinstance(one, DistributedDataParallel):
                yield one

    @property
    def can_stand_in(self) -> bool:
        """Whether a rank without a loss can take part in the exchange of gradients of those that have one."""
        return False

    def stand_in(self) -> bool:
        """Take part in the exchange of gradients without any; return whether another rank has some. A collective."""
        return False

    def check_passes(self) -> None:
        """Check that no rank is in a backward pass that others do not make, if they are averaged here. A collective.

        Raises:
            RanksPart: One is.
        """

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients over the ranks that no backward pass has averaged. A collective.

        Raises:
            RanksPart: Another rank has none to average in this batch, and calls `check_none_averages`.
        """

    def check_none_averages(self) -> None:
        """Check that no rank calls `average` in a batch in which this one has no gradients. A collective.

        Raises:
            RanksPart: One does.
        """

    def aside(self) -> AbstractContextManager[None]:
        """Within the block, call training steps without what averages their gradients; `average` does it then."""
        return nullcontext()

    def check_aside(self, who: str, instead: str) -> None:
        """Check that `average` does all that the backward pass would have done.

        Args:
            who: What leaves it aside, for messages.
            instead: What to do instead, for messages.

        Raises:
            UnsupportedWrapper: It does not.
        """

    def share_buffers(self) -> None:
        """Give all ranks the buffers of rank 0. A collective."""

    def settle(self) -> None:
        """Free what the last forward pass has gathered, so that the model is seen as it is kept."""


class Ddp(GradientSync):
    """A model in `DistributedDataParallel`.

    Gradients are averaged over the ranks only if the loss is computed through the wrapper's own
    `forward`. The wrapper only calls the `forward` of the model, so a direct call of a training
    step would bypass it.

    Args:
        wrapper: The wrapper.
    """

    by = "DistributedDataParallel"
    defers = True

    def __init__(self, wrapper: DistributedDataParallel) -> None:
        super().__init__(wrapper.module)
        self.wrapper = wrapper
        self._averages_itself = self._aside = False

    @property
    def device(self) -> torch.device | None:
        return next((one.device for one in self.module.parameters()), None)

    @property
    def left_to_each_rank(self) -> Collection[str]:
        found: set[str] = cast(Any, self.wrapper).parameters_to_ignore
        return found

    def through(self, step: Callable[..., Any], *, own: bool = True) -> Callable[..., Any]:
        """Return a function that runs a step through the wrapper.

        For that call the step replaces the model's `forward`, which is restored before the step
        begins. So the step may call the model any number of times.
        """
        wrapper = self.wrapper
        module: nn.Module = wrapper.module  # what the wrapper calls, compiled or not

        def call(*arguments: Any, **named: Any) -> Any:
            if self._aside:
                return step(*arguments, **named)
            before = vars(module).get("forward", _NONE)

            def put_back() -> None:
                if before is not _NONE:
                    module.forward = before
                else:
                    vars(module).pop("forward", None)

            def forward(*arguments: Any, **named: Any) -> Any:
                put_back()
                return step(*arguments, **named)

            # Not by an assignment, whose checks for parameters take time in each batch.
            vars(module)["forward"] = forward
            try:
                with nullcontext() if self.averages() else wrapper.no_sync():
                    return wrapper(*arguments, **named)
            finally:
                put_back()

        return call

    def by_itself(self, step: Callable[..., Any], kind: str) -> Callable[..., Any]:
        """Return the step, which begins with the buffers of rank 0 as a call of the wrapper does.

        Raises:
            UnsupportedWrapper: The wrapper does more with gradients than to average them.
        """
        instead = "wrap the networks inside of the model: self.net = DistributedDataParallel(net)"
        self.check_aside(kind, instead)
        self._averages_itself = True

        def call(*arguments: Any, **named: Any) -> Any:
            if self.wrapper.broadcast_buffers and any(True for _ in self.module.buffers()):
                self.check_passes()  # others may still go backward in the batch before
                self.share_buffers()
            return step(*arguments, **named)

        return call

    @property
    def waits_inside(self) -> bool:
        return any(True for _ in super()._wrappers())

    def averaging(self) -> AbstractContextManager[None]:
        return averaging(self.wrapper, self.batch) if self._averages_itself else nullcontext()

    def _wrappers(self) -> Iterator[DistributedDataParallel]:
        yield self.wrapper

    @contextmanager
    def aside(self) -> Iterator[None]:
        before, self._aside = self._aside, True
        try:
            yield
        finally:
            self._aside = before

    def check_aside(self, who: str, instead: str) -> None:
        check_averaged_here(self.wrapper, who, instead)

    @property
    def can_stand_in(self) -> bool:
        return not (self._averages_itself or self._aside)

    def stand_in(self) -> bool:
        from statemachine_trainer.parallel.buckets import exchange_nothing

        return exchange_nothing(self.wrapper)

    def check_passes(self) -> None:
        if self._averages_itself:
            check_none_averages(self.wrapper, self.batch())

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        average(self.wrapper, list(parameters), (self.batch(), 1))

    def check_none_averages(self) -> None:
        check_none_averages(self.wrapper, self.batch() + 1)

    def share_buffers(self) -> None:
        """Give all ranks the buffers of rank 0, as the wrapper does before each training step.

        A collective. With `broadcast_buffers=False` nothing happens.
        """
        if self.wrapper.broadcast_buffers:
            buffers = list(self.module.buffers())
            if buffers:  # those of one type in one exchange, as the wrapper does
                torch_dist: Any = dist
                with torch.no_grad():  # a buffer may require gradients
                    torch_dist._broadcast_coalesced(
                        self.wrapper.process_group, buffers, _AT_ONCE, 0
                    )


class FullyShard(GradientSync):
    """A model whose parameters are cut up among the ranks by `torch.distributed.fsdp.fully_shard`.

    Gradients are reduced in each backward pass, also within a window of accumulation: each rank
    then keeps its part of them only, and an open window may be stepped with at any time.

    Args:
        model: The model, on which `fully_shard` was called, or on parts of it.
    """

    by = "fully_shard"
    sees_all = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._cut: list[Any] = [one for one in model.modules() if is_fully_sharded(one)]

    @property
    def device(self) -> torch.device | None:
        return next((one.device for one in self.module.parameters()), None)

    def through(self, step: Callable[..., Any], *, own: bool) -> Callable[..., Any]:
        return self._as_forward(step) if own else step

    def evaluated(self, step: Callable[..., Any], *, own: bool) -> Callable[..., Any]:
        step = self._as_forward(step) if own else step

        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return step(*arguments, **named)
            finally:
                self.settle()

        return call

    def _as_forward(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method of the model that is run as its `forward` is: with whole parameters."""
        module = self.module
        if not is_fully_sharded(module):
            return step  # the parts that were cut up gather their parameters themselves
        from torch.distributed.fsdp import register_fsdp_forward_method

        # Without arguments of its own, so that a batch is not cast: the model casts what it is called with.
        vars(module)[_STEP] = lambda run: run()
        register_fsdp_forward_method(module, _STEP)
        run = vars(module).pop(_STEP)

        def call(*arguments: Any, **named: Any) -> Any:
            return run(partial(step, *arguments, **named))

        return call

    def share_buffers(self) -> None:
        for buffer in self.module.buffers():
            if not is_cut_up(buffer):
                dist.broadcast(buffer, 0)

    def settle(self) -> None:
        # After a forward pass without gradients the outermost module keeps whole parameters. A step
        # of the optimizer would not reach them.
        for one in self._cut:
            one.reshard()


def first_of_each(ranks: list[int] | None, values: Sequence[T]) -> list[T]:
    """Return what each rank has that reads data of its own, out of what each rank has.

    Args:
        ranks: The `data_ranks` of a model; None where each rank reads its own.
        values: A value for each rank.
    """
    if ranks is None:
        return [*values]
    return [values[ranks.index(number)] for number in range(max(ranks) + 1)]


def averages_by_itself(module: nn.Module) -> bool:
    """Return whether a module averages its own gradients over the ranks."""
    return isinstance(module, DistributedDataParallel) or is_fully_sharded(module)


def sync_of(module: nn.Module) -> GradientSync:
    """Return how the gradients of a model are averaged that is in no `DistributedDataParallel`."""
    if isinstance(module, nn.Module) and any(map(is_fully_sharded, module.modules())):
        return FullyShard(module)
    return GradientSync(module)
