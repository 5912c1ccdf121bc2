"""Two pages of the reference that are made when the site is built: every command, and every signal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from statemachine_trainer import (
    ActiveLearningLoop,
    ClosureLoop,
    KFoldLoop,
    ManualLoop,
    SAMLoop,
    YieldingLoop,
    cli,
    graph_of,
)
from statemachine_trainer.graph.model import GraphState
from statemachine_trainer.machine import Loop
from statemachine_trainer.trainer import Trainer

SIGNALS = """# Signals by state

Each row is a state or loop and the signal that is fired when it is entered, before its work. Of each there are also
`"NAME:exit"`, when it is left, and `"NAME:EVENT"`, one for each event that it answers with. How names are written,
and who is called when, is in [signals](../signals.md).
"""
COMMANDS = "# Commands\n\nWhat `smt COMMAND --help` prints.\n"


def write_pages(folder: Path) -> None:
    """Write both pages into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"commands.md": commands(), "signals.md": signals()}.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # else it is built again
            path.write_text(text, encoding="utf-8")


def commands() -> str:
    """The page of all commands, with their arguments and options."""
    command = typer.main.get_command(cli.app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="smt")
    _, _, text = text.partition("## ")
    return COMMANDS + "\n## " + text.replace("```console", "```text").rstrip() + "\n"


def signals() -> str:
    """The page of all states of the loops that are ready to use."""
    trainer = Trainer()
    parts = [SIGNALS]
    for name in ("fit", "validate", "test", "predict"):
        parts += [f"## `{name}`\n", _table(trainer.graph(name).root)]
    steps: list[Loop] = [ManualLoop(), YieldingLoop(), ClosureLoop(), SAMLoop()]
    for loop in steps:
        parts += [f"## `{type(loop).__name__}`\n", _table(graph_of(loop, "optimizer").root)]
    for name, around in {"kfold": KFoldLoop(3), "learning": ActiveLearningLoop()}.items():
        root = graph_of(around, name).root
        parts += [f"## `{type(around).__name__}`\n", _table(root, without="fit")]
    return "\n".join(parts)


def _table(root: GraphState, without: str | None = None) -> str:
    lines = ["| signal | path | its work | answers |", "|---|---|---|---|"]
    for node in _walk(root, without):
        doc = re.sub(r"\s+", " ", (node.doc or "").split("\n\n")[0]).replace("|", "\\|")
        answers = ", ".join(f"`{one}`" for one in node.answers)
        lines.append(f"| `{node.name}` | `{node.path}` | {doc} | {answers} |")
    return "\n".join(lines) + "\n"


def _walk(node: GraphState, without: str | None) -> Iterator[GraphState]:
    yield node
    for child in node.children:
        if child.name != without:
            yield from _walk(child, without)
