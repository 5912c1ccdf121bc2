"""The journal of a run, and what `Run` reads out of it."""

from __future__ import annotations

import json
import logging
import math
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer import FitLoop, KFoldLoop, Run, RunFolder, Trainer, log
from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.observe import MetricsTable
from statemachine_trainer.observe.journal import Journal
from statemachine_trainer.observe.journal_file import prepare
from statemachine_trainer.observe.readings import Reading
from statemachine_trainer.observe.run import BadJournal, BadMode, NoMetric, NoRun, Point
from tests.observe.recorded import Net, batches, trainer
from tests.observe.running import train, training, wait_until


def content(run: Run) -> dict[str, Any]:
    """All that two runs of the same training have in common."""
    parts = {part: run.metrics(part=part) for part in ("train", "validation", "test", "step")}
    epochs = [(one.epoch, one.steps, one.train, one.validation) for one in run.epochs()]
    return {**parts, "epochs": epochs, "graph": run.graph()}


# -- what is in it ---------------------------------------------------------------------------------


def test_metrics_are_those_of_the_table_of_epochs(tmp_path: Path) -> None:
    table = MetricsTable()
    mine = trainer(run=tmp_path, callbacks=[table])
    mine.fit(Net(), batches(), batches(2))
    run = Run(tmp_path)
    assert [replace(one, seconds=0.0) for one in run.epochs()] == [
        replace(one, seconds=0.0) for one in table.records
    ]
    assert run.metrics("loss") == [Point(8 * one.epoch, one.train["loss"]) for one in table.records]
    assert run.metrics("score") == [
        Point(8 * one.epoch, one.validation["score"]) for one in table.records
    ]
    assert run.metrics().keys() == {"loss", "score"}
    assert run.best("loss") == min(run.metrics("loss"), key=lambda one: one.value)


def test_what_was_logged_on_each_step_is_read_every_n_batches(tmp_path: Path) -> None:
    trainer(run=RunFolder(tmp_path, log_every=3)).fit(Net(), batches())
    assert [one.step for one in Run(tmp_path).metrics("loss", part="step")] == [*range(3, 25, 3)]


