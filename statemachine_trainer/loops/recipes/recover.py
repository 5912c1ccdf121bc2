"""The batch loop that undoes batches that do harm: a loss that is not finite, a spike.

Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", JMLR 2023, section 5.1: training
goes on from before a spike, without the batches around it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Literal
from weakref import finalize, ref

import torch

from statemachine_trainer.loops.batch import BatchLoop
from statemachine_trainer.loops.changeable import changes_of_rates, put_rates_since
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.context_state import load_training_state, training_state
from statemachine_trainer.loops.loop_errors import NotRecovered
from statemachine_trainer.loops.settings_checks import (
    flags,
    function,
    number,
    refuse,
    whole_number,
)
from statemachine_trainer.loops.slower_steps import SlowerSteps
from statemachine_trainer.loops.spikes import why_spike, with_loss
from statemachine_trainer.machine.fields import field
from statemachine_trainer.parallel.cut_up import total_norm
from statemachine_trainer.snapshot.snapshot_errors import SnapshotMismatch
from statemachine_trainer.snapshot.written import Written

_log = logging.getLogger("statemachine_trainer.recovery")


class RecoverLoop(BatchLoop):
    """Replaces `BatchLoop`: after a batch that does harm, the run goes back and passes over it.

    Each batch is judged when it is done. If it is bad, the run goes back to a boundary that was kept
    in memory, before that batch, or `back` batches earlier. Weights, optimizers, schedulers, scaler,
    metrics, callbacks, generators and steps are those of that boundary; the data goes on behind the
    bad batch. So the run is, to the bit, one whose step leaves out these batches (unless the loader itself draws
    from the global generators in this process: it has drawn for them).

    Several ranks go back together, where the batch of any of them is bad.

    Judging reads the loss, which waits for the device. Keeping a boundary costs the time and the
    memory of a copy of weights and optimizer state, on the CPU, and as much in each checkpoint:
    `keep_every` makes it rarer. The counters of subscriptions (`every=`) are not taken back.

    Args:
        nonfinite: Whether a loss or gradient that is NaN or infinite is bad. With fp16 only the loss
            is looked at: the scaler leaves out such gradients itself.
        spike: Largest deviation of a loss from the median of the last 64, in robust standard
            deviations (1.4826 times the median absolute deviation); None for no limit.
        gradient_norm: Largest 2-norm of all gradients, as they are after the batch; None for no limit.
        when: A function of the trainer that returns whether the batch is bad.
        back: Batches before the bad one that are passed over with it.
        lr_scale: Fraction of the learning rate with which the optimizers step after the run has gone back; None for
            the whole. Schedulers go on as without it.
        lr_steps: For so many optimizer steps; going back again begins anew.
        keep_every: Batches after which a boundary is kept. All batches behind the boundary that the
            run goes back to are passed over.
        most: How often a fit goes back. Then `NotRecovered` surfaces.
        **settings: As `BatchLoop`.

    Attributes:
        history: What was done: for each time the batches that were passed over, and why.

    Raises:
        SettingError: A setting out of its range.
        NotRecovered: It happens more often than `most`.
    """

    transitions = (  # type: ignore[assignment]
        *(one for one in BatchLoop.transitions if one[0] != "batch_complete"),
        ["batch_complete", "batch_split", "judge"],
        ["fine", "judge", "batch_end"],
        ["bad", "judge", "roll_back"],
        ["rolled_back", "roll_back", "batch_end"],
    )

    kept: list[dict[str, Any]] = field(factory=list, scope="epoch")
    """The boundaries in memory, the oldest first. The end of an epoch is not undone."""
    losses: list[float] = field(factory=list, scope="fit")
    reason: str = ""
    history: list[dict[str, Any]] = field(factory=list, scope="fit")
    gone_back: int = field(0, scope="fit")
    slow_until: int = field(0, scope="fit")
    """The rate is smaller as long as fewer optimizer steps are done."""

    def __init__(
        self,
        *,
        nonfinite: bool = True,
        spike: float | None = None,
        gradient_norm: float | None = None,
        when: Callable[[Any], bool] | None = None,
        lr_scale: float | None = None,
        lr_steps: int = 100,
        back: int = 0,
        keep_every: int = 1,
        most: int = 3,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        flags(self, nonfinite=nonfinite)
        for name, value in (("spike", spike), ("gradient_norm", gradient_norm)):
            if value is not None:
                number(self, name, value, hint=" None is for no limit.")
        function(self, "when", when, "of the trainer that returns whether a batch is bad")
        if lr_scale is not None and number(self, "lr_scale", lr_scale) > 1:
            refuse(self, "lr_scale", lr_scale, "use a fraction: at most 1. None leaves the rate.")
        self.lr_scale = lr_scale
        if lr_scale is None and "lr_steps" in self._given:
            refuse(self, "lr_steps", lr_steps, "say lr_scale, too: without it the rate stays.")
        self.lr_steps = whole_number(self, "lr_steps", lr_steps, 1)
        self._slower: SlowerSteps | None = None
        self.nonfinite = nonfinite
        self.spike = spike
        self.gradient_norm = gradient_norm
        self.when = when
        self.back = whole_number(self, "back", back)
        self.keep_every = whole_number(self, "keep_every", keep_every, 1)
        self.most = whole_number(self, "most", most, 1)

    def why_whole(self) -> str | None:
        return "keeps copies of whole parameters. Use BatchLoop, and resume from a checkpoint."

    @property
    def reads_gradients(self) -> bool:
        """Whether gradients are looked at after a batch, as `when` may do."""
        return self.nonfinite or self.gradient_norm is not None or self.when is not None

    def restore(self) -> None:
        # A batch may go on in the middle.
        if self.slow_until:
            self._begin_slower_steps()

    def abandon(self) -> None:
        slower, self._slower = self._slower, None
        if slower is not None:
            slower.end()

    # -- states ----------------------------------------------------------------------------------

    def batch_start(self) -> Literal["batch_started"]:
        """Keep this boundary, if it is time, and begin the batch."""
        context = self.context
        if not self.kept or context.counts.batch - self.kept[-1]["batch"] >= self.keep_every:
            self._keep()
        if context.counts.step < self.slow_until:
            self._begin_slower_steps()
        return super().batch_start()

    def judge(self) -> Literal["fine", "bad"]:
        """Look whether the batch has done harm."""
        if self._slower is not None:
            self.abandon()
        loss = None if self.context.loss is None else self.context.loss.item()
        self.reason = self._why_bad(loss)
        rank = self.context.steps.sync.objector(not self.reason)
        if rank is not None:
            self.reason = self.reason or f"it does harm at rank {rank}"
            return "bad"
        if loss is not None and self.spike is not None:
            self.losses = with_loss(self.losses, loss)
        return "fine"

    def roll_back(self) -> Literal["rolled_back"]:
        """Go back to a boundary before the bad batch; it, and those after that boundary, are passed over.

        Raises:
            NotRecovered: The fit has gone back as often as it may.
        """
        context = self.context
        bad = context.counts.batch - 1
        self._refuse_once_more(bad)
        behind = [one for one in self.kept if one["batch"] <= bad - self.back] or self.kept[:1]
        found = behind[-1]
        state = Written(found["text"].encode(), found["tensors"]).tree()
        self._put_back_callbacks(state["callbacks"])
        changed = _changed_by_hand(training_state(context), state["training"])
        try:
            load_training_state(context, state["training"])  # generators come last
        except SnapshotMismatch as error:
            raise NotRecovered(
                f"The fit cannot go back: the model has other parts than at the boundary it would go back to. "
                f"{error} Make them before the fit, or between epochs."
            ) from error
        # Earlier versions numbered a change by the batch. "changes" is then missing.
        put_rates_since(context, found.get("changes", found["batch"]))
        self.losses = list(found["losses"])
        # The boundary stays: nothing has been trained since.
        self.kept = self.kept[: self.kept.index(found) + 1]
        self.gone_back += 1
        slower: dict[str, Any] = {}
        if self.lr_scale is not None:
            self.slow_until = context.counts.step + self.lr_steps
            slower = {"lr_scale": self.lr_scale, "lr_steps": self.lr_steps}
        said = {"first": found["batch"], "last": bad, "reason": self.reason, **slower}
        self.history = [*self.history, {**said, "epoch": context.counts.epoch}]
        _log.warning(
            "passed over batches %d to %d of the run (%s): %s. %d of at most %d times.",
            found["batch"] + 1,
            bad + 1,
            f"epoch {context.counts.epoch + 1}",
            self.reason,
            self.gone_back,
            self.most,
        )
        if changed:
            _log.warning(
                "Going back has undone what was changed since then: %s. What changes it once, such as a receiver, "
                "does not do so again: change it between epochs, or in each batch.",
                ", ".join(changed),
            )
        return "rolled_back"

    # -- parts -----------------------------------------------------------------------------------

    def _begin_slower_steps(self) -> None:
        """Let the optimizers of the fit step with a smaller rate, up to the end of the batch."""
        if self._slower is None and self.lr_scale is not None:
            self._slower = _slower_steps(self, self.lr_scale)

    def _keep(self) -> None:
        callbacks = [
            {"kind": type(one).__qualname__, "state": one.state_dict()} for one in self._callbacks()
        ]
        written = Written.of({"training": training_state(self.context), "callbacks": callbacks})
        one: dict[str, Any] = {
            "batch": self.context.counts.batch,
            "losses": list(self.losses),
            # A batch is too coarse: a change may come between this boundary and the end of its batch.
            "changes": changes_of_rates(self.context),
            "text": written.text.decode(),
            "tensors": written.tensors,
        }
        # Of those at least `back` batches before the next one only the newest is needed.
        needed = [k for k in self.kept if k["batch"] > one["batch"] - self.back]
        before = [k for k in self.kept if k["batch"] <= one["batch"] - self.back]
        self.kept = [*before[-1:], *needed, one]

    def _callbacks(self) -> list[Any]:
        """Return what has seen the batches, and has a state: averages of the weights, say."""
        trainer = self.context.trainer
        return [] if trainer is None else trainer.stateful_callbacks()

    def _put_back_callbacks(self, saved: list[dict[str, Any]]) -> None:
        ours = self._callbacks()
        if [type(one).__qualname__ for one in ours] != [one["kind"] for one in saved]:
            raise NotRecovered(
                "The fit cannot go back: callbacks were subscribed, or taken off, since the boundary "
                "that it would go back to. Do so at the start of an epoch."
            )
        for one, was in zip(ours, saved, strict=True):
            one.load_state_dict(was["state"])

    def _why_bad(self, loss: float | None) -> str:
        """Return why the batch that was done is bad; "" if it is not."""
        if loss is not None and self.nonfinite and not math.isfinite(loss):
            return f"the loss is {loss}"
        if loss is not None and self.spike is not None:
            spike = why_spike(loss, self.losses, self.spike)
            if spike:
                return spike
        unscaled = self.context.precision.scaler is None
        if (self.nonfinite and unscaled) or self.gradient_norm is not None:
            norm = _norm_of_gradients(self.context)
            if self.nonfinite and unscaled and not math.isfinite(norm):
                return f"the norm of the gradients is {norm}"
            if self.gradient_norm is not None and not norm <= self.gradient_norm:
                return f"the norm of the gradients is {norm:.6g}"
        if self.when is not None and self.when(self.context.trainer):
            return f"{getattr(self.when, '__name__', 'when')} says so"
        return ""

    def _refuse_once_more(self, bad: int) -> None:
        if self.gone_back < self.most:
            return
        before = "; ".join(
            f"batches {one['first'] + 1} to {one['last'] + 1}, {one['reason']}"
            for one in self.history
        )
        raise NotRecovered(
            f"Batch {bad + 1} of the run does harm ({self.reason}), and the fit has gone back "
            f"{self.gone_back} times already ({before}). Look at the data and the learning rate; "
            f"{type(self).__name__}(most=...) allows more."
        )


def _slower_steps(loop: RecoverLoop, scale: float) -> SlowerSteps:
    """Lower the rates of the fit's optimizers as long as the loop says so.

    Torch knows of it, for all optimizers of the process. It must not outlive the loop: a fit may be left in
    the middle of a batch.
    """
    known = ref(loop)

    def holds(optimizer: torch.optim.Optimizer) -> bool:
        loop = known()
        if loop is None:
            return False
        context = loop.context
        ours = any(slot.optimizer is optimizer for slot in context.slots)
        return ours and context.counts.step < loop.slow_until

    slower = SlowerSteps(scale, holds)
    finalize(loop, slower.end)
    return slower


def _changed_by_hand(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Return which things differ between two states of training that no step of an optimizer changes."""
    found = [
        f"{what} of {name or 'the model'}"
        for what in ("requires_grad", "training")
        for name, flag in before["model"][what].items()
        if now["model"][what].get(name, flag) != flag
    ]
    pairs = zip(now["optimizers"], before["optimizers"], strict=False)
    groups = [n for n, (a, b) in enumerate(pairs) if a["parameters"] != b["parameters"]]
    more = ["..."] if len(found) > 3 else []
    return [*found[:3], *more, *(f"parameters of optimizer {n}" for n in groups)]


def _norm_of_gradients(context: Context) -> float:
    found = [one.grad for one in context.model.parameters() if one.grad is not None]
    return float(total_norm(found)) if found else 0.0
