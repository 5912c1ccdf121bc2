"""The recorder of a run: keeps its black box and its journal while a trainer works, and listens."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from statemachine_trainer import run_record
from statemachine_trainer.control.listener import Listener
from statemachine_trainer.control.ownership import FolderInUse, Ownership
from statemachine_trainer.control.processes import attempt_of_process, rank_of_process
from statemachine_trainer.files import check_writable, path_given
from statemachine_trainer.graph.graph import Graph
from statemachine_trainer.intervals import Every
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.settings_checks import flags, whole_number
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.keywords import HasSettings
from statemachine_trainer.observe.blackbox import BlackBox, Mark, read_blackbox
from statemachine_trainer.observe.journal import Journal
from statemachine_trainer.observe.readings import Readings
from statemachine_trainer.observe.recoveries import watch_recoveries
from statemachine_trainer.observe.ring import BadRing
from statemachine_trainer.parallel.cut_up import is_cut_up
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.version import __version__

if TYPE_CHECKING:
    from statemachine_trainer.observe.fingerprint_writer import FingerprintWriter
    from statemachine_trainer.observe.fingerprints import Fingerprints

_log = logging.getLogger(__name__)


class RunFolder(HasSettings):
    """The folder of a run, and what is recorded in it: `Trainer(run=RunFolder("runs/mine"))`.

    Of several processes of one run each has a black box of its own, and rank 0 (environment `RANK`)
    keeps the journal and `run.json`.

    Args:
        folder: Where; made when the first fit begins. That of the checkpoints, if there are any.
        blackbox: Keep the last transitions (`smt blackbox`).
        journal: Keep metrics, epochs, checkpoints and the graph (`Run`, `smt inspect`).
        log_every: Batches between two readings of what was logged with `on_step`, or else of the
            loss; 0 for none.
        requests: Take requests of other processes of this user, such as `smt post RUN stop`.

    Raises:
        SettingError: `log_every` is no whole number from 0.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        blackbox: bool = True,
        journal: bool = True,
        log_every: int = 50,
        requests: bool = True,
    ) -> None:
        flags(self, blackbox=blackbox, journal=journal, requests=requests)
        self.path = path_given(folder)
        self.blackbox = blackbox
        self.journal = journal
        self.log_every = whole_number(self, "log_every", log_every)
        self.requests = requests

    @classmethod
    def of(
        cls, run: RunFolder | str | Path | bool | None, checkpoints: Path | None
    ) -> RunFolder | None:
        """Settle what `Trainer(run=..., checkpoints=...)` means.

        Args:
            run: A folder or its settings; None or True for that of the checkpoints, False for none.
            checkpoints: The folder of the checkpoints, if there are any.

        Returns:
            The folder, or None.

        Raises:
            SettingError: The two are different, or True was given and there are no checkpoints.
        """
        if run is False or (run is None and checkpoints is None):
            return None
        if run is True and checkpoints is None:
            raise SettingError("Trainer(run=True) needs a folder: Trainer(run='runs/name').")
        if run is None or run is True:
            return cls(checkpoints or "")
        found = run if isinstance(run, RunFolder) else cls(run)
        if checkpoints is not None and found.path.resolve() != checkpoints.resolve():
            raise SettingError(
                f"The run is in {str(found.path)!r} and its checkpoints in {str(checkpoints)!r}. "
                "A run has one folder: leave out one of the two."
            )
        return found


