"""A debugger for the command line."""

from __future__ import annotations

import inspect
import shlex
import signal
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

from statemachine_trainer.debugging.debugger_errors import BadBreakpoint, BadExpression
from statemachine_trainer.machine.driver import Until
from statemachine_trainer.machine.errors import StateMachineError, suggest
from statemachine_trainer.machine.loop import SEPARATOR
from statemachine_trainer.machine.signals import Moment
from statemachine_trainer.trainer import Trainer

HELP: Final = """\
step [N]        make one transition, or N
next            go on to the next state of this loop, over the loops inside
out             go on until this loop is left
continue        go on to the next breakpoint, or to the end
until NAME      go on until a state is entered, or a signal fires: validation, epoch_end:exit
break           list the breakpoints
break NAME [if EXPR]    stop there; break if EXPR stops anywhere
clear N         remove a breakpoint
rewind [N]      go N transitions back (1 unless told)
where           where the run stands, and what may come next; also info
print EXPR      a Python expression: trainer, context, model, batch, loss, torch
post EVENT      post an event, such as stop or validate
graph [LOOP]    the states, the one about to run marked
list            the source of the state about to run
help [COMMAND]  this list, or a line of it
quit            leave

The first letter is enough (graph: g). An empty line does again what was done last."""

_ALIASES: Final = {
    **dict.fromkeys(("info", "backtrace", "bt"), "where"),
    **dict.fromkeys(("finish", "return", "up"), "out"),
    **dict.fromkeys(("run", "go"), "continue"),
    **dict.fromkeys(("delete", "del"), "clear"),
    "breakpoint": "break",
    "breakpoints": "break",
    "source": "list",
    "pp": "print",
    "?": "help",
    "exit": "quit",
}
"""Words of other debuggers, and the command that does the same here."""

_ALONE: Final = ("next", "out", "continue", "where", "list", "quit")
"""Commands with nothing after them."""

_LONGEST: Final = 4000
"""Characters of a value that are printed."""


