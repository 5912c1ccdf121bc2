"""What the folder of a run, or one checkpoint, holds: for people."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from statemachine_trainer.cli.columns import Column, lay_out
from statemachine_trainer.cli.common import printable
from statemachine_trainer.intervals import epoch_in_words
from statemachine_trainer.observe.epoch_table import MetricsTable
from statemachine_trainer.observe.kept import kept_checkpoints
from statemachine_trainer.observe.restarts import restart_in_words
from statemachine_trainer.observe.ring import BadRing
from statemachine_trainer.observe.run import BadJournal, Run, is_run
from statemachine_trainer.run_record import Record, read_record
from statemachine_trainer.snapshot import Best, Damaged, Info, Loaded, NotACheckpoint, Store
from statemachine_trainer.snapshot.checkpoint_folder import MANIFEST
from statemachine_trainer.snapshot.frozen import FROZEN
from statemachine_trainer.snapshot.marks import is_mark
from statemachine_trainer.snapshot.ranked import ranks_of
from statemachine_trainer.snapshot.reading import dtypes_of_parts
from statemachine_trainer.snapshot.retention import BadRetention

_EVENTS = 5
_EPOCHS = 10


def inspect(path: Path, console: Console, *, whole: bool = False, name: str = "") -> bool:
    """Print what a run folder or a checkpoint holds.

    Args:
        path: The folder of a run, or of one checkpoint.
        console: Where to print.
        whole: Read every byte of every checkpoint of the run, not only of the newest.
        name: What to call it; its path unless given.

    Returns:
        Whether all that was read is whole.

    Raises:
        NotACheckpoint: It is neither.
        Damaged: It is a checkpoint that is not what was written, or no checkpoint of the run is whole.
    """
    if (path / MANIFEST).exists() or not path.is_dir():
        _print_checkpoint(Store(path.parent).load(path), console, name)
        return True
    return _print_run(path, console, whole=whole, called=name or str(path))


# -- a run -----------------------------------------------------------------------------------------


def _print_run(root: Path, console: Console, *, whole: bool, called: str) -> bool:
    record, store = read_record(root), Store(root)
    infos = store.list()
    if record is None and not infos and not is_run(root):
        raise NotACheckpoint(f"{root} holds no checkpoint and no record of a run.")
    console.print(_plain(f"Run {called}"), style="bold", soft_wrap=True)
    if record is not None:
        for name, value in _facts_of(record):
            _print_fact(name, value, console)
    whole_journal = not is_run(root) or _print_recorded(Run(root), console)
    if not infos:
        ended = is_run(root) and whole_journal and Run(root).status == "ended"
        would = "the run has ended without one" if ended else "the run would begin"
        console.print(f"No checkpoint{'' if ended else ' yet'}: {would}.")
        return whole_journal
    damages = {info.path: info.damage for info in infos if info.damage is not None}
    if whole:
        damages.update(_read_all(store, infos))
    newest = _newest(store, damages)
    _print_checkpoints(infos, damages, console)
    for path, damage in damages.items():
        console.print(_plain(f"Damaged: {path.name}: {damage}"), style="red")
    if newest is None:
        raise Damaged(root, "no checkpoint in it is whole")
    console.print(_plain(_onward(newest)))
    return not damages and whole_journal


def _print_recorded(run: Run, console: Console) -> bool:
    """Print what black box and journal tell; tell whether they could be read."""
    try:
        status, place, epochs, settings = run.status, run.progress(), run.epochs(), run.settings()
        hyperparameters, best = run.hyperparameters(), _best_of(run)
        ring, restarts = next(iter(run.rings()), None), run.restarts()
    except (BadJournal, BadRing) as error:
        console.print(_plain(f"Damaged: {error}"), style="red")
        return False
    where = f" in {ring.state}" if ring is not None and status in ("running", "killed") else ""
    reached = "" if place is None else f", {place[0]} epochs and {place[1]} steps done"
    _print_fact("state", f"{status}{where}{reached}", console)
    hidden = len(restarts) - _EVENTS
    if hidden > 0:
        _print_fact("restarts", f"{hidden} earlier ones, then", console)
    for number, one in enumerate(restarts[-_EVENTS:]):
        name = "restarts" if number == 0 and hidden <= 0 else ""
        told = f"{one.at:%Y-%m-%d %H:%M:%S} UTC  {restart_in_words(one.facts)}"
        _print_fact(name, told, console)
    if best:
        _print_fact("best", best, console)
    if settings:
        written = ", ".join(f"{name}={value}" for name, value in settings.items())
        _print_fact("settings", written, console)
    # Settings stand above; what is off is left out.
    others = {
        k: v for k, v in hyperparameters.items() if k not in settings and v not in (None, False)
    }
    if others:
        written = ", ".join(f"{name}={value}" for name, value in others.items())
        _print_fact("hparams", written, console)
    if epochs:
        table = MetricsTable(width=console.width)
        table.load_state_dict({"records": [asdict(one) for one in epochs[-_EPOCHS:]]})
        for line in table.lines():
            console.print(_plain(line), soft_wrap=True)
    return True


def _facts_of(record: Record) -> Iterator[tuple[str, str]]:
    command = "at a prompt or in a notebook" if record.command is None else " ".join(record.command)
    yield "command", command
    yield "in", str(record.folder)
    yield "versions", _versions(record.versions)
    if record.commit is not None:
        yield "commit", record.commit
    hidden = len(record.history) - _EVENTS
    if hidden > 0:
        yield "history", f"{hidden} earlier events, then"
    for number, one in enumerate(record.history[-_EVENTS:]):
        rest = ", ".join(f"{k} {v}" for k, v in one.items() if k not in ("event", "at"))
        at = str(one.get("at"))[:19].replace("T", " ")
        name = "history" if number == 0 and hidden <= 0 else ""
        yield name, f"{at} UTC  {one['event']}" + (f" ({rest})" if rest else "")


def _onward(newest: Loaded) -> str:
    """Say what a run would go on from."""
    name, said = newest.path.name, newest.metadata
    if "state" in said and said["state"] is None:
        return f"The run has ended, with {name}. It goes on from there if its limit is raised."
    if "state" not in said:
        return f"No run goes on from {name}: it is not the checkpoint of a trainer."
    return f"The run goes on from {name}: {_position(said)}."


def _read_all(store: Store, infos: Sequence[Info]) -> dict[Path, str]:
    found = {}
    for info in infos:
        try:
            store.load(info.path)
        except (Damaged, NotACheckpoint) as error:
            found[info.path] = str(error)
    return found


def _newest(store: Store, damages: dict[Path, str]) -> Loaded | None:
    """Find what a run would go on from, as it does; note the damage that is met on the way."""
    for info in reversed(store.list()):
        if info.path in damages:
            continue
        try:
            return store.load(info.path)
        except (Damaged, NotACheckpoint) as error:
            damages[info.path] = str(error)
    return None


def _print_checkpoints(
    infos: Sequence[Info], damages: Mapping[Path, str], console: Console
) -> None:
    best = _best_by_rule(infos)
    damaged = [info.path in damages for info in infos]
    said = [info.metadata for info in infos]
    states = [
        "damaged" if bad else str(_state(one)).rpartition(".")[2]
        for one, bad in zip(said, damaged, strict=True)
    ]
    columns = [
        Column("checkpoint", [printable(info.path.name) for info in infos]),
        Column("before state", [printable(one) for one in states]),
        Column("epochs", [printable(str(one.get("epoch", ""))) for one in said], right=True),
        Column("batches", [printable(str(one.get("batch", ""))) for one in said], True, spare=1),
        Column("size", ["" if one.damage else _size(one.size) for one in infos], True, spare=2),
        Column("written", [_written(one) for one in infos], spare=3),
    ]
    metrics = [
        [*_metrics(info.metadata.get("metrics"), best=best.get(info.path, ()))] for info in infos
    ]
    styles = ["red" if one else "" for one in damaged]
    for line in lay_out(columns, "metrics", metrics, width=console.width, styles=styles):
        console.print(line, soft_wrap=True)


def _written(info: Info) -> str:
    return "" if info.damage else f"{info.created.astimezone():%m-%d %H:%M:%S}"


def _best_by_rule(infos: Sequence[Info]) -> dict[Path, list[str]]:
    """Return the metrics by which a checkpoint is the best one, of those that the run keeps the best by."""
    found: dict[Path, list[str]] = {}
    rules = next((one.metadata["best"] for one in reversed(infos) if "best" in one.metadata), None)
    for metric, mode in rules.items() if isinstance(rules, Mapping) else ():
        with suppress(BadRetention):
            for place in Best(metric, mode=mode).choose(infos):
                found.setdefault(infos[place].path, []).append(metric)
    return found


# -- a checkpoint ----------------------------------------------------------------------------------


def _print_checkpoint(loaded: Loaded, console: Console, name: str) -> None:
    said, context = loaded.metadata, _at(loaded.tree, "context")
    console.print(_plain(f"Checkpoint {name or loaded.path}"), style="bold", soft_wrap=True)
    for name, value in (
        ("versions", _versions(loaded.versions)),
        ("goes on", _position(said)),
        ("ranks", ranks_of(loaded.tree) if ranks_of(loaded.tree) > 1 else ""),
        ("posted", ", ".join(map(str, _at(loaded.tree, "machine", "posted") or ())) or "nothing"),
        ("metrics", "  ".join(_metrics(said.get("metrics"))) or "none of this moment"),
        ("earlier", "  ".join(_metrics(said.get("earlier_metrics")))),
        ("trained", _trained(said)),
        *(("optimizer", line) for line in _optimizers(_at(context, "optimizers"))),
        ("frozen", _left_out(loaded.tree)),
        (
            "callbacks",
            ", ".join(str(_at(one, "kind")) for one in _at(loaded.tree, "callbacks") or ()),
        ),
    ):
        if value:
            _print_fact(name, str(value), console)
    weights = _at(context, "model", "weights")
    if isinstance(weights, Mapping):
        _print_weights(weights, loaded.path, console)
    else:
        console.print("It holds no weights of a model.")


def _left_out(tree: Any) -> str:
    left = _at(tree, FROZEN)
    return f"{len(left)} weights are left out: the script makes them" if left else ""


def _optimizers(slots: Any) -> Iterator[str]:
    for slot in slots or ():
        groups = _at(slot, "optimizer", "param_groups") or ()
        rates = ", ".join(
            f"{_at(group, 'lr'):.4g}" for group in groups if _is_number(_at(group, "lr"))
        )
        kinds = _at(slot, "kinds")
        schedulers = f", with {', '.join(map(str, kinds))}" if kinds else ""
        steps, window = _at(slot, "steps"), _at(slot, "window")
        waiting = f", {window} backward passes since the last" if window else ""
        yield f"{_at(slot, 'kind')}, learning rate {rates}, {steps} steps{waiting}{schedulers}"


def _print_weights(weights: Mapping[Any, Any], folder: Path, console: Console) -> None:
    tensors: dict[Any, tuple[torch.dtype | None, tuple[int, ...]]] = {
        name: (value.dtype, tuple(value.shape))
        for name, value in weights.items()
        if isinstance(value, torch.Tensor)
    }
    marks = {name: value for name, value in weights.items() if is_mark(value)}
    if marks:
        kinds = dtypes_of_parts(folder)
        for name, mark in marks.items():
            tensors[name] = (kinds.get(mark["cut_up"]), tuple(mark["shape"]))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("weights", "shape", "type", "size"):
        table.add_column(name, justify="right" if name == "size" else "left")
    numbers = size = 0
    for name in (name for name in weights if name in tensors):
        kind, shape = tensors[name]
        count = math.prod(shape)
        taken = 0 if kind is None else count * kind.itemsize
        numbers, size = numbers + count, size + taken
        shown = " x ".join(map(str, shape)) or "one number"
        said = "a part is missing" if kind is None else str(kind).removeprefix("torch.")
        table.add_row(_plain(name), _plain(shown), _plain(said), _plain(_size(taken)))
    console.print(table)
    parts = f"; {len(marks)} of them in parts" if marks else ""
    total = f"{len(tensors)} tensors, {numbers:,} numbers, {_size(size)}{parts}"
    console.print(total, highlight=False)


def _print_fact(name: str, value: str, console: Console) -> None:
    """Print a line, in a terminal wrapped beside its name; a word, such as a path, is never cut."""
    head = f"  {name:<10}"
    text = printable(value, keep="\n")
    if not console.is_terminal:
        console.print(Text(head + text), soft_wrap=True)
        return
    lines = textwrap.wrap(
        text,
        max(20, console.width - len(head)),
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )
    for line in lines or [""]:
        console.print(Text(head + line), soft_wrap=True)
        head = " " * len(head)


def _best_of(run: Run) -> str:
    """Return the best value of each metric that the run keeps the best by, and its checkpoint."""
    kept = kept_checkpoints(run.path)
    known = run.metrics() if kept else {}
    found = []
    for name in kept[-1].rules if kept else ():
        if name in known and (point := run.best(name)) is not None:
            there = f", in {point.path.name}" if point.path is not None else ""
            found.append(f"{name} {_number(point.value)} at step {point.step}{there}")
    return "; ".join(found)


# -- parts -----------------------------------------------------------------------------------------


def _plain(value: object) -> Text:
    """Return text that can hold neither markup nor escape sequences of the terminal."""
    return Text(printable(str(value), keep="\n"))


def _at(tree: Any, *keys: str) -> Any:
    """Return what lies at a place of a tree, None if there is no such place."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _state(said: Mapping[str, object]) -> object:
    return said["state"] or "(the end)" if "state" in said else ""