class Recorder:
    """Records the fits of one trainer.

    Args:
        folder: What is recorded, and where.
        drivers: The drivers of the trainer, the fit's first.
        settings: Those that the trainer was made with.
        fingerprints: How often fingerprints are taken; None for never.

    Attributes:
        owner: Who holds the folder; what is recorded waits while it is another run's. None: nobody asks.
        hyperparameters: Returns those of the fit by where they come from; None if nobody knows any.
        set_since: Settings that were changed after the checkpoint that the run goes on from, by name.
        told: Returns settings and what tells of the data, for those who compare runs; None if nobody knows.
    """

    def __init__(
        self,
        folder: RunFolder,
        drivers: Sequence[Driver],
        settings: Mapping[str, object],
        fingerprints: Every | None = None,
    ) -> None:
        self.folder = folder
        self._every = fingerprints
        self._prints: FingerprintWriter | None = None
        self._fingerprints: Fingerprints | None = None
        self._drivers = drivers
        self._settings = {name: repr(value) for name, value in settings.items()}
        self._box: BlackBox | None = None
        self._journal: Journal | None = None
        self._listener: Listener | None = None
        self._removers: list[Callable[[], None]] = []
        self._inside: list[Driver] = []
        self._keeps_record = False
        self._restart: dict[str, Any] | None = None
        self.owner: Ownership | None = None
        self.hyperparameters: Callable[[], Mapping[str, object]] | None = None
        self.set_since: dict[str, object] = {}
        self.told: Callable[[], Mapping[str, object]] | None = None

    @property
    def _fit(self) -> Driver:
        return self._drivers[0]

    def check_writable(self) -> None:
        """Make the folder, and refuse one in which nothing can be written.

        Raises:
            CannotWrite: It is one.
        """
        check_writable(self.folder.path, "Trainer(run=...)")

    def check_free(self) -> None:
        """Refuse a folder into which another process is writing at this moment.

        Raises:
            FolderInUse: One is, as its black box says. (What runs on another machine is not seen.)
        """
        attempt = attempt_of_process() if rank_of_process() == 0 else 0
        self._restart = {"attempt": attempt} if attempt else None
        try:
            rings = read_blackbox(self.folder.path)
        except BadRing:  # it will be written anew
            return
        if attempt:
            from statemachine_trainer.observe.restarts import what_was_lost  # few runs need it

            # Now, because the other ranks begin black boxes of their own once they have met this one.
            self._restart = what_was_lost(rings, attempt)
        for ring in rings:
            mine = ring.rank == rank_of_process()
            if mine and ring.pid != os.getpid() and ring.status == "running":
                path = self.folder.path
                raise FolderInUse(
                    f"Process {ring.pid} is running in {str(path)!r}, and a folder is that of one run. Stop it "
                    f"(`smt post {path} stop`), wait for its end, or choose another folder."
                )

    def begin(self, checkpoint: Path | None, *, keeps_record: bool, ended: bool = False) -> None:
        """Begin to record a fit that begins, or goes on from a checkpoint.

        Args:
            checkpoint: The checkpoint; of another folder, the run begins in this one. None: it begins.
            keeps_record: Whether `run.json` is to be kept here: nobody else does.
            ended: Whether the fit had ended at that checkpoint, and stays so: its black box and its
                record say that already.
        """
        root = self.folder.path
        self.set_since = {}
        self.close()
        self._keeps_record = keeps_record and rank_of_process() == 0
        if rank_of_process() == 0:
            self._begin_journal(checkpoint)
        self._begin_fingerprints(checkpoint)
        if ended:
            return
        if self._restart is not None:
            self._note("restart", {**self._restart, "checkpoint": checkpoint and checkpoint.name})
            self._restart = None
            if self._journal is not None:
                self._journal.flush()  # the next rank may be lost at once
        if self._keeps_record:
            event = "started" if checkpoint is None else "resumed"
            facts = {} if checkpoint is None else {"checkpoint": str(checkpoint)}
            run_record.note(root, event, _versions(), **facts)
        if self.folder.blackbox:
            self._box = BlackBox(root, self._drivers)
        self._listen()

    def go_on(self) -> None:
        """Go on recording a fit that is called again."""
        self._note_beginning()

    @contextmanager
    def recording(self, driver: Driver) -> Iterator[None]:
        """Record what a driver does within the block, and how it ends."""
        if self._box is not None and self._box.pid != os.getpid():
            self._box.close()  # of the process that this one was forked from
            self._box = BlackBox(self.folder.path, self._drivers)
        if driver is self._fit:
            self._listen()
        self._inside.append(driver)
        try:
            yield
        except BaseException as error:
            self._leave(error)
            raise
        self._leave(None)

    def checkpoint_written(self, path: Path) -> None:
        """Note a checkpoint."""
        self._note("checkpoint", {"name": path.name})
        if self._fingerprints is not None:
            self._fingerprints.at_checkpoint(path.name)

    def settings_changed(self, changed: Mapping[str, Any]) -> None:
        """Note settings that were changed while the run goes on."""
        self._note("set", changed)
        if self._journal is not None:
            self._journal.flush()

    def place(self) -> tuple[int | None, int | None]:
        """Return where journal and fingerprints stand, for `rewind_to`; None for one that is not there."""
        if self._fingerprints is not None:
            self._fingerprints.flush()
        prints = None if self._prints is None else self._prints.place()
        return None if self._journal is None else self._journal.place(), prints

    def rewind_to(self, place: tuple[int | None, int | None]) -> None:
        """Take out what was recorded since it stood there: it will be recorded again."""
        journal, prints = place
        if self._journal is not None and journal is not None:
            self._journal.rewind_to(journal)
            self._journal.close()  # the run is at rest
        if self._fingerprints is not None and self._prints is not None and prints is not None:
            self._fingerprints.flush()
            self._prints.rewind_to(prints)

    def close(self) -> None:
        """Record no more; what was recorded stays."""
        for remove in self._removers:
            remove()
        self._removers = []
        if self._box is not None:
            self._box.close()
        if self._journal is not None:
            self._journal.close()
        if self._fingerprints is not None:
            self._fingerprints.flush()
        if self._prints is not None:
            self._prints.close()
        self._box = self._journal = self._fingerprints = self._prints = None
        self._listen_no_more()

    # -- parts -----------------------------------------------------------------------------------

    def _owns(self) -> bool:
        return self.owner is None or self.owner.held

    def _listen(self) -> None:
        """Take requests, if nobody does in this process."""
        listener = self._listener
        if self.folder.requests and (listener is None or listener.pid != os.getpid()):
            self._listener = Listener(self.folder.path, self._fit)

    def _listen_no_more(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def _begin_journal(self, checkpoint: Path | None) -> None:
        root = self.folder.path
        journal = Journal(root, may_write=self._owns)
        goes_on = checkpoint is not None and checkpoint.resolve().parent == root.resolve()
        if goes_on and checkpoint is not None:
            journal.rewind(checkpoint.name)
            self.set_since = _values_set(journal.facts_since(checkpoint.name, "set"))
        elif journal.has_measured():
            journal.close()
            self._set_aside_earlier(root)
        if not self.folder.journal:
            journal.close()
            return
        self._journal = journal
        readings = Readings(journal.take, every=self.folder.log_every)
        self._removers = [readings.attach(driver, self._fit) for driver in self._drivers]
        self._removers += watch_recoveries(self._fit, self._note)
        self._note_beginning()

    def _begin_fingerprints(self, checkpoint: Path | None) -> None:
        if self._every is None:
            return
        root, rank = self.folder.path, rank_of_process()
        if rank and _is_cut_up(self._fit.context.model):
            return  # its weights are no replica of those of rank 0
        # Imported here, because most runs have none.
        from statemachine_trainer.observe.fingerprint_writer import FingerprintWriter
        from statemachine_trainer.observe.fingerprints import Fingerprints, hardware_of

        facts = {
            "every": asdict(self._every),
            **_processes(),
            "hardware": hardware_of(self._fit.context.device),
            **({} if self.told is None else self.told()),
        }
        self._prints = FingerprintWriter(root, facts, may_write=self._owns, rank=rank)
        if checkpoint is not None and checkpoint.resolve().parent == root.resolve():
            self._prints.go_on(checkpoint.name)
        else:
            self._prints.begin()
        self._fingerprints = Fingerprints(self._fit, self._every, self._prints)
        self._removers.append(self._fingerprints.attach())

    def _note(self, kind: str, facts: Mapping[str, Any]) -> None:
        if self._journal is not None:
            counts = self._fit.context.counts
            self._journal.note(kind, counts.epoch, counts.step, facts)

    def _set_aside_earlier(self, root: Path) -> None:
        record = (run_record.RECORD,) if self._keeps_record else ()
        prints = (run_record.FINGERPRINTS,)
        try:
            run_record.move_aside(root, (*record, *run_record.JOURNAL_FILES, *prints))
        except OSError as error:
            _log.warning("What an earlier run left in %s stays there: %s.", root, error)

    def _note_beginning(self) -> None:
        """Note graph, settings and hyperparameters, unless they are those of the last beginning."""
        journal, context = self._journal, self._fit.context
        if journal is None or context is None:
            return
        facts = {"graph": Graph.of(self._fit.machine).to_dict(), "settings": self._settings}
        if self.hyperparameters is not None:
            facts["hyperparameters"] = dict(self.hyperparameters())
        if journal.last("begun") != facts:
            journal.note("begun", context.counts.epoch, context.counts.step, facts)
            journal.flush()

    def _leave(self, error: BaseException | None) -> None:
        left = self._inside.pop()
        if self._inside:
            if self._box is not None:
                self._box.come_back(self._inside[-1])
            return
        if self._fingerprints is not None and self._prints is not None:
            self._fingerprints.flush()
            self._prints.close()
        mark, event = self._ending(error)
        if self._box is not None:
            self._box.mark(mark, event)
        if mark not in ("paused", "resting"):  # after it: who asks then reads how the run ended
            self._listen_no_more()
        if self._journal is not None:
            self._journal.close(for_good=mark in ("ended", "stopped", "failed"))
        told_before = error is None and left is not self._fit  # a test after a fit that has ended
        over = mark in ("ended", "stopped", "failed")
        if self._keeps_record and over and not told_before and self._owns():
            facts = {} if error is None else {"error": f"{type(error).__name__}: {error}"[:500]}
            run_record.note(self.folder.path, mark, _versions(), **facts)

    def _ending(self, error: BaseException | None) -> tuple[Mark, str | None]:
        fit = self._fit
        if isinstance(error, SystemExit | KeyboardInterrupt):
            return "stopped", type(error).__name__
        if error is not None:
            return "failed", type(error).__name__
        if fit.path is None:
            return "ended", fit.outcome
        return ("resting" if fit.resting else "paused"), None


def _values_set(entries: Sequence[object]) -> dict[str, object]:
    """Return the last value of each setting that entries of the journal tell of."""
    found: dict[str, object] = {}
    for facts in entries:
        for name, one in facts.items() if isinstance(facts, dict) else ():
            if isinstance(one, dict) and isinstance(one.get("to"), int | float | None):
                found[str(name)] = one.get("to")
    return found


def _processes() -> dict[str, object]:
    """Return what tells those apart who write fingerprints together; nothing of a process that is alone."""
    ranks = Ranks.known() if Ranks.are_up() else None
    return {} if ranks is None else {"processes": ranks.processes}


def _is_cut_up(model: torch.nn.Module) -> bool:
    return any(is_cut_up(one) for one in model.parameters())


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "statemachine_trainer": __version__,
    }