class Session:
    """Runs debugger commands on a fit that was started.

    Errors of the training are shown, and the run stands before the state that raised; it can be
    tried again, or gone back from. Ctrl-C pauses the run at the next boundary.

    Args:
        trainer: A trainer whose fit was started.
        console: Where to print.
        remember: How many boundaries are kept for `rewind`; 0 for none.
    """

    def __init__(self, trainer: Trainer, console: Console, *, remember: int = 50) -> None:
        self._trainer = trainer
        self._console = console
        self._last = ""
        self._commands: dict[str, Callable[[str], None]] = {
            "step": self._step,
            "next": self._next,
            "out": self._out,
            "continue": self._continue,
            "until": self._until,
            "break": self._break,
            "clear": self._clear,
            "rewind": self._rewind,
            "where": self._where,
            "print": self._print,
            "post": self._post,
            "graph": self._graph,
            "list": self._list,
            "help": self._help,
        }
        if remember:
            trainer.remember(last=remember)

    def do(self, line: str) -> bool:
        """Run one command; return whether the session continues.

        Commands may be cut short; of several that begin so, the first in the help is meant.
        """
        line = line.strip() or self._last
        self._last = line
        if not line:
            return True
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        name = self._named(word)
        try:
            if name is None:
                self._say(f"There is no command {word!r}. {self._meant(line)}", "red")
            elif rest and name in _ALONE:
                self._say(f"{name} takes nothing after it: {rest!r}. Try help {name}.", "red")
            elif name == "quit":
                return False
            else:
                self._commands[name](rest)
        except StateMachineError as error:
            self._say(f"{type(error).__name__}: {error}", "red")
        return True

    def _named(self, word: str) -> str | None:
        """Return the command that a word, or its beginning, stands for; None if there is none."""
        if word in _ALIASES:
            return _ALIASES[word]
        names = ("quit", *self._commands, *_ALIASES)
        found = next((name for name in names if name.startswith(word)), None)
        return None if found is None else _ALIASES.get(found, found)

    def _meant(self, line: str) -> str:
        """Say what may be meant by a line that begins with no command."""
        near = suggest(line.split()[0], [*self._commands, "quit"], cutoff=0.6)
        names = self._names()
        if not near and line.split(".")[0].split("[")[0].split("(")[0].strip() in names:
            near = f"To see a value: print {line}."
        return near or "help lists them."

    def greet(self) -> None:
        """Print where the run stands."""
        self._tell_place()

    # -- moving ----------------------------------------------------------------------------------

    def _step(self, rest: str) -> None:
        if rest and not (rest.isdecimal() and int(rest)):
            raise BadExpression(f"step {rest}: say how many transitions, such as step 3.")
        trainer = self._trainer

        def transitions() -> None:
            for number in range(int(rest or 1)):
                if number and (trainer.path is None or trainer.stopped_at is not None):
                    return
                trainer.step()

        self._guard(transitions)
        self._tell_place()

    def _next(self, _rest: str) -> None:
        path = self._trainer.path
        self._run(None if path is None else over(path))

    def _out(self, _rest: str) -> None:
        path = self._trainer.path
        self._run(None if path is None else out(path))

    def _continue(self, _rest: str) -> None:
        self._run(None)

    def _until(self, rest: str) -> None:
        if not rest:
            raise BadBreakpoint("Say until what: until validation.")
        trainer, came = self._trainer, []
        trainer.breakpoints.check_reachable(rest, "until")
        watch = trainer.board.watch(rest, lambda: came.append(True))
        try:
            self._run(rest)
        finally:
            watch.cancel()
        if trainer.path is None and not came:
            self._say(f"{rest} did not come before the end.", "red")

    def _run(self, until: Until) -> None:
        stood = self._trainer.path is not None
        self._guard(lambda: self._trainer.run(until))
        self._tell_place()
        if stood and self._trainer.path is None:
            for one in self._trainer.breakpoints:
                if not one.hits:
                    self._say(f"Breakpoint {one.number} was never met: {one}.")

    def _rewind(self, rest: str) -> None:
        if rest and not rest.isdecimal():
            raise BadExpression(f"rewind {rest}: say how many transitions, such as rewind 3.")
        self._say(str(self._trainer.rewind(int(rest or 1))), "cyan")
        self._tell_place()

    def _post(self, rest: str) -> None:
        self._trainer.post(rest)
        self._say(f"posted: {', '.join(self._trainer.driver.posted)}")

    # -- breakpoints -----------------------------------------------------------------------------

    def _break(self, rest: str) -> None:
        if not rest:
            for one in self._trainer.breakpoints:
                self._say(f"{one.number}: {one}, met {one.hits} times")
            if not len(self._trainer.breakpoints):
                self._say("No breakpoints.")
            return
        name, _, text = f" {rest} ".partition(" if ")
        condition = None
        if text.strip():
            code = _compiled(text.strip())

            def condition() -> Any:
                return self._value(code)

        made = self._trainer.breakpoints.add(
            name.strip() or None, when=condition, once=False, text=text.strip()
        )
        self._say(f"breakpoint {made.number}: {made}")

    def _clear(self, rest: str) -> None:
        numbers = shlex.split(rest)
        if not numbers or not all(one.isdecimal() for one in numbers):
            raise BadBreakpoint("Say the number of the breakpoint: clear 1. `break` lists them.")
        for one in numbers:
            self._trainer.breakpoints.remove(int(one))

    # -- looking ---------------------------------------------------------------------------------

    def _where(self, _rest: str) -> None:
        self._say(str(self._trainer.where()))

    def _print(self, rest: str) -> None:
        if not rest:
            raise BadExpression(
                f"Say what to print: print loss. Known: {', '.join(self._names())}."
            )
        text = repr(self._value(_compiled(rest)))
        self._say(text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ...")

    def _graph(self, rest: str) -> None:
        graph = self._trainer.graph()
        for line in str(graph.open(rest) if rest else graph).splitlines():
            self._say(line, "bold green" if "[running]" in line else "")

    def _list(self, _rest: str) -> None:
        trainer = self._trainer
        if trainer.path is None:
            self._tell_place()
            return
        loop: Any = trainer.driver.root
        *around, name = trainer.path.split(SEPARATOR)[1:]
        for one in around:
            loop = loop.loops_inside()[one]
        try:
            source = textwrap.dedent(inspect.getsource(getattr(loop, name)))
        except (OSError, TypeError):
            self._say(f"The source of {trainer.path} is not to be had.")
            return
        if self._console.is_terminal:
            self._console.print(Syntax(source, "python", background_color="default"))
        else:  # a file or another program gets each line whole
            self._say(source.rstrip("\n"))

    def _help(self, rest: str) -> None:
        name = self._named(rest) if rest else None
        lines = [line for line in HELP.splitlines() if line.split(" ")[0] == name]
        if rest and not lines:
            self._say(f"There is no command {rest!r}. {self._meant(rest)}", "red")
        else:
            self._say("\n".join(lines) or HELP)

    # -- parts -----------------------------------------------------------------------------------

    def _value(self, code: Any) -> Any:
        """Evaluate an expression. Users of a debugger can run any Python code."""
        try:
            return eval(code, self._names())
        except Exception as error:
            raise BadExpression(f"{code.co_filename}: {type(error).__name__}: {error}") from error

    def _names(self) -> dict[str, Any]:
        """Return what an expression sees."""
        trainer = self._trainer
        context = trainer.driver.context
        return {
            "torch": torch,
            "trainer": trainer,
            "t": trainer,
            "context": context,
            "model": getattr(context, "model", None),
            "batch": getattr(context, "batch", None),
            "loss": trainer.loss,
        }

    def _tell_place(self) -> None:
        lines = str(self._trainer.where()).splitlines()
        self._say(lines[0], "bold")
        for line in lines[1:]:
            if line.startswith(("  epoch", "  stopped", "  posted")):
                self._say(line)

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)

    def _guard(self, work: Callable[[], object]) -> None:
        """Train. Show errors of the training, and let Ctrl-C pause it."""
        try:
            with self._pausing_on_interrupt():
                work()
        except KeyboardInterrupt:
            self._say("Interrupted in the middle of a state; it will work again.", "red")
        except StateMachineError:
            raise
        except (Exception, SystemExit) as error:
            self._console.print(Text("".join(traceback.format_exception(error)), style="red"))

    @contextmanager
    def _pausing_on_interrupt(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def pause(_number: int, _frame: object) -> None:
            self._trainer.pause()
            signal.signal(signal.SIGINT, before)  # a second one does not wait for the boundary

        before = signal.signal(signal.SIGINT, pause)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _compiled(text: str) -> Any:
    """Compile an expression; its file name is its text, for errors.

    Raises:
        BadExpression: It is none.
    """
    try:
        return compile(text, text, "eval")
    except (SyntaxError, ValueError) as error:
        raise BadExpression(f"{text!r} is no expression: {error.args[0]}.") from error


# -- How far one command goes ---------------------------------------------------------------------


def over(path: str) -> Callable[[Moment], bool]:
    """Return a condition that holds at the next state of the same loop, or once the loop is left.

    Args:
        path: Path of the state about to run. What lies in loops inside its loop is passed over.
    """
    loop, left = path.rpartition(SEPARATOR)[0], out(path)

    def reached(moment: Moment) -> bool:
        return left(moment) or moment.target.rpartition(SEPARATOR)[0] == loop

    return reached


def out(path: str) -> Callable[[Moment], bool]:
    """Return a condition that holds once the loop of a state is left, or entered anew.

    Args:
        path: Path of the state about to run.
    """
    loop = path.rpartition(SEPARATOR)[0]
    root = path.partition(SEPARATOR)[0]

    def reached(moment: Moment) -> bool:
        # Of an evaluation in the midst of it nothing is known here.
        is_ours = moment.path.partition(SEPARATOR)[0] == root
        return is_ours and not moment.path.startswith(loop + SEPARATOR)

    return reached