def test_a_model_that_logs_nothing_has_its_loss_read(tmp_path: Path) -> None:
    class Silent(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(batch[0]).sum()

    trainer(run=RunFolder(tmp_path, log_every=8), max_epochs=1).fit(Silent(), batches())
    (point,) = Run(tmp_path).metrics("loss", part="step")
    assert math.isfinite(point.value)


@pytest.mark.filterwarnings("ignore::statemachine_trainer.loops.mistakes.SharedName")
def test_a_name_of_training_and_validation_stands_for_both(tmp_path: Path) -> None:
    class Same(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            log("loss", 7.0)

    trainer(run=tmp_path, max_epochs=1).fit(Same(), batches(), batches(1))
    run = Run(tmp_path)
    assert (
        run.metrics("validation/loss") == run.metrics("loss", part="validation") == [Point(8, 7.0)]
    )
    assert run.metrics("loss") == run.metrics("loss", part="train") != [Point(8, 7.0)]


def test_numbers_that_are_none_come_back(tmp_path: Path) -> None:
    class Odd(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            log("nan", math.nan)
            log("inf", -math.inf)
            return super().training_step(batch, batch_idx)

    trainer(run=tmp_path, max_epochs=1).fit(Odd(), batches(1))
    assert math.isnan(Run(tmp_path).metrics("nan")[0].value)
    assert Run(tmp_path).metrics("inf") == [Point(1, -math.inf)]
    assert Run(tmp_path).best("nan") is None


def test_a_test_after_the_fit_is_in_it(tmp_path: Path) -> None:
    mine = trainer(run=tmp_path, max_epochs=1)
    mine.fit(Net(), batches(), batches(1))
    tested = mine.test(data=batches(1))
    mine.validate(data=batches(1))
    assert Run(tmp_path).metrics("score", part="test") == [Point(8, tested["score"])]
    assert len(Run(tmp_path).metrics("score", part="validation")) == 1


def test_a_test_after_the_fit_is_no_second_end_of_it(tmp_path: Path) -> None:
    mine = trainer(run=tmp_path)
    mine.fit(Net(), batches())
    mine.test(mine.model, batches(2))
    assert [one.what for one in Run(tmp_path).history()] == ["started", "ended"]
    assert Run(tmp_path).status == "ended"


def test_sanity_checks_leave_no_trace(tmp_path: Path) -> None:
    trainer(run=tmp_path, max_epochs=1, sanity_batches=2).fit(Net(), batches(), batches(2))
    assert [one.step for one in Run(tmp_path).metrics("score")] == [8]


def test_each_fold_is_a_round_of_its_own(tmp_path: Path) -> None:
    data = TensorDataset(*(torch.cat(one) for one in zip(*batches(), strict=True)))
    loop = KFoldLoop(3, fit=FitLoop(max_epochs=2))
    mine = Trainer(loop, run=tmp_path, progress=False, device="cpu")
    mine.fit(Net(), DataLoader(data, batch_size=4))
    points = Run(tmp_path).metrics("loss")
    assert [one.round for one in points] == [0, 0, 1, 1, 2, 2]
    assert points[0].step == points[2].step == points[4].step
    assert len(Run(tmp_path).metrics("score", part="test")) == 3


def test_graph_settings_and_history_are_in_it(tmp_path: Path) -> None:
    mine = trainer(checkpoints=Checkpoints(tmp_path, every=8), clip_norm=1.0)
    mine.fit(Net(), batches(), batches(1))
    run = Run(tmp_path)
    drawn = mine.graph()
    assert run.graph() == type(drawn)(drawn.name, drawn.root, drawn.edges)
    assert run.settings()["clip_norm"] == "1.0"
    what = [event.what for event in run.history()]
    assert (what[0], what[-1]) == ("started", "ended")
    assert set(what[1:-1]) == {"checkpoint"}
    written = [event.facts["name"] for event in run.history()[1:-1]]
    kept = [info.path.name for info in mine.checkpoints.store.list()]  # type: ignore[union-attr]
    assert set(kept) < set(written)  # those that were deleted since are told of, too
    assert written[0] == "000001-step-00000008"
    assert run.status == "ended"
    assert run.progress() == (3, 24)


def test_a_graph_is_kept_once_as_long_as_it_is_the_same(tmp_path: Path) -> None:
    mine = trainer(run=tmp_path, max_epochs=1)
    mine.fit(Net(), batches())
    mine.loop.max_epochs = 2
    mine.fit()
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as connection:
        rows = connection.execute("SELECT count(*) FROM entries WHERE kind = 'begun'").fetchall()
    assert rows == [(1,)]
    assert [one.step for one in Run(tmp_path).metrics("loss")] == [8, 16]


def test_a_run_can_be_read_while_it_goes_on(tmp_path: Path) -> None:
    mine = trainer(run=tmp_path)
    seen = []
    mine.on(
        "epoch_end:exit", lambda: seen.append((Run(tmp_path).status, len(Run(tmp_path).epochs())))
    )
    mine.fit(Net(), batches())
    assert seen == [("running", 1), ("running", 2), ("running", 3)]


# -- folders ---------------------------------------------------------------------------------------


def test_a_run_of_its_own_keeps_its_record_without_checkpoints(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("no")

    mine = trainer(run=tmp_path / "deep" / "run")
    mine.on("epoch_end", fail)
    with pytest.raises(ValueError, match="no"):
        mine.fit(Net(), batches())
    run = Run(tmp_path / "deep" / "run")
    assert [event.what for event in run.history()] == ["started", "failed"]
    assert run.history()[-1].facts["error"] == "ValueError: no"
    assert run.status == "failed"


def test_a_run_that_begins_anew_sets_the_one_before_aside(tmp_path: Path) -> None:
    for epochs in (1, 2):
        trainer(run=tmp_path, max_epochs=epochs).fit(Net(), batches())
    assert len(Run(tmp_path).epochs()) == 2
    assert len(Run(tmp_path / "earlier-1").epochs()) == 1
    assert [event.what for event in Run(tmp_path).history()] == ["started", "ended"]


def test_restart_sets_the_journal_aside_with_the_checkpoints(tmp_path: Path) -> None:
    mine = trainer(checkpoints=tmp_path, max_epochs=2)
    mine.fit(Net(), batches())
    mine.fit(Net(), batches(), restart=True)
    assert len(Run(tmp_path).epochs()) == len(Run(tmp_path / "earlier-1").epochs()) == 2


def test_a_run_has_one_folder(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="A run has one folder"):
        trainer(run=tmp_path / "a", checkpoints=tmp_path / "b")
    trainer(run=RunFolder(tmp_path / "a", journal=False), checkpoints=tmp_path / "a")
    with pytest.raises(SettingError, match="needs a folder"):
        trainer(run=True)
    with pytest.raises(SettingError, match="log_every=-1"):
        RunFolder(tmp_path, log_every=-1)


def test_a_trainer_without_a_folder_or_that_wants_none_writes_nothing(tmp_path: Path) -> None:
    trainer(max_epochs=1, checkpoints=tmp_path, run=False).fit(Net(), batches())
    names = {path.name for path in tmp_path.iterdir()}
    assert not names & {"journal.sqlite", "blackbox-0.ring"}
    assert Run(tmp_path).metrics() == {}
    assert Run(tmp_path).graph() is None
    assert Run(tmp_path).status == "ended"


def test_what_is_no_run_or_no_metric_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NoRun, match="is not the folder of a run"):
        Run(tmp_path)
    trainer(run=tmp_path, max_epochs=1).fit(Net(), batches())
    with pytest.raises(NoMetric, match=r"no metric 'los'.*'loss'"):
        Run(tmp_path).metrics("los")


# -- damage ----------------------------------------------------------------------------------------


def test_a_journal_that_is_something_else_is_set_aside_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "journal.sqlite").write_text(
        "something else, and long enough to be looked at " * 99
    )
    with caplog.at_level(logging.WARNING):
        trainer(run=tmp_path, max_epochs=2).fit(Net(), batches())
    assert caplog.text.count("is no journal that can be read") == 1
    assert (tmp_path / "damaged-1" / "journal.sqlite").read_text().startswith("something else")
    assert [one.epoch for one in Run(tmp_path).epochs()] == [1, 2]
    assert Run(tmp_path).status == "ended"


def test_a_journal_of_a_later_version_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as connection:
        connection.execute("PRAGMA user_version = 99")
    with caplog.at_level(logging.WARNING):
        trainer(run=tmp_path, max_epochs=1).fit(Net(), batches())
    assert "newer than this package" in caplog.text
    with pytest.raises(BadJournal, match="Upgrade"):
        Run(tmp_path).epochs()


# -- resuming --------------------------------------------------------------------------------------


def test_what_is_measured_again_after_a_resume_replaces_what_was_measured(tmp_path: Path) -> None:
    whole = RunFolder(tmp_path / "whole", log_every=2)
    settings = {"validate_every": 3}
    trainer(run=whole, **settings).fit(Net(), batches(), batches(2))
    cut, store = RunFolder(tmp_path / "cut", log_every=2), tmp_path / "cut"
    first = trainer(run=cut, checkpoints=Checkpoints(store, every=5), **settings)
    first.fit(Net(), batches(), batches(2), until=lambda trainer: trainer.steps == 14)
    assert Run(store).metrics("loss", part="step")[-1].step > 10  # its newest checkpoint
    again = trainer(run=cut, checkpoints=Checkpoints(store, every=5), **settings)
    again.fit(Net(), batches(), batches(2), resume="auto")
    assert content(Run(store)) == content(Run(tmp_path / "whole"))
    assert [e.what for e in Run(store).history() if e.what != "checkpoint"] == [
        "started",
        "resumed",
        "ended",
    ]


def test_a_run_resumed_from_an_older_checkpoint_forgets_what_came_after_it(tmp_path: Path) -> None:
    first = trainer(checkpoints=Checkpoints(tmp_path, every="1 epoch"))
    first.fit(Net(), batches())
    oldest = first.checkpoints.store.list()[0].path  # type: ignore[union-attr]
    again = trainer(checkpoints=Checkpoints(tmp_path, every="1 epoch"))
    again.start(Net(), batches(), resume=oldest)
    assert [one.epoch for one in Run(tmp_path).epochs()] == [1]
    again.run()
    assert [one.epoch for one in Run(tmp_path).epochs()] == [1, 2, 3]


def test_where_a_journal_stands_is_not_told_while_it_cannot_be_read(tmp_path: Path) -> None:
    """A rewind to there would take all out."""
    folder_is_ours = True
    journal = Journal(tmp_path, may_write=lambda: folder_is_ours)
    assert journal.place() == 0
    journal.note("begun", 0, 0, {})
    assert journal.place() == 1
    folder_is_ours = False
    assert journal.place() is None
    journal.close()


@pytest.mark.parametrize("steps", [2, 5, 12])
def test_what_is_measured_again_after_a_rewind_stands_there_once(
    tmp_path: Path, steps: int
) -> None:
    whole, gone_back = RunFolder(tmp_path / "whole", log_every=2), tmp_path / "back"
    trainer(run=whole, validate_every=3).fit(Net(), batches(), batches(2))
    mine = trainer(run=RunFolder(gone_back, log_every=2), validate_every=3)
    mine.start(Net(), batches(), batches(2))
    mine.remember(last=100, at="batch_start")
    mine.run(until=lambda trainer: trainer.steps == 20)
    most = max(point.step for point in Run(gone_back).metrics("loss", part="step"))
    rewound = mine.rewind(steps * 12)
    left = Run(gone_back).metrics("loss", part="step")
    assert max(point.step for point in left) <= rewound.step < most
    mine.run()
    assert content(Run(gone_back)) == content(Run(tmp_path / "whole"))


def test_a_rewind_to_where_a_run_was_resumed_keeps_what_was_measured_before(tmp_path: Path) -> None:
    trainer(checkpoints=tmp_path, max_epochs=2).fit(Net(), batches())
    mine = trainer(checkpoints=tmp_path, max_epochs=4)
    memory = mine.remember(last=1000)
    mine.start(Net(), batches(), resume="auto")
    mine.run(until=lambda trainer: trainer.epoch == 3)
    assert [one.epoch for one in Run(tmp_path).epochs()] == [1, 2, 3]
    first, *_, last = memory
    mine.rewind(last.transitions - first.transitions)
    assert [one.epoch for one in Run(tmp_path).epochs()] == [1, 2]
    mine.run()
    assert [one.epoch for one in Run(tmp_path).epochs()] == [1, 2, 3, 4]


def test_a_rewind_leaves_what_was_not_measured(tmp_path: Path) -> None:
    mine = trainer(checkpoints=Checkpoints(tmp_path, every=4))
    mine.start(Net(), batches())
    mine.remember(last=100, at="batch_start")
    mine.run(until=lambda trainer: trainer.steps == 14)
    before = [one.facts for one in Run(tmp_path).history()]
    mine.rewind(100)
    assert [one.facts for one in Run(tmp_path).history()] == before


def test_a_run_that_begins_from_the_checkpoint_of_another_has_a_journal_of_its_own(
    tmp_path: Path,
) -> None:
    trainer(checkpoints=tmp_path / "a", max_epochs=1).fit(Net(), batches())
    mine = trainer(checkpoints=tmp_path / "b", max_epochs=2)
    mine.fit(Net(), batches(), resume=tmp_path / "a")
    assert [one.epoch for one in Run(tmp_path / "b").epochs()] == [2]
    assert [one.epoch for one in Run(tmp_path / "a").epochs()] == [1]


def test_a_checkpoint_that_the_journal_does_not_know_takes_nothing_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.take(Reading("train", 1, 8, {"loss": 1.0}))
    journal.rewind("000001-step-00000004")
    journal.close()
    assert Run(tmp_path).metrics("loss") == [Point(8, 1.0)]


def test_after_sigkill_the_journal_is_whole_and_the_resumed_run_ends_with_that_of_an_undisturbed(
    tmp_path: Path,
) -> None:
    assert train(tmp_path / "whole") == 0
    cut = tmp_path / "cut"
    assert train(cut, "kill", step=18) == -9
    killed = Run(cut)
    assert killed.status == "killed"
    assert [one.epoch for one in killed.epochs()] == [1, 2]
    with closing(sqlite3.connect(cut / "journal.sqlite")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert train(cut) == 0
    assert content(Run(cut)) == content(Run(tmp_path / "whole"))
    assert [e.what for e in Run(cut).history() if e.what != "checkpoint"] == [
        "started",
        "resumed",
        "ended",
    ]


def test_another_process_reads_it_without_disturbing_the_run(tmp_path: Path) -> None:
    with training(tmp_path, "hang", step=12) as process:
        wait_until((tmp_path / "reached-0").exists)
        for _ in range(20):
            run = Run(tmp_path)
            assert [one.epoch for one in run.epochs()] == [1]
            assert run.graph() is not None
        assert process.poll() is None


def test_a_look_tells_what_rings_status_and_progress_tell(tmp_path: Path) -> None:
    mine = trainer(run=tmp_path, max_epochs=2)
    mine.fit(Net(), batches(), batches(1), until=lambda trainer: trainer.steps == 10)
    run = Run(tmp_path)
    look = run.look()
    assert (look.status, look.progress) == (run.status, run.progress()) == ("paused", (1, 10))
    assert [ring.entries() for ring in look.rings] == [ring.entries() for ring in run.rings()]


def test_people_can_ask_it_in_sql(tmp_path: Path) -> None:
    trainer(run=tmp_path, max_epochs=2).fit(Net(), batches(), batches(1))
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as connection:
        rows = connection.execute("SELECT part, epoch, step, name FROM measured").fetchall()
        facts = connection.execute("SELECT facts FROM entries WHERE kind = 'train'").fetchall()
    # A validation runs inside its epoch: before it has been counted.
    assert rows == [
        ("validation", 0, 8, "score"),
        ("train", 1, 8, "loss"),
        ("validation", 1, 16, "score"),
        ("train", 2, 16, "loss"),
    ]
    assert json.loads(facts[0][0])["steps"] == 8


def test_a_part_a_mode_and_a_folder_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    trainer(run=tmp_path).fit(Net(), batches())
    unknown: Any = "steps"
    with pytest.raises(NoMetric, match="Did you mean 'step'"):
        Run(tmp_path).metrics(part=unknown)
    mode: Any = "maxx"
    with pytest.raises(BadMode, match="maxx"):
        Run(tmp_path).best("loss", mode=mode)
    folder: Any = 3
    with pytest.raises(SettingError, match="run=3"):
        Trainer(run=folder)


def test_a_journal_that_is_made_without_waiting_for_the_disk_is_kept_with_care(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal.sqlite"
    for _ in range(2):  # a new one, and one that is there
        with closing(sqlite3.connect(path)) as connection:
            prepare(connection)
            settings = [
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
        assert settings == ["wal", 1, 1]  # 1: NORMAL
