"""The folder of a run with checkpoints: that it can be written to, that it is no other run's, and its record."""

from __future__ import annotations

from collections.abc import Callable

from statemachine_trainer import run_record
from statemachine_trainer.callbacks.finding import EarlierRun, facts_of_others
from statemachine_trainer.control.ownership import Ownership
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.snapshot import Loaded, Store, WriteFailed
from statemachine_trainer.snapshot.mirror import Mirror
from statemachine_trainer.snapshot.ranked import do_together


class FolderOfRun:
    """The folder that a run writes its checkpoints to, and the mirror of it.

    Args:
        store: What is in the folder.
        mirror: Where they are sent; None if there is none.

    Attributes:
        owner: Whose it is; None while nobody has asked.
    """

    def __init__(self, store: Store, mirror: Mirror | None) -> None:
        self.owner: Ownership | None = None
        self._store = store
        self._mirror = mirror

    def try_to_write(self) -> None:
        """Make the folder and write a byte in it, to learn now, not after the first epoch, that it takes none.

        Raises:
            WriteFailed: There can be no such folder, or nothing can be written in it, or in the mirror.
        """
        try:
            self._store.try_to_write()
        except OSError as error:
            raise WriteFailed(
                f"{str(self._store.root)!r} cannot be the folder of checkpoints: {error.strerror or error}. "
                "Choose another folder."
            ) from error
        if self._mirror is not None:
            _do_at_first(self._mirror.try_to_write)

    def check(self, loaded: Loaded | None) -> None:
        """Refuse the checkpoints of another run: retention would delete, and `auto` resume, the wrong ones.

        Args:
            loaded: The checkpoint that the run goes on from; None if it begins.

        Raises:
            EarlierRun: The folder has some, and this run does not go on from one of them.
        """
        self._store.wait()
        root = self._store.root
        goes_on = loaded is not None and loaded.path.resolve().parent == root.resolve()
        if not goes_on and self._store.list():
            raise EarlierRun(
                f"{str(root)!r} holds the checkpoints of an earlier run. Go on with it: fit(..., "
                'resume="auto"); set it aside: fit(..., restart=True); or choose another folder.'
            )
        if self._mirror is not None and not goes_on:
            _do_at_first(self._check_mirror)

    def _check_mirror(self) -> None:
        if self._mirror is not None and self._mirror.whole():
            raise EarlierRun(
                f"The mirror {self._mirror.address!r} holds the checkpoints of an earlier run. Go on with it: fit(..., "
                'resume="auto"); set it aside: fit(..., restart=True); or choose another address.'
            )

    def note_start(self, loaded: Loaded | None, *, restart: bool) -> None:
        """Write into the record of the run that it begins, or goes on.

        Args:
            loaded: The checkpoint that it goes on from; None if it begins.
            restart: Set aside what an earlier run left in the folder.
        """
        store = self._store
        if loaded is None and self._mirror is not None:
            self._mirror.forget()
        if not Ranks.is_first():
            return
        if loaded is not None:
            others = facts_of_others(loaded)
            run_record.note(
                store.root, "resumed", store.versions, checkpoint=str(loaded.path), **others
            )
            return
        if restart and self._mirror is not None:
            self._mirror.set_aside()  # before those here, by which the earlier run can still go on
        aside = run_record.set_aside(store) if restart else None
        facts = {} if aside is None else {"earlier": aside.name}
        run_record.note(store.root, "started", store.versions, **facts)

    def note(self, event: str, **facts: run_record.Facts) -> None:
        """Write into the record how the run ended, if the folder is still its own."""
        if Ranks.is_first() and (self.owner is None or self.owner.held):
            run_record.note(self._store.root, event, self._store.versions, **facts)


def _do_at_first(act: Callable[[], object]) -> None:
    """Do something at rank 0; where it fails, all ranks raise. A collective."""
    do_together(Ranks.here(), lambda: act() if Ranks.is_first() else None)
