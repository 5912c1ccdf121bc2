"""The answers of several states of one model, carried through a step side by side.

A step is run once. What a module of the model returns there is an `Answers`: a tensor that holds
the answer of each state. Functions that do not say what the numbers mean are applied to each answer.
Where a function does say it (a loss, a softmax, an argmax) the answers become one, in the form that
this function takes: `cross_entropy` gets logits that stand for the averaged probabilities. So a step
may call the model, a part of it, or several parts one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from statemachine_trainer.loops.loop_errors import TrainingError
from statemachine_trainer.loops.metrics.objects import is_metric
from statemachine_trainer.parallel.containers import leaves_with_paths, map_leaves

Meaning = Literal["softmax", "log", "sigmoid", "plain"]
"""What outputs are: logits of classes, logarithms, logits of yes or no, or the numbers themselves."""

Combine = Callable[[Tensor], Tensor]
"""Makes outputs (batch, ...) of those of all models (models, batch, ...)."""


class EnsembleUnclear(TrainingError):
    """A step uses the outputs of several models in a way that does not say how to average them.

    Attributes:
        doing: What the step does with them; None where the message is complete.
    """

    def __init__(self, message: str, doing: str | None = None) -> None:
        super().__init__(message)
        self.doing = doing

    def explain(self, step: str, combine: object) -> None:
        """Name the step of the user in the message, and what to do.

        Args:
            step: The class of the model with the name of the step.
            combine: What was given as `ensemble`.
        """
        if self.doing is None:
            return
        if combine == "mean":
            text = (
                f"How the outputs of the ensemble are to be averaged cannot be told from {step}: before any loss that "
                "says it (cross_entropy, binary_cross_entropy_with_logits, mse_loss, ...) it "
                f"{self.doing}. {_SAY_IT}"
            )
        else:
            text = (
                f"{step} {self.doing}, and KFoldLoop(ensemble={_named(combine)}) combines what each call of the model "
                "returns. Call the layers once, as a whole: put them into forward(), and call self(inputs) in the "
                "step. Or leave ensemble= out, if a loss in the step says what its outputs are: cross_entropy, "
                "binary_cross_entropy_with_logits, mse_loss, ..."
            )
        self.args = (text,)


_SAY_IT: Final = (
    "Say it: KFoldLoop(ensemble=...) takes 'softmax' (logits of classes), 'sigmoid' (logits of yes or no), 'plain' "
    "(the numbers themselves, as in a regression), 'vote', or a function of the stacked outputs."
)


def _named(combine: object) -> str:
    return getattr(combine, "__name__", repr(combine)) if callable(combine) else repr(combine)


class Combined(Tensor):
    """A tensor that was made of the answers of all states. What is computed from it is one too."""


class Answers(Tensor):
    """A tensor with one value for each state of a model; looks like the first of them.

    Attributes:
        each: The values, all of one shape.
        known: What the outputs mean, once a function has said it; shared by views of one output.
        given: Combines the values wherever they are used, if the user has said how.
    """

    each: list[Tensor]
    known: list[Meaning]
    given: Combine | None

    @staticmethod
    def of(
        each: Sequence[Tensor],
        *,
        given: Combine | None = None,
        known: list[Meaning] | None = None,
    ) -> Answers:
        """Hold the values of all states.

        Raises:
            EnsembleUnclear: They differ in shape.
        """
        if any(one.shape != each[0].shape for one in each):
            raise EnsembleUnclear(
                f"The models of the ensemble answer with different shapes "
                f"({', '.join(str(tuple(one.shape)) for one in each)}), which cannot be combined."
            )
        made = each[0].detach().as_subclass(Answers)
        made.each, made.given, made.known = list(each), given, [] if known is None else known
        return made

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        found = [one for one in _tensors(args, kwargs) if isinstance(one, Answers)]
        if not found:  # a value that is no part of a tree
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        name = getattr(func, "__name__", str(func))
        if name in ("__repr__", "__format__"):
            return f"Answers({len(found[0].each)} of shape {tuple(found[0].each[0].shape)})"
        meaning, dim = _told_by(func, args, kwargs)
        asked_of_shape = name == "__get__" or name in _FACTS
        if not asked_of_shape:
            alone = [one for one in found if one.given is not None]
            if meaning is None and name not in _VIEWS and not alone:
                known = {kind for one in found for kind in one.known}
                if len(known) == 1 and known <= {"sigmoid", "plain"}:
                    meaning = known.pop()
            if (alone and name not in _VIEWS) or meaning is not None:

                def as_one(leaf: object) -> object:
                    return combined(leaf, meaning, dim) if isinstance(leaf, Answers) else leaf

                return _call(func, as_one, args, kwargs)
        return _for_each(func, name, list(args), kwargs, found)


def combined(answers: Answers, meaning: Meaning | None, dim: int | None = None) -> Tensor:
    """Make one tensor of the answers, in the form that they had.

    Args:
        answers: The answers.
        meaning: What they are; not looked at where the user has said how to combine them.
        dim: The dimension of the classes, for "softmax".
    """
    stacked = torch.stack([one.as_subclass(Tensor) for one in answers.each])
    if not stacked.is_floating_point() or stacked.dtype in (torch.float16, torch.bfloat16):
        stacked = stacked.float()  # averages are never taken in half precision
    if answers.given is not None:
        made = answers.given(stacked)
    else:
        assert meaning is not None
        answers.known[:] = [meaning]
        made = average(stacked, meaning, dim)
    return made.as_subclass(Combined)


def average(stacked: Tensor, meaning: Meaning, dim: int | None = None) -> Tensor:
    """Average outputs in the space of what they mean; return them in the form that they had.

    Args:
        stacked: Outputs (models, ...).
        meaning: "softmax": logits; the result is the logarithm of the mean probabilities. "log":
            logarithms; the result is that of the mean. "sigmoid": logits of yes or no; the result is
            the logit of the mean probability. "plain": the mean itself.
        dim: The dimension of the classes in an output, for "softmax".
    """
    if meaning == "softmax":
        shifted = dim if dim is None or dim < 0 else dim + 1
        return _log_mean(stacked.log_softmax(dim=2 if shifted is None else shifted))
    if meaning == "log":
        return _log_mean(stacked)
    if meaning == "sigmoid":
        return _log_mean(F.logsigmoid(stacked)) - _log_mean(F.logsigmoid(-stacked))
    return stacked.mean(dim=0)


def _log_mean(logarithms: Tensor) -> Tensor:
    """Return the logarithm of the mean of exp(logarithms) over the models."""
    return logarithms.double().logsumexp(dim=0).sub(_log(len(logarithms))).to(logarithms.dtype)


def _log(number: int) -> float:
    return float(torch.tensor(number, dtype=torch.float64).log())


# -- What functions say about their arguments -----------------------------------------------------

_BY_NAME: Final[dict[str, Meaning]] = {
    "cross_entropy": "softmax", "softmax": "softmax", "log_softmax": "softmax", "argmax": "softmax",
    "topk": "softmax", "argsort": "softmax", "sort": "softmax", "max": "softmax",
    "nll_loss": "log", "kl_div": "log", "poisson_nll_loss": "log",
    "sigmoid": "sigmoid", "logsigmoid": "sigmoid", "binary_cross_entropy_with_logits": "sigmoid",
    "multilabel_soft_margin_loss": "sigmoid", "soft_margin_loss": "sigmoid",
    "binary_cross_entropy": "plain", "mse_loss": "plain", "l1_loss": "plain",
    "smooth_l1_loss": "plain", "huber_loss": "plain",
}  # fmt: skip

_VIEWS: Final = frozenset((
    "view", "reshape", "flatten", "squeeze", "unsqueeze", "float", "double", "to", "contiguous",
    "detach", "cpu", "cuda", "clone", "type", "__getitem__", "permute", "transpose", "movedim",
    "swapaxes", "t", "unflatten", "view_as", "reshape_as", "type_as", "expand", "narrow", "select",
    "unbind", "split", "chunk",
))  # fmt: skip
"""Functions that leave the numbers what they are."""

_FACTS: Final = frozenset((
    "size", "dim", "ndimension", "numel", "stride", "is_floating_point", "is_complex", "__len__",
))  # fmt: skip
"""Functions that tell of the shape and type of a tensor, and not of its numbers."""


def _told_by(
    func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Meaning | None, int | None]:
    """Return what a function takes its argument for, and the dimension of classes."""
    name = getattr(func, "__name__", "")
    meaning = _BY_NAME.get(name)
    if meaning is None or (name == "sigmoid" and not args):
        return None, None
    first = args[0] if args else kwargs.get("input")
    if name == "poisson_nll_loss" and not kwargs.get(
        "log_input", args[2] if len(args) > 2 else True
    ):
        meaning = "plain"
    if meaning != "softmax" or not isinstance(first, Tensor):
        return meaning, None
    if name == "cross_entropy":
        return meaning, 1 if first.dim() > 1 else 0
    place = 2 if name == "topk" else 1
    dim = kwargs.get("dim", args[place] if len(args) > place else None)
    if isinstance(dim, int) and not isinstance(dim, bool):
        return meaning, dim
    if name in ("topk", "argsort", "sort"):
        return meaning, -1
    return (meaning, 0) if first.dim() == 1 and name == "argmax" else (None, None)


# -- Running a function for each state ------------------------------------------------------------


def _for_each(
    func: Callable[..., Any], name: str, args: list[Any], kwargs: dict[str, Any], found: list[Any]
) -> Any:
    """Apply a function to the answer of each state."""
    writes = name.endswith("_") and not name.endswith("__")
    if "out" in kwargs or (writes and not _is(args[0], Answers)):
        raise _unclear(f"writes them into another tensor (`{name}`)")
    if any(_is(one, Combined) for _, one in leaves_with_paths([args, kwargs])):
        raise _unclear(f"puts outputs that were averaged and some that were not into one `{name}`")

    def of(index: int) -> Any:
        def pick(leaf: object) -> object:
            return leaf.each[index] if isinstance(leaf, Answers) else leaf

        own: Any = map_leaves(pick, args)
        if name.startswith("__i") and not _is(args[0], Answers) and isinstance(own[0], Tensor):
            own[0] = own[0].clone()  # `a += b` keeps what it returns, and `a` is for all states
        named: Any = map_leaves(pick, kwargs)
        return func(*own, **named)

    results = [of(index) for index in range(len(found[0].each))]
    if writes or name in ("__setitem__", "__set__"):
        return args[0]
    record = found[0].known if name in _VIEWS else None
    given = next((one.given for one in found if one.given is not None), None)
    return side_by_side(results, f"reads them (`{name}`)", given=given, known=record)


def side_by_side(
    results: Sequence[Any],
    doing: str,
    *,
    given: Combine | None = None,
    known: list[Meaning] | None = None,
) -> Any:
    """Make one tree of those of all states, with `Answers` for tensors.

    Raises:
        EnsembleUnclear: They differ in something else.
    """
    rows = [[leaf for _, leaf in leaves_with_paths(one)] for one in results]
    columns = iter(zip(*rows, strict=True)) if len({len(row) for row in rows}) == 1 else None
    if columns is None:
        raise _unclear(f"{doing}, and they are not of one structure")

    def joined(_leaf: object) -> object:
        column = next(columns)
        if all(isinstance(one, Tensor) for one in column):
            return Answers.of(column, given=given, known=known)
        first = column[0]
        if all(type(one) is type(first) and _is_same(one, first) for one in column):
            return first
        raise _unclear(doing)

    return map_leaves(joined, results[0])


def _call(
    function: Callable[..., Any],
    change: Callable[[object], object],
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> Any:
    """Call a function with arguments in which every leaf is changed."""
    changed: Any = map_leaves(change, list(args))
    named: Any = map_leaves(change, kwargs)
    return function(*changed, **named)


def _is_same(one: object, other: object) -> bool:
    if one is other:
        return True
    try:
        return bool(one == other)
    except (RuntimeError, ValueError, TypeError):
        return False


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind)


def _unclear(doing: str) -> EnsembleUnclear:
    return EnsembleUnclear(f"The step {doing}.", doing)


# -- The model while a step runs ------------------------------------------------------------------


@contextmanager
def asking_all(
    model: nn.Module,
    states: Sequence[dict[str, Tensor]],
    load: Callable[[int], None],
    given: Combine | None = None,
) -> Iterator[None]:
    """Within the block, let each module of a model answer with the answers of all its states.

    Args:
        model: The model.
        states: Parameters and buffers by name, of each state.
        load: Puts a state into the model, by number.
        given: Combines outputs, if the user has said how.
    """
    differing = {
        name
        for name, first in states[0].items()
        if any(not torch.equal(one[name], first) for one in states[1:])
    }
    own = _OwnState(model, states, differing, given)
    holders = {""} if differing else set()
    for name in differing:
        while name := name.rpartition(".")[0]:
            holders.add(name)
    patched = [module for name, module in model.named_modules() if name in holders]
    metrics: list[Any] = [module for module in model.modules() if is_metric(module)]
    before: list[tuple[nn.Module, list[str], dict[str, Any]]] = []

    def patch(module: nn.Module, **attributes: Any) -> None:
        kept = {name: vars(module)[name] for name in attributes if name in vars(module)}
        before.append((module, [*attributes], kept))
        vars(module).update(attributes)

    try:
        for module in patched:
            patch(module, forward=_asking(module.forward, own, load), _compiled_call_impl=None)
        for metric in metrics:
            patch(metric, update=_told_to(metric, "update"), forward=_told_to(metric, "forward"))
        with own:
            yield
    finally:
        for module, names, attributes in reversed(before):
            for name in names:
                vars(module).pop(name, None)
            vars(module).update(attributes)


class _OwnState(TorchFunctionMode):
    """Lets a step that uses parameters of the model itself use those of all states."""

    def __init__(
        self,
        model: nn.Module,
        states: Sequence[dict[str, Tensor]],
        differing: set[str],
        given: Combine | None,
    ) -> None:
        super().__init__()
        self.given = given
        self.count = len(states)
        self.inside = False
        named = [*model.named_parameters(), *model.named_buffers()]
        self.kept = {
            id(one): (one, [state[name] for state in states])
            for name, one in named
            if name in differing
        }

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not self.inside and any(id(one) in self.kept for one in _tensors(args, kwargs)):
            return _call(func, self._of_all, args, kwargs)
        return func(*args, **kwargs)

    def _of_all(self, leaf: object) -> object:
        if id(leaf) not in self.kept:
            return leaf
        if self.given is not None:
            raise _unclear("uses a parameter of the model outside of its modules")
        parameter, values = self.kept[id(leaf)]
        return Answers.of([one.to(parameter.device) for one in values])


def _tensors(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for _, leaf in leaves_with_paths([list(args), kwargs]):
        if isinstance(leaf, Tensor):
            yield leaf


def _asking(
    forward: Callable[..., Any], own: _OwnState, load: Callable[[int], None]
) -> Callable[..., Any]:
    """Return a forward that asks all states; within another module's it is what it was."""

    def ask_all(*args: Any, **kwargs: Any) -> Any:
        if own.inside:
            return forward(*args, **kwargs)
        if any(_is(one, Combined) for one in _tensors(args, kwargs)):
            raise _unclear("hands outputs that were averaged to another part of the model")
        results = []
        own.inside = True
        try:
            for index in range(own.count):

                def pick(leaf: object, index: int = index) -> object:
                    return leaf.each[index] if isinstance(leaf, Answers) else leaf

                load(index)
                results.append(_call(forward, pick, args, kwargs))
        finally:
            own.inside = False
        return side_by_side(results, "returns something that is no tensor", given=own.given)

    return ask_all


