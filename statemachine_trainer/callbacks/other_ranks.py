"""A run that goes on with another number of ranks than have written its checkpoint.

All ranks begin with the state of rank 0: weights, optimizers and counters are the same at each. Data
go on where all of them together stood (`data/dealing.py`); what was logged by all is added up at
rank 0. Random numbers are derived anew. What cannot be given to others is refused: a batch in flight,
an open window, an epoch whose order is known to one rank alone.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch

from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.metrics.joining import joined, plain
from statemachine_trainer.loops.metrics.numbers import Number
from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.parallel import leaves_with_paths
from statemachine_trainer.parallel.gradient_sync import first_of_each
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.snapshot.checkpoint import Loaded
from statemachine_trainer.snapshot.generators import make, seed, state_of
from statemachine_trainer.snapshot.ranked import OTHERS, ranks_of, trees_of_ranks
from statemachine_trainer.snapshot.rng import isolated_rng, rng_state

_CHANGING: Final = ("machine", "context", "callbacks", "generators", "modules")
"""Parts of a state in which ranks may have something of their own."""

_HANDLED: Final = (
    "['context']['rng']",
    "['context']['generators']",
    "['context']['train']",
    "['context']['validation']",
    "['context']['others']",
    "['context']['metrics']",
    "['context']['in_flight']",
    "['context']['on_device']",
    "['context']['counts']['seconds",
    "['context']['plain']['validated_weights']",
    "['generators']",
)
"""What is derived, dealt out or added up, and what no rank has in a checkpoint that fits."""


class RanksChanged(UserWarning):
    """A run goes on with another number of ranks; the message says what is not as before."""


# -- May it go on? ---------------------------------------------------------------------------------


def why_not(tree: Any) -> str | None:
    """Return why other ranks than those that have written a state cannot go on with it; None if they can."""
    trees = _trees(tree)
    if not all(isinstance(one, Mapping) and "context" in one for one in trees):
        return "it is no state of a fit"
    context = trees[0]["context"]
    if any(slot["window"] for slot in context["optimizers"]):
        return "a window of accumulation is open, of which each rank has its own gradients"
    flying = context["in_flight"]
    if flying["kept_hiddens"]:
        return "hidden states are carried from batch to batch, of which each rank has its own"
    if (
        flying["splits"]
        or flying["aside"]
        or (flying["batch"] is not None and not _read_only(trees[0]))
    ):
        return "a batch is in flight, which is that of one rank"
    if flying["outputs"]:
        return "outputs of the epoch are gathered, of which each rank has its own"
    evaluations = [
        *context["validation"],
        *(one for many in context["others"].values() for one in many),
    ]
    if any(one["phase"] == "running" for one in evaluations):
        return "an evaluation is under way"
    if context["train"] is None:
        return None
    if not _table_is_shared(trees[0]):
        for name, one in context["metrics"]["train"].items():
            if one["kind"] != "number":
                return (
                    f"the metric object {name!r} has a part of the epoch, at each rank another one"
                )
    feeds = [one["context"]["train"] for one in trees]
    return _why_not_dealt(feeds, in_hand=flying["batch"] is not None)


def _read_only(tree: Mapping[str, Any]) -> bool:
    """Return whether nothing was done yet with the batch in flight, so that it may be read again."""
    path, _, state = (tree["machine"]["path"] or "").rpartition(".")
    around = tree["machine"]["loops"].get(path.rpartition(".")[0], {"fields": {}})["fields"]
    known = state == "batch_start" and path.endswith(".batch") and "draining" in around
    return known and not around["holding"]


def _read_again(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a state in which the batch in flight, with which nothing was done, is still to be read."""
    around = tree["machine"]["path"].rpartition(".batch.")[0]
    flying = {**tree["context"]["in_flight"], "batch": None}
    on_device = {**tree["context"]["on_device"], "batch": []}
    context = {**tree["context"], "in_flight": flying, "on_device": on_device}
    return {
        **tree,
        "machine": {**tree["machine"], "path": f"{around}.fetch"},
        "context": {**context, "train": _dealt(context["train"], 1)},
    }


def _trees(tree: Any) -> list[Any]:
    """Return the state of each rank that has read data of its own."""
    trees = trees_of_ranks(tree)
    data_ranks = tree.get("data_ranks") if isinstance(tree, Mapping) else None
    return first_of_each(data_ranks, trees)


