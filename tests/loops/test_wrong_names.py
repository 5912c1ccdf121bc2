"""A wrong name of a loop, state, event or metric is refused, wherever it is given, with the nearest one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from statemachine_trainer import (
    BatchLoop,
    Best,
    Checkpoints,
    EarlyStopping,
    EpochLoop,
    FitLoop,
    Monitor,
    OptimizerLoop,
    RecoverLoop,
    Retention,
    Trainer,
    Unfreeze,
    load_weights,
)
from statemachine_trainer.loops.loop_errors import SettingError, UnknownArgument
from statemachine_trainer.loops.mistakes import MisspeltSetting
from statemachine_trainer.machine.errors import (
    LoopDefinitionError,
    PlaceNotNamed,
    StateMachineError,
    UnknownSetting,
)
from tests.loops.outer_kit import Model, make_trainer, numbered


def refused(act: Callable[[], Any], *said: str) -> str:
    """The act must fail with an error of ours, whose message says all of this."""
    with pytest.raises(StateMachineError) as caught:
        act()
    message = str(caught.value)
    for part in said:
        assert part in message, message
    return message


def started() -> Trainer:
    trainer = make_trainer()
    trainer.start(Model(), numbered(2), numbered(1))
    return trainer


def fitted(**settings: Any) -> None:
    make_trainer(**settings).fit(Model(), numbered(2), numbered(1))


# -- where a loop is declared ------------------------------------------------------------------------


@pytest.mark.parametrize("dest", ["batch_split", "=", None])
def test_a_wrong_source_of_an_error_edge(dest: str | None) -> None:
    class Wrong(BatchLoop):
        errors = [[ValueError, "optimiser", dest]]

    message = refused(
        lambda: make_trainer().loop.replace(batch=Wrong),
        "'optimiser' in loop 'fit.epoch.batch' (Wrong)",
        "Did you mean 'optimizer'?",
    )
    assert "own_limits" not in message  # a method of ours, which is no state


@pytest.mark.parametrize(
    "errors, said",
    [
        ([[ValueError, "optimizer", "batch_splt"]], "Did you mean 'batch_split'"),
        ([[ValueError, "optimizer", "qqq"]], "Known: "),
        ([[ValueError, "optimizer", "batch_end", "is_god"]], "Did you mean 'is_good'?"),
        ([[ValueError, "optimizer", "batch_end", "patience"]], "def patience(self) -> bool"),
        ([[ValueError, "optimizer", "batch_end", None, None, "cont"]], "Did you mean 'count'?"),
    ],
)
def test_other_wrong_names_in_an_error_edge(errors: Any, said: str) -> None:
    class Wrong(BatchLoop):
        def is_good(self) -> bool:
            return True

        def count(self) -> None: ...

    Wrong.errors = errors
    refused(lambda: make_trainer().loop.replace(batch=type("Wrong", (Wrong,), {})), said)


@pytest.mark.parametrize(
    "entry, said",
    [
        (["batch_done", "bach", "fetch"], "Did you mean 'batch'?"),
        (["batch_done", "batch", "fech"], "Did you mean 'fetch'?"),
        (["exhauste", "fetch", "drain"], "Did you mean 'exhausted'?"),
    ],
)
def test_wrong_names_in_a_transition(entry: list[str], said: str) -> None:
    wrong = type("Wrong", (EpochLoop,), {"transitions": [*EpochLoop.transitions, entry]})
    refused(lambda: make_trainer().loop.replace(epoch=wrong), said)


# -- an error edge that cannot lead back to what raised ------------------------------------------------


def test_an_error_edge_to_none_out_of_a_loop_says_what_none_means_and_where_to_lead() -> None:
    class Again(BatchLoop):
        errors = [[ValueError, "optimizer", None]]

    refused(
        lambda: make_trainer().loop.replace(batch=Again),
        "The edge for ValueError from 'optimizer' in loop 'fit.epoch.batch' (Again) has no dest (None), so that the "
        "state that raised works again.",
        "'fit.epoch.batch.optimizer.backward' cannot: it is transient",
        "'=' begins 'optimizer' anew, or 'batch_start' or 'batch_split' or 'batch_end'",
        "write the edge to None in OptimizerLoop, from 'forward' or 'optimizer_step'.",
    )


@pytest.mark.parametrize("dest", ["=", "batch_start", "batch_split", "batch_end"])
def test_each_destination_that_the_message_names_is_taken(dest: str) -> None:
    class Elsewhere(BatchLoop):
        errors = [[ValueError, "optimizer", dest]]

    make_trainer().loop.replace(batch=Elsewhere)


@pytest.mark.parametrize("source", ["forward", "optimizer_step"])
def test_each_source_inside_that_the_message_names_is_taken(source: str) -> None:
    class Again(OptimizerLoop):
        errors = [[ValueError, source, None]]

    make_trainer().loop.replace(optimizer=Again)


def test_an_error_edge_to_none_from_a_transient_state_names_the_states_before_it() -> None:
    class Again(OptimizerLoop):
        errors = [[ValueError, "backward", None]]

    refused(
        lambda: make_trainer().loop.replace(optimizer=Again),
        "'fit.epoch.batch.optimizer.backward' cannot",
        "Name a dest, a state before it: 'forward' or 'optimizer_step'.",
    )


# -- where a loop is put --------------------------------------------------------------------------------


def test_a_loop_in_the_wrong_place_names_its_own() -> None:
    refused(
        lambda: make_trainer().loop.replace(epoch=RecoverLoop()),
        "RecoverLoop stands as 'epoch' in FitLoop",
        "is a loop for 'epoch.batch'",
        "replace(**{'epoch.batch': RecoverLoop(...)})",
    )


def test_a_wrong_place_is_offered_the_nearest() -> None:
    loop = make_trainer().loop
    refused(lambda: loop.replace(epch=EpochLoop), "Did you mean 'epoch'")
    refused(lambda: loop.replace(**{"epoch.bach": BatchLoop}), "Did you mean 'epoch.batch'")
    refused(lambda: FitLoop(epch=EpochLoop()), "Did you mean 'epoch'")


def test_a_loop_without_the_name_of_its_place_is_refused() -> None:
    with pytest.raises(
        PlaceNotNamed, match=r"replace\(batch=MyLoop\).*Places here: .*epoch\.batch"
    ):
        make_trainer().loop.replace(BatchLoop())


def test_a_loop_in_an_attribute_that_is_no_place_is_told_when_the_fit_begins() -> None:
    trainer = make_trainer()
    trainer.loop.epch = EpochLoop()
    with pytest.warns(
        MisspeltSetting, match="'epch', which is no place of it.*Did you mean 'epoch'"
    ):
        trainer.fit(Model(), numbered(1))


def test_a_trainer_takes_the_loop_of_a_whole_fit_alone() -> None:
    with pytest.raises(LoopDefinitionError, match=r"trainer\.loop\.replace\(batch=RecoverLoop"):
        Trainer(RecoverLoop())
    with pytest.raises(LoopDefinitionError, match=r"trainer\.loop\.replace\(optimizer="):
        Trainer(OptimizerLoop())
    with pytest.raises(UnknownArgument, match=r"trainer\.loop\.replace\(batch=RecoverLoop"):
        Trainer(batch=RecoverLoop())
    with pytest.raises(UnknownArgument, match=r"Places: .*epoch\.batch"):
        Trainer(bach=RecoverLoop)
    with pytest.raises(SettingError, match=r"Trainer\(Model\).*fit\(model, loader\)"):
        Trainer(Model())  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"trainer\.fit\(model, loader\)"):
        Trainer(FitLoop(), numbered(1))  # type: ignore[arg-type]


# -- signals, breakpoints, goals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("epoch_ends", "epoch_end"),
        ("fit.epoch.bach", "fit.epoch.batch"),
        ("*.bach", "batch"),
        ("bach*", "batch"),
        ("epoch_end:exits", "exit"),
        ("fetch:exhausd", "exhausted"),
    ],
)
def test_a_wrong_name_of_a_signal_is_offered_the_nearest_in_every_place(
    name: str, nearest: str
) -> None:
    trainer = started()
    acts: list[Callable[[], Any]] = [
        lambda: trainer.on(name, print),
        lambda: trainer.on(name),
        lambda: trainer.breakpoint(name),
        lambda: trainer.run(until=name),
        lambda: next(trainer.moments(until=name)),
        lambda: trainer.remember(at=name),
        lambda: make_trainer().fit(Model(), numbered(1), until=name),
    ]
    for act in acts:
        refused(act, f"Did you mean {nearest!r}")


@pytest.mark.parametrize("method", ["on_epoch_edn", "on_exit_epoch_edn", "on_enter_epoch_edn"])
def test_a_wrong_name_of_a_method_is_offered_the_nearest(method: str) -> None:
    def told(self: object) -> None: ...

    callback = type("Report", (), {method: told})
    refused(lambda: make_trainer(callbacks=[callback()]), "Did you mean 'epoch_end'")
    refused(lambda: make_trainer().on(callback()), "Did you mean 'epoch_end'")
    model = type("Hooked", (Model,), {method: told})()
    refused(lambda: make_trainer().fit(model, numbered(1)), "Did you mean 'epoch_end'")


def test_other_wrong_names_of_a_run_are_offered_the_nearest() -> None:
    trainer = started()
    refused(lambda: trainer.post("valdate"), "Did you mean 'validate'")
    refused(lambda: trainer.post("set", max_epoch=3), "Did you mean 'max_epochs'")
    refused(lambda: trainer.graph("fitt"), "Did you mean 'fit'")
    refused(lambda: trainer.graph().open("bach"), "Did you mean 'fit.epoch.batch'")


# -- metrics and parts of models ----------------------------------------------------------------------------


def test_a_wrong_name_of_a_metric_is_offered_the_nearest_in_every_place(tmp_path: Path) -> None:
    def rule(name: str) -> Retention:
        return Retention(best=Best(name))

    refused(lambda: fitted(callbacks=[EarlyStopping("valu")]), "Did you mean 'value'")
    refused(
        lambda: fitted(checkpoints=Checkpoints(tmp_path / "a", retention=rule("valu"))),
        "Did you mean 'value'",
    )
    fitted(checkpoints=Checkpoints(tmp_path / "b", retention=rule("value")))
    refused(lambda: load_weights(Model(), tmp_path / "b", best="valu"), "Did you mean 'value'")

    class Scheduled(Model):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "valu"}

    refused(
        lambda: make_trainer().fit(Scheduled(), numbered(1), numbered(1)), "Did you mean 'value'"
    )
    trainer = make_trainer()
    trainer.fit(Model(), numbered(1), numbered(1))
    with pytest.raises(KeyError, match="Did you mean 'value'"):
        trainer.metrics["valu"]


def test_a_metric_of_validation_that_was_not_given_data_says_so() -> None:
    with pytest.raises(
        StateMachineError, match=r"no validation data.*fit\(model, train, validation\)"
    ):
        make_trainer(callbacks=[EarlyStopping("val_loss")]).fit(Model(), numbered(1))


def test_a_wrong_name_of_a_part_of_a_model_is_offered_the_nearest() -> None:
    refused(
        lambda: fitted(callbacks=[Unfreeze("layer.wight", epoch=1)]), "Did you mean 'layer.weight'"
    )


def test_a_setting_without_a_name_says_which_have_one() -> None:
    with pytest.raises(
        UnknownSetting, match=r"Monitor takes no setting without a name, and 'val_loss'.*memory="
    ):
        Monitor("val_loss")  # type: ignore[call-arg, arg-type]
    with pytest.raises(UnknownSetting, match=r"EarlyStopping takes 1 setting.* patience="):
        EarlyStopping("val_loss", 3)  # type: ignore[call-arg]
    with pytest.raises(UnknownSetting, match=r"RecoverLoop takes no setting.* nonfinite="):
        RecoverLoop(3)  # type: ignore[call-arg, arg-type]