def _told_to(metric: Any, name: str) -> Callable[..., Any]:
    """Return a method of a metric object that gets outputs as one, in a form that it understands."""
    method = getattr(metric, name)
    kind = f"{type(metric).__module__}.{type(metric).__name__}".lower()

    def told(*args: Any, **kwargs: Any) -> Any:
        def as_one(leaf: object) -> object:
            if not isinstance(leaf, Answers):
                return leaf.as_subclass(Tensor) if isinstance(leaf, Combined) else leaf
            return combined(leaf, *_for_metric(leaf, kind)).as_subclass(Tensor)

        return _call(method, as_one, args, kwargs)

    return told


def _for_metric(answers: Answers, kind: str) -> tuple[Meaning | None, int | None]:
    """Return what outputs mean to a metric object: what a loss has said, or what torchmetrics says."""
    if answers.given is not None:
        return None, None
    if answers.known:
        return answers.known[0], 1 if answers.dim() > 1 else 0
    if "torchmetrics" in kind and "regression" in kind:
        return "plain", None
    if "torchmetrics.classification" in kind and "multiclass" in kind:
        return "softmax", 1 if answers.dim() > 1 else 0
    if "torchmetrics.classification" in kind and ("binary" in kind or "multilabel" in kind):
        # As torchmetrics itself does: probabilities, unless there are numbers that are none.
        outside = any(bool(((one < 0) | (one > 1)).any()) for one in answers.each)
        return ("sigmoid" if outside else "plain"), None
    raise _unclear(f"hands them to a metric object ({kind.rpartition('.')[2]})")