def _position(said: Mapping[str, object]) -> str:
    if "state" not in said:
        return "not: it is not the checkpoint of a trainer"
    if said["state"] is None:
        return "not, as the fit has ended; from its end, if the limit is raised"
    state, epoch, batches = str(said["state"]), said.get("epoch"), said.get("batch_in_epoch")
    if type(epoch) is not int:
        return f"before {state}"
    where = epoch_in_words(state, epoch)
    within = "" if batches is None or where.endswith("done") else f", {batches} batches into it"
    return f"before {state}, {where}{within}"


def _trained(said: Mapping[str, object]) -> str:
    seconds = said.get("seconds")
    took = f", {seconds:.1f} s" if _is_number(seconds) else ""
    names = [
        f"{said[name]} {name}{plural}"
        for name, plural in (("batch", "es"), ("step", "s"))
        if name in said
    ]
    return ", ".join(names) + took


def _metrics(values: object, best: Collection[str] = ()) -> Iterator[str]:
    """Yield each metric with its value, those that are the best first."""
    if isinstance(values, Mapping):
        for name, value in sorted(values.items(), key=lambda one: one[0] not in best):
            yield printable(f"{name} {_number(value)}{' (best)' if name in best else ''}")


def _number(value: object) -> str:
    return f"{value:.4g}" if _is_number(value) else str(value)


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _size(number: int) -> str:
    """Return bytes as people write them."""
    if number < 1000:
        return f"{number} B"
    power = min(4, int(math.log10(number)) // 3)
    return f"{number / 1000**power:.3g} {['B', 'kB', 'MB', 'GB', 'TB'][power]}"
