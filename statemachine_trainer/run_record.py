"""The folder of a run: the record of how it was started, and how to start it again.

Beside the checkpoints stands `run.json`: the command line, the folder it was given in, the Python,
the versions, and a history of starts and ends. It is for people and for `smt resume`; nothing that
a run needs to go on is in it. What happens between a start and an end stands in the journal beside
it; see `observe.journal`.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from statemachine_trainer.files import missing_folder, read_json
from statemachine_trainer.machine.errors import StateMachineError

_log = logging.getLogger(__name__)

if TYPE_CHECKING:  # `smt resume` gets by without torch
    from statemachine_trainer.snapshot import Store

RECORD = "run.json"
JOURNAL = "journal.sqlite"
JOURNAL_FILES = (JOURNAL, f"{JOURNAL}-wal", f"{JOURNAL}-shm")
FINGERPRINTS = "fingerprints.bin"
FINGERPRINTS_OF_RANK = "fingerprints-{}.bin"
"""Those of rank 1 and above, which are begun anew with each start of a run."""
CONFIGURATION = "config.yaml"
OF_A_RUN = ("latest", "pins.json", RECORD, CONFIGURATION, *JOURNAL_FILES, FINGERPRINTS)
"""What stands beside the checkpoints of a run, and is set aside with them."""
RESUME_VARIABLE = "SMT_RESUME"
"""Where the environment has `auto` here, a first `fit` that says nothing of resuming is `resume="auto"`."""

_HISTORY = 1000
"""Entries kept; a run that is started over and over keeps the newest."""

_PATIENCE_WITH_GIT = 5.0
"""Seconds that git may take to say which commit it is, in a large repository on a slow disk."""

_LONGEST = 16 << 20
"""Bytes of a record that are read: a thousand entries take far less."""

_NOT_NOW = frozenset(
    {
        *(errno.ENOSPC, errno.EIO, errno.EACCES, errno.EPERM),
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.ESTALE),
    }
)
"""Errors that say nothing of what is in a file."""

_TOLD: set[Path] = set()
"""The folders of runs whose record cannot be written, which the log has said."""

Facts = None | bool | int | float | str


class BadRecord(StateMachineError):
    """A `run.json` that is not the record of a run, or cannot be written."""


class CannotResume(StateMachineError):
    """A run that cannot be started again by its record."""


@dataclass(frozen=True)
class Configuration:
    """What `smt train` was told, options that were left out included.

    Attributes:
        target: `FILE:FUNCTION`.
        folder: Where the code lies.
        text: The options as YAML.
        values: The same as plain values, by name.
    """

    target: str
    folder: Path
    text: str
    values: Mapping[str, object]


_configured: list[Configuration] = []
"""The configuration of this process, if there is one."""


def configure(configuration: Configuration | None) -> None:
    """Note the configuration of this process: the runs that it starts keep it in their folders."""
    _configured[:] = [] if configuration is None else [configuration]


def configuration() -> Configuration | None:
    """Return the configuration of this process; None unless it is `smt train`."""
    return _configured[0] if _configured else None


_launched: list[str] = []
"""The command of `smt launch` that has started this process as one of its ranks, without options of the function."""


def note_launch(command: Sequence[str]) -> None:
    """Note the command that has started this process as one of several ranks: `smt resume` gives it again."""
    _launched[:] = command


@dataclass(frozen=True)
class Record:
    """How a run was started, and what became of it.

    Args:
        command: The command line, the Python first; None if there was none that could be repeated.
        folder: The working directory.
        versions: Of Python and of the packages that matter.
        history: Events with their time: started, resumed, stopped, ended, failed.
        commit: The commit of git that the script stood at, "-dirty" added if files differed from it; None without git.
    """

    command: list[str] | None
    folder: str
    versions: dict[str, str]
    history: list[dict[str, Facts]] = field(default_factory=list)
    commit: str | None = None

    @classmethod
    def of_this_process(cls, versions: Mapping[str, str]) -> Record:
        """Describe the process that asks."""
        folder = _folder_of_code()
        return cls(command_line(), str(Path.cwd()), dict(versions), commit=commit_of(folder))


def command_line() -> list[str] | None:
    """Return the command that started this process; None at a prompt, in a notebook or from a pipe."""
    if _launched:
        return [*_launched, *sys.argv[2:]]
    arguments = sys.orig_argv[1:]
    interactive = hasattr(sys, "ps1") or bool(sys.flags.interactive)
    if interactive or not sys.executable or not arguments or arguments[-1] == "-":
        return None
    return [sys.executable, *arguments]


def _folder_of_code() -> Path:
    """Return where the script lies; the working directory at a prompt, or for a script that was installed."""
    if _configured:
        return _configured[0].folder
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if script is None or Path(script).absolute().is_relative_to(sys.prefix):
        return Path.cwd()
    return Path(script).absolute().parent


_asked: dict[Path, subprocess.Popen[bytes]] = {}
"""Those that were asked for the commit of a folder, and whose answer nobody has read yet."""

_known: set[Path] = set()
"""Folders whose commit was asked for."""


def ask_for_commit() -> None:
    """Ask git for the commit that the record will need, and do not wait: git looks at all files that it knows."""
    folder = _folder_of_code()
    if folder not in _known:
        _known.add(folder)
        with suppress(OSError, ValueError, subprocess.SubprocessError):
            _asked[folder] = _ask_git(folder)


@cache  # what was loaded is the code of the process, whatever is committed later
def commit_of(folder: Path) -> str | None:
    """Return the commit of git that a folder stands at; None if there is none, or no git.

    "-dirty" is added if files that git knows differ from it.
    """
    _known.add(folder)
    try:
        with _asked.pop(folder, None) or _ask_git(folder) as git:
            try:
                answer, _ = git.communicate(timeout=_PATIENCE_WITH_GIT)
            finally:
                if git.poll() is None:
                    git.kill()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    found = answer.decode(errors="replace").strip()
    return None if git.returncode else found or None


def _ask_git(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=folder,
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # it is only looked at
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def read_record(root: Path) -> Record | None:
    """Read the record in the folder of a run; None if there is none.

    Raises:
        BadRecord: There is a `run.json` that is something else.
    """
    path = root / RECORD
    try:
        content = read_json(path, _LONGEST)
        record = Record(
            **{name: content[name] for name in ("command", "folder", "versions", "history")},
            commit=content.get("commit"),  # earlier versions wrote none
        )
        _check(record)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BadRecord(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise BadRecord(f"{path} is not the record of a run.") from error
    return record


def note(root: Path, event: str, versions: Mapping[str, str], **facts: Facts) -> None:
    """Add an event to the record of a run. One that says "started" or "resumed" says how, too.

    Nobody needs the record to go on with the run, so nothing that is wrong with it stops one: what is no record is
    set aside, and the log says so; once, where it cannot be written.
    """
    try:
        _note(root, event, versions, facts)
    except BadRecord as error:
        if root not in _TOLD:
            _TOLD.add(root)
            _log.warning(
                "%s The run goes on, and `smt resume` will not know of it. Make room in the folder, or let "
                "this user write there.",
                error,
            )


def _note(root: Path, event: str, versions: Mapping[str, str], facts: Mapping[str, Facts]) -> None:
    here, configured = Record.of_this_process(versions), configuration()
    if configured is not None:
        start = _launched or [sys.executable, "-m", __package__ or "", "train", configured.target]
        here = replace(here, command=[*start, "--config", str(root / CONFIGURATION)])
    try:
        record = read_record(root) or here
    except BadRecord as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NOT_NOW:
            raise  # it may be whole
        aside = set_damaged_aside(root, (RECORD,))
        _log.warning("%s It is now in %s, and the run begins a new one.", error, aside)
        record = here
    if event in ("started", "resumed"):
        record = replace(here, history=record.history)
    entry = {"event": event, "at": datetime.now(UTC).isoformat(timespec="microseconds"), **facts}
    record = replace(record, history=[*record.history, entry][-_HISTORY:])
    try:
        root.mkdir(parents=True, exist_ok=True)
        if configured is not None and event in ("started", "resumed"):
            _replace(root / CONFIGURATION, configured.text)
        _replace(root / RECORD, json.dumps(asdict(record), indent=2) + "\n")
    except OSError as error:
        raise BadRecord(f"{root / RECORD} cannot be written: {error.strerror or error}.") from error


def set_aside(store: Store) -> Path | None:
    """Move the checkpoints of an earlier run, and its record, to a folder of their own below.

    Returns:
        That folder; None if there was nothing.
    """
    store.wait()
    checkpoints = [info.path for info in store.list()]
    if not checkpoints:
        return None
    # These first: a folder named in them is still in place.
    aside = move_aside(store.root, OF_A_RUN)
    for path in reversed(
        checkpoints
    ):  # the newest first: what is left is a run that may be resumed
        path.rename(aside / path.name)
    return aside


def set_damaged_aside(root: Path, names: Sequence[str]) -> Path:
    """Move files that are not what they should be to a new folder of their own below, such as `damaged-1`.

    Raises:
        BadRecord: They cannot be moved.
    """
    try:
        return move_aside(root, names, "damaged")
    except OSError as error:
        what = ", ".join(names)
        raise BadRecord(
            f"{what} in {root} cannot be set aside: {error.strerror or error}."
        ) from error


def move_aside(root: Path, names: Sequence[str], what: str = "earlier") -> Path:
    """Move files of an earlier run, as far as they are there, to a new folder of their own below.

    Raises:
        OSError: They cannot be moved.
    """
    numbers = [p.name.partition("-")[2] for p in root.glob(f"{what}-*")]
    number = 1 + max((int(n) for n in numbers if n.isdecimal() and n.isascii()), default=0)
    aside = root / f"{what}-{number}"
    aside.mkdir()
    for name in names:
        with suppress(FileNotFoundError):
            (root / name).rename(aside / name)
    return aside


# -- starting again --------------------------------------------------------------------------------


def wants_resume() -> bool:
    """Whether this process was started to go on with a run, as `smt resume` does."""
    return os.environ.get(RESUME_VARIABLE) == "auto"


def resume_command(root: Path) -> tuple[list[str], Path]:
    """Return the command that goes on with a run, and the folder to give it in.

    Raises:
        CannotResume: The run has no record, or none that can be repeated here.
    """
    if not root.is_dir():
        raise CannotResume(missing_folder(root))
    record = read_record(root)
    if record is None:
        parent = f" The run is {root.parent}." if (root.parent / RECORD).is_file() else ""
        raise CannotResume(
            f"{root} has no {RECORD}, so how it was started is unknown.{parent} Start the script again with "
            f"fit(..., resume={str(root)!r})."
        )
    folder = Path(record.folder)
    if record.command is None:
        raise CannotResume(
            f"The run {root} was started at a prompt or in a notebook. Go on there with fit(..., resume='auto')."
        )
    if not folder.is_dir():
        raise CannotResume(f"The run {root} was started in {folder}, which is gone.")
    if not os.access(record.command[0], os.X_OK):
        raise CannotResume(
            f"The run {root} was started with {record.command[0]}, which is gone. Start it again yourself: "
            f"cd {folder} && {RESUME_VARIABLE}=auto python {' '.join(record.command[1:])}"
        )
    return record.command, folder


def resume(root: Path) -> NoReturn:
    """Become the process that goes on with a run: signals and exit code are its own.

    Raises:
        CannotResume: The run has no record, or none that can be repeated here.
    """
    command, folder = resume_command(root)
    environment = {**os.environ, RESUME_VARIABLE: "auto"}
    os.chdir(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "posix":
        os.execve(command[0], command, environment)
    raise SystemExit(subprocess.call(command, env=environment))


# -- parts -----------------------------------------------------------------------------------------


def _check(record: Record) -> None:
    """Refuse a record whose parts are of other types.

    Raises:
        TypeError: One is.
    """
    command = record.command
    if command is not None and not (_are_texts(command) and command):
        raise TypeError("the command is no list of texts")
    if not isinstance(record.folder, str) or not isinstance(record.history, list):
        raise TypeError("the folder or the history is malformed")
    if not isinstance(record.commit, str | None):
        raise TypeError("the commit is no text")
    if not isinstance(record.versions, dict) or not _are_texts([*record.versions.values()]):
        raise TypeError("the versions are malformed")
    if not all(
        isinstance(one, dict) and isinstance(one.get("event"), str) for one in record.history
    ):
        raise TypeError("the history is malformed")


def _are_texts(values: Sequence[object]) -> bool:
    return isinstance(values, list) and all(isinstance(one, str) for one in values)


def _replace(path: Path, text: str) -> None:
    """Write a file so that a reader or a crash sees the old one or the new one."""
    from statemachine_trainer.snapshot.filesystem import temporary_name

    # By this name the store clears it away if a crash leaves it here.
    temporary = path.with_name(temporary_name(path.name))
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