def _why_not_dealt(feeds: Sequence[Mapping[str, Any]], *, in_hand: bool) -> str | None:
    """Return why data cannot be dealt to other ranks, by where each rank stood in them."""
    first = feeds[0]
    inside = first["phase"] == "running" or in_hand or bool(first.get("ahead"))
    if first["kind"] != "map":
        if inside:
            return f"it stands within an epoch of a {first['kind']}, whose order other ranks do not know"
        kept = [one["reader"].get("kept") for one in feeds]
        if any(one is not None for one in kept):
            return f"its {first['kind']} of data has a state at each rank, which others cannot take over"
        return None
    if _differ([one["reader"]["samplers"] for one in feeds]) or (
        first["reader"]["samplers"] and len(feeds) == 1
    ):
        return "its sampler has a state of its own, which others cannot take over"
    if not inside:
        return None
    place = first["reader"].get("cursor")
    if place is None or place["ranks"] != len(feeds):
        sampler = first["facts"]["sampler"]
        return f"it stands within an epoch in an order that only one rank knows ({sampler})"
    return None


def _differ(values: Sequence[Any]) -> bool:
    first, *others = [dict(leaves_with_paths(one)) for one in values]
    return any(not _same_leaves(first, one) for one in others)


def _same_leaves(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(_same(one[path], other[path]) for path in one)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and (one == other or (one != one and other != other))


# -- The state for others --------------------------------------------------------------------------


def for_other_ranks(tree: Any, rank: int) -> dict[str, Any]:
    """Return the state with which a rank goes on from a checkpoint of another number of ranks.

    Args:
        tree: The tree of the checkpoint, of which `why_not` has found nothing.
        rank: This rank.
    """
    trees = _trees(tree)
    first = {**trees[0]}
    if first["context"]["in_flight"]["batch"] is None:
        context = first["context"] = {**first["context"]}
        if context["train"] is not None:
            context["train"] = _dealt(context["train"])
    else:
        first = _read_again(first)
        context = first["context"]
    first[OTHERS] = {
        "ranks": ranks_of(tree),
        "data_ranks": len(trees),
        "rng": len(trees) == 1 or _differ([one["context"]["rng"] for one in trees]),
        "own": _generators_that_differ(trees),
        "told": _told(trees),
    }
    context["validation"] = [_dealt(one) for one in context["validation"]]
    context["others"] = {
        name: [_dealt(one) for one in feeds] for name, feeds in context["others"].items()
    }
    if not _table_is_shared(first):
        tables = [one["context"]["metrics"]["train"] for one in trees]
        context["metrics"] = {**context["metrics"], "train": _added_up(tables) if rank == 0 else {}}
    return first


def _table_is_shared(tree: Mapping[str, Any]) -> bool:
    """Return whether what was logged in training is reduced already, so that all ranks have the same."""
    path = tree["machine"]["path"]
    ended = path is None or path.rpartition(".")[2] == "epoch_end"
    return ended or tree["context"]["metrics_over"] is not False


def _added_up(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for table in tables for name in table)
    return {
        name: joined([plain(name, Number.restored(one[name])) for one in tables if name in one])
        for name in names
    }


def _dealt(feed: Mapping[str, Any], in_hand: int = 0) -> dict[str, Any]:
    """Return the state of a feed as other ranks may load it.

    Args:
        feed: Its state at one rank.
        in_hand: Batches that were handed out and are to be read again, beside those that were read ahead.
    """
    ahead = feed.get("ahead", [])
    back = in_hand + len(ahead)
    found = {**feed, "position": feed["position"] - back} | ({"ahead": []} if ahead else {})
    if back:
        found["phase"] = "running"
    if feed["kind"] == "map":
        found["reader"] = {**feed["reader"], OTHERS: True, "pass": None}
    return found


def _generators_that_differ(trees: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the paths of generators that were not the same at all ranks."""
    found = []
    for path, own in _holders(trees[0]):
        for name, entry in own.items():
            others = [_at(tree, path).get(name) for tree in trees[1:]]
            if any(other is None or _differ([entry, other]) for other in others):
                found.append([*path, name])
    return found


def _holders(tree: Mapping[str, Any]) -> Iterator[tuple[list[str], Mapping[str, Any]]]:
    """Yield the places at which a state holds generators."""
    places = [["generators"], ["context", "generators"], ["context", "train", "reader", "own"]]
    for path in places:
        own = _at(tree, path)
        if own:
            yield path, own


def _at(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        if not isinstance(tree, Mapping) or tree.get(key) is None:
            return {}
        tree = tree[key]
    return tree


def _told(trees: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the paths of what other ranks had of their own and is lost: that of rank 0 holds."""
    first = dict(_compared(trees[0]))
    others = [dict(_compared(one)) for one in trees[1:]]
    return [
        path
        for path, value in first.items()
        if any(path in one and not _same(value, one[path]) for one in others)
    ]


def _compared(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for part in _CHANGING:
        for path, leaf in leaves_with_paths(tree.get(part, {}), f"[{part!r}]"):
            if not path.startswith(_HANDLED):
                yield path, leaf


# -- Random numbers, and what is told --------------------------------------------------------------


def derive_generators(state: Any, data_rank: int) -> Any:
    """Return a state of other ranks whose random numbers are those of a rank of its own.

    They follow from those of rank 0, the step and the rank.

    Args:
        state: The state with which the run goes on.
        data_rank: Which of the ranks that read data of their own this is.
    """
    note = state[OTHERS]
    step, was = state["context"]["counts"]["step"], state["context"]["rng"]
    content = was["torch"].numpy().tobytes() + f"step {step}, rank {data_rank}".encode()
    for path in note["own"]:
        state = _replaced(state, path, _seeded(_at(state, path), content + path[-1].encode()))
    if note["rng"]:
        state = _replaced(state, ["context", "rng"], _global(was, content))
    return state


def _seeded(entry: Mapping[str, Any], content: bytes) -> Mapping[str, Any]:
    made = make(entry["kind"], entry["state"]) if entry.get("kind") else None
    if made is None:
        return entry
    seed(made, content)
    return {**entry, "state": state_of(made)}


def _global(was: Mapping[str, Any], content: bytes) -> dict[str, Any]:
    source = random.Random(content)
    with isolated_rng(()):
        torch.manual_seed(source.getrandbits(63))
        np.random.seed(source.getrandbits(32))
        random.seed(source.getrandbits(64))
        found = rng_state()
    devices = {}
    for name, state in was["devices"].items():
        device = torch.device(name)
        try:
            made = torch.Generator(device)
        except RuntimeError:  # there is no such device here, which is told elsewhere
            devices[name] = state
            continue
        devices[name] = made.manual_seed(source.getrandbits(63)).get_state()
    return {**found, "devices": devices}


def _replaced(tree: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    key, *rest = path
    return {**tree, key: _replaced(tree[key], rest, value) if rest else value}


def tell(loaded: Loaded, context: Context, ranks: Ranks | None) -> None:
    """Warn of what is not as before, once the state of another number of ranks was loaded.

    Also count anew how many batches the epoch has.
    """
    state: Any = loaded.tree
    note, size = state[OTHERS], 1 if ranks is None else ranks.size
    feed, counts = context.train, context.counts
    lines = []
    if feed is not None and feed.phase == "running" and feed.length is not None:
        counts.batches_per_epoch = counts.batch_in_epoch + max(0, feed.length - feed.position)
    if feed is not None:
        ours = context.steps.sync.data_ranks
        now = size if ours is None else max(ours) + 1
        lines += _of_batches(state["context"]["train"], feed.loader, note["data_ranks"], now)
    if ranks is not None and ranks.rank > 0:
        return  # rank 0 says it
    if note["rng"] or note["own"]:
        lines.append(
            "Random numbers (dropout, augmentation) are those of rank 0, without those of the others."
            if size == 1
            else "Each rank draws other random numbers (dropout, augmentation): they are derived from those of "
            "rank 0, the step and the rank."
        )
    if note["told"]:
        shown = ", ".join(note["told"][:5]) + (", ..." if len(note["told"]) > 5 else "")
        lines.append(f"What each rank had of its own is that of rank 0 now: {shown}.")
    warnings.warn(
        f"The checkpoint {loaded.path.name!r} is of a run with {number_of(note['ranks'])}, and this one has "
        f"{size}. It goes on with the same samples, weights and optimizers. "
        f"{'What changes:' if lines else 'Nothing changes.'} {' '.join(lines)}".strip(),
        RanksChanged,
        stacklevel=level_of_caller(),
    )


def _of_batches(saved: Mapping[str, Any], loader: Any, before: int, ranks: int) -> list[str]:
    was, now = saved["facts"].get("batch_size"), getattr(loader, "batch_size", None)
    lines = []
    if isinstance(was, int) and isinstance(now, int) and was * before != now * ranks:
        lines.append(
            f"A batch of all ranks together was of {was * before} samples, and is of {now * ranks} now "
            f"({now} at each): the gradients of a step are means over as many. A batch size of "
            f"{was * before / ranks:g} keeps it."
        )
    items = saved["facts"].get("items")
    if isinstance(items, int) and (items % before or items % ranks):
        lines.append(
            f"The {items} samples do not divide evenly: the last batches of an epoch repeat other samples, as the "
            "sampler fills them up."
        )
    return lines


def number_of(ranks: int) -> str:
    """Return a number of processes in words."""
    return "1 process" if ranks == 1 else f"{ranks} processes"
