"""Phases: fits in sequence as one machine; each changes what it declares, and nothing else."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LinearLR

from statemachine_trainer.audit.settings_record import SettingsChanged
from statemachine_trainer.callbacks import EarlyStopping
from statemachine_trainer.loops import EpochLoop, FitLoop, KFoldLoop, Phase, PhasesLoop, log
from statemachine_trainer.loops.loop_errors import SettingError, StepOutputError
from statemachine_trainer.machine.errors import UnknownEvent
from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.trainer import Trainer
from tests.loops.fold_kit import accuracy, loader
from tests.loops.outer_kit import Model, numbered


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3)
        )
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Any:
        return self.head(self.backbone(inputs))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        log("acc", accuracy(self, batch))

    def configure_optimizers(self) -> Any:
        optimizer = Adam(self.parameters(), lr=0.02)
        return [optimizer], [ExponentialLR(optimizer, 0.5)]


class Rivals(nn.Module):
    """Two networks with an optimizer each, of which one or the other works."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 1), nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Tensor:
        mine, other = (self.one, self.two) if optimizer_idx == 0 else (self.two, self.one)
        loss: Tensor = (mine(batch[0]) - 0.5 * other(batch[0]) - 1).square().mean()
        return loss

    def configure_optimizers(self) -> Any:
        return [SGD(one.parameters(), lr=0.1, momentum=0.9) for one in (self.one, self.two)]


def trainer_of(*phases: Phase, cycles: int = 1, **settings: Any) -> Trainer:
    return Trainer(PhasesLoop(*phases, cycles=cycles), progress=False, device="cpu", **settings)


def epochs(count: int, **settings: Any) -> FitLoop:
    return FitLoop(max_epochs=count, sanity_batches=0, **settings)


def steps(count: int, **settings: Any) -> FitLoop:
    return FitLoop(max_steps=count, sanity_batches=0, **settings)


def noted(trainer: Trainer, name: str, look: Any) -> list[Any]:
    """Call `look(trainer)` at each signal of that name; return the list that it fills."""
    found: list[Any] = []
    trainer.on(name, lambda trainer: found.append(look(trainer)))
    return found


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def rate(trainer: Trainer) -> float:
    found: float = trainer.context.slots[0].optimizer.param_groups[0]["lr"]
    return found


# -- the machine ---------------------------------------------------------------------------------


def test_the_picture_shows_the_phases_by_name_in_their_order() -> None:
    trainer = trainer_of(Phase("pretrain", epochs(1)), Phase("finetune", epochs(1)))
    graph = trainer.graph().collapse(1)
    names = [state.name for state in graph.root.children]
    assert names == ["phase_start", "pretrain", "finetune", "phase_end", "phases_end"]
    edges = [(edge.event, edge.source, edge.target) for edge in graph.edges]
    assert ("finetune", "fit.phase_start", "fit.finetune") in edges
    assert ("fit_done", "fit.finetune", "fit.phase_end") in edges


def test_phases_run_one_after_the_other_as_often_as_there_are_cycles() -> None:
    trainer, ran = trainer_of(Phase("a", steps(1)), Phase("b", steps(2)), cycles=3), []
    for name in "ab":
        trainer.on(name, lambda moment: ran.append(moment.path))
    trainer.fit(Net(), loader())
    assert ran == ["fit.a", "fit.b"] * 3
    assert trainer.steps == 9


def test_counters_run_on_and_limits_count_from_the_beginning_of_each_phase() -> None:
    trainer = trainer_of(
        Phase("a", epochs(2)), Phase("b", steps(4)), Phase("c", FitLoop(max_batches=1))
    )
    seen = noted(trainer, "phase_end", lambda t: (t.epoch, t.steps, t.context.counts.batch))
    trainer.fit(Net(), loader())
    assert seen == [(2, 6, 6), (4, 10, 10), (5, 11, 11)]


def test_a_minimum_counts_from_the_beginning_of_its_phase_too() -> None:
    trainer = trainer_of(Phase("a", epochs(2)), Phase("b", epochs(4, min_epochs=2)))
    trainer.on("fit.b.epoch.fetch", lambda trainer: trainer.stop(), once=True)
    trainer.fit(Net(), loader())
    assert trainer.epoch == 4


def test_the_loop_of_a_phase_can_be_swapped_and_the_whole_be_copied() -> None:
    trainer = trainer_of(Phase("a", epochs(1)), Phase("b", epochs(1)))
    trainer.loop.replace(b=epochs(3))
    loop = copy.deepcopy(trainer.loop)
    trainer.fit(Net(), loader())
    assert trainer.epoch == 4
    again = Trainer(loop, progress=False)
    again.fit(Net(), loader())
    assert again.epoch == 4


def test_a_second_fit_goes_through_all_phases_again_with_the_configured_optimizers() -> None:
    trainer = trainer_of(
        Phase("a", epochs(1)), Phase("b", epochs(1), optimizer=lambda own: SGD(own, lr=0.1))
    )
    model, data = Net(), loader()
    kinds: list[str] = []
    trainer.on("fit.*.fit_start", lambda t: kinds.append(type(t.context.optimizers[0]).__name__))
    trainer.fit(model, data)
    trainer.fit(model, data)
    assert kinds == ["Adam", "SGD"] * 2
    assert trainer.epoch == 4


def test_phases_within_a_phase_keep_what_it_gave_them() -> None:
    inner = PhasesLoop(
        Phase("x", steps(1)), Phase("y", steps(1), train=numbered(2, start=20)), cycles=2
    )
    trainer = trainer_of(
        Phase("a", steps(1), optimizer=lambda own: SGD(own, lr=0.5)),
        Phase("b", inner, train=numbered(3, start=10)),
        Phase("c", steps(1)),
    )
    model = Model()
    rates = noted(trainer, "*.fit_start", rate)
    trainer.fit(model, numbered(2))
    assert model.trained == [0, 10, 20, 11, 21, 1]
    assert rates == [0.5] * 6


# -- frozen parts --------------------------------------------------------------------------------


def test_nothing_of_a_frozen_part_moves_and_afterwards_all_of_it_does() -> None:
    trainer = trainer_of(Phase("pretrain", epochs(2), freeze=["backbone"]), Phase("b", epochs(1)))
    model = Net()
    first = values(model.backbone)
    at_end = noted(trainer, "phase_end", lambda trainer: values(trainer.model.backbone))
    head = values(model.head)
    trainer.fit(model, loader())
    assert same(at_end[0], first)
    assert not same(head, values(model.head))
    assert not torch.equal(at_end[1]["0.weight"], first["0.weight"])
    assert not torch.equal(at_end[1]["1.running_mean"], first["1.running_mean"])
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_a_single_parameter_can_be_frozen_and_what_was_frozen_before_stays_so() -> None:
    trainer = trainer_of(Phase("a", epochs(1), freeze=["head.bias", "backbone"]))
    model = Net()
    model.backbone[0].weight.requires_grad_(False)
    model.backbone[1].eval()
    trainable = noted(
        trainer, "fetch", lambda t: [n for n, p in t.model.named_parameters() if p.requires_grad]
    )
    trainer.fit(model, loader())
    assert trainable[0] == ["head.weight"]
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["backbone.0.weight"]
    assert not model.backbone[1].training


def test_a_model_in_evaluation_mode_is_trained_but_for_what_is_frozen() -> None:
    trainer = trainer_of(Phase("a", epochs(1), freeze=["backbone"]))
    modes = noted(trainer, "fetch", lambda t: (t.model.head.training, t.model.backbone[1].training))
    trainer.fit(Net().eval(), loader())
    assert modes[0] == (True, False)


def test_a_fit_that_begins_anew_within_a_phase_finds_nothing_frozen() -> None:
    trainer = trainer_of(Phase("a", epochs(1), freeze=["backbone"]), Phase("b", epochs(1)))
    model, data = Net(), loader()
    trainer.fit(model, data, until="*.fetch")
    assert not model.backbone[0].weight.requires_grad
    trainer.start(model, data, restart=True)
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())


# -- optimizers ----------------------------------------------------------------------------------


def test_optimizers_are_kept_unless_a_phase_asks_for_new_ones() -> None:
    trainer = trainer_of(
        Phase("a", epochs(1)),
        Phase("b", epochs(1)),
        Phase("c", epochs(1), optimizer="new"),
        Phase("d", epochs(1), freeze=["backbone"], optimizer=lambda own: SGD(own, lr=0.1)),
    )
    model = Net()
    seen: list[Any] = []
    trainer.on("fit.*.fit_start", lambda t: seen.append((t.context.optimizers[0], rate(t))))
    trainer.fit(model, loader())
    (a, _), (b, kept_rate), (c, new_rate), (d, _) = seen
    assert a is b
    assert kept_rate == 0.01  # where the scheduler of the first phase left it
    assert c is not a
    assert new_rate == 0.02
    assert [id(p) for p in d.param_groups[0]["params"]] == [id(p) for p in model.head.parameters()]


def test_settings_are_put_into_the_parameter_groups_and_handed_on() -> None:
    trainer = trainer_of(
        Phase("a", epochs(1)),
        Phase("b", epochs(1), settings={"lr": 1e-4, "weight_decay": 0.1}),
        Phase("c", epochs(1)),
    )
    groups: list[Any] = []
    trainer.on(
        "fit.*.fit_start", lambda t: groups.append(dict(t.context.optimizers[0].param_groups[0]))
    )
    trainer.fit(Net(), loader())
    assert [group["weight_decay"] for group in groups] == [0, 0.1, 0.1]
    assert groups[1]["lr"] == 1e-4


def test_a_cooldown_begins_at_the_present_rate_and_ends_at_zero() -> None:
    def down(optimizer: Any) -> Any:
        return {"scheduler": LinearLR(optimizer, 1.0, 0.0, total_iters=4), "interval": "step"}

    trainer = trainer_of(Phase("train", epochs(1)), Phase("cooldown", steps(4), schedule=down))
    rates = noted(trainer, "*.batch_end", rate)
    trainer.fit(Net(), loader())
    assert rates[:3] == [0.02] * 3
    assert rates[3:] == pytest.approx([0.0075, 0.005, 0.0025, 0.0])


def test_alternating_phases_let_one_optimizer_work_and_count_its_steps() -> None:
    trainer = trainer_of(
        Phase("first", steps(2), optimizers=[0]),
        Phase("second", steps(3), optimizers=[1]),
        cycles=2,
    )
    model = Rivals()
    moved: list[tuple[bool, bool]] = []
    before: list[Any] = []
    trainer.on("phase_start:exit", lambda: before.append((values(model.one), values(model.two))))
    trainer.on(
        "phase_end",
        lambda: moved.append(
            (not same(before[-1][0], values(model.one)), not same(before[-1][1], values(model.two)))
        ),
    )
    trainer.fit(model, loader())
    assert moved == [(True, False), (False, True)] * 2
    assert [slot.steps for slot in trainer.context.slots] == [4, 6]
    assert trainer.context.turns.everybody == (0, 1)


def test_phases_that_take_turns_train_as_optimizers_with_frequencies_do() -> None:
    torch.manual_seed(0)
    model, data = Rivals(), loader(40, shuffle=False)
    other = copy.deepcopy(model)
    phases = Phase("a", steps(2), optimizers=[0]), Phase("b", steps(1), optimizers=[1])
    trainer_of(*phases, cycles=3).fit(model, data)
    made = other.configure_optimizers()
    turns = [{"optimizer": made[0], "frequency": 2}, {"optimizer": made[1], "frequency": 1}]
    other.configure_optimizers = lambda: turns  # type: ignore[method-assign]
    Trainer(max_batches=9, progress=False, device="cpu").fit(other, data)
    assert same(values(model), values(other))


# -- data ----------------------------------------------------------------------------------------


def test_data_of_a_phase_are_its_own_and_those_of_the_fit_go_on_afterwards() -> None:
    trainer = trainer_of(
        Phase("a", steps(2)),
        Phase("b", epochs(1), train=numbered(2, start=10)),
        Phase("c", steps(2)),
    )
    model = Model()
    trainer.fit(model, numbered(4))
    assert model.trained == [0, 1, 10, 11, 2, 3]


def test_data_of_a_phase_that_comes_round_again_go_on_where_they_stood() -> None:
    trainer = trainer_of(
        Phase("a", steps(1)), Phase("b", steps(2), train=numbered(3, start=10)), cycles=3
    )
    model = Model()
    trainer.fit(model, numbered(2))
    assert model.trained == [0, 10, 11, 1, 12, 10, 0, 11, 12]


def test_validation_data_of_a_phase_are_its_own() -> None:
    trainer = trainer_of(
        Phase("a", epochs(1)),
        Phase("b", epochs(1), validation={"x": numbered(1, start=5), "y": numbered(1, start=6)}),
        Phase("c", epochs(1)),
    )
    model = Model()
    trainer.fit(model, numbered(1), numbered(1, start=3))
    assert model.validated == [3, 5, 6, 3]


def test_loaders_given_as_functions_are_made_anew_only_where_they_are_used() -> None:
    made: list[int] = []

    def make() -> Any:
        made.append(1)
        return numbered(1)

    again = EpochLoop(reload_every=1), EpochLoop(reload_every=1)
    trainer = trainer_of(
        Phase("a", epochs(1, epoch=again[0])),
        Phase("b", epochs(2), train=numbered(1, start=7)),
        Phase("c", epochs(2, epoch=again[1])),
    )
    model = Model()
    trainer.fit(model, make)
    assert model.trained == [0, 7, 7, 0, 0]
    assert len(made) == 3


@pytest.mark.parametrize("phase", ["a", "b"])
def test_after_a_rewind_a_phase_with_data_of_its_own_is_not_given_those_of_the_fit_either(
    phase: str,
) -> None:
    own = Phase("b", epochs(2, epoch=EpochLoop(reload_every=1)), train=numbered(1, start=7))
    trainer, model = trainer_of(Phase("a", epochs(1)), own), Model()
    trainer.start(model, lambda: numbered(1))
    trainer.remember(last=100)
    with pytest.raises(SettingError, match="needs loaders that can be made anew"):
        trainer.run()
    while not str(trainer.rewind(1).path).startswith(f"fit.{phase}."):
        pass
    with pytest.raises(SettingError, match="needs loaders that can be made anew"):
        trainer.run()
    assert model.trained == [0]


# -- stopping and callbacks ----------------------------------------------------------------------


def test_a_stop_ends_the_present_phase_only() -> None:
    trainer = trainer_of(Phase("a", epochs(3)), Phase("b", epochs(3)))
    trainer.on("*.epoch_end", lambda trainer: trainer.stop(), once=True)
    trainer.fit(Net(), loader())
    assert trainer.epoch == 4


def test_a_stop_posted_between_two_phases_does_not_stop_the_next() -> None:
    trainer = trainer_of(Phase("a", epochs(3)), Phase("b", epochs(3)))
    trainer.on("phase_end", lambda trainer: trainer.stop(), once=True)
    trainer.fit(Net(), loader())
    assert trainer.epoch == 6


def test_the_end_of_cycles_can_be_posted_and_comes_with_the_end_of_the_round() -> None:
    trainer = trainer_of(Phase("a", steps(1)), Phase("b", steps(1)), cycles=100)
    trainer.on("fit.a.fit_end", lambda t: t.post("end_cycles"), when=lambda t: t.steps == 5)
    trainer.fit(Net(), loader())
    assert trainer.steps == 6
    with pytest.raises(UnknownEvent):
        trainer_of(Phase("a", steps(1))).post("end_cycles")


def test_callbacks_are_kept_unless_a_phase_asks_for_fresh_ones() -> None:
    def lasted(*, fresh: bool) -> list[int]:
        trainer = trainer_of(
            Phase("a", epochs(4)),
            Phase("b", epochs(4), fresh_callbacks=fresh),
            callbacks=[EarlyStopping("constant", patience=2)],
        )
        model = Net()
        trainer.on("*.batch_end", lambda: log("constant", 1.0))
        ends = noted(trainer, "phase_end", lambda trainer: trainer.epoch)
        trainer.fit(model, loader())
        return ends

    assert lasted(fresh=False) == [3, 4]
    assert lasted(fresh=True) == [3, 6]


# -- mistakes ------------------------------------------------------------------------------------


def test_mistakes_in_any_phase_are_found_before_the_first_one_runs() -> None:
    model, data = Net(), loader()
    late = trainer_of(Phase("a", epochs(1)), Phase("b", epochs(1), freeze=["backbon"]))
    with pytest.raises(SettingError, match=r"Phase\('b'\).*'backbon'.*Did you mean 'backbone'"):
        late.fit(model, data)
    assert late.steps == 0
    once = trainer_of(Phase("a", epochs(1)), Phase("b", epochs(1), optimizer="new"))
    with pytest.raises(SettingError, match="lambda parameters"):
        once.fit(model, data, optimizer=SGD(model.parameters(), lr=0.1))
    assert once.steps == 0
    with pytest.raises(SettingError, match="never end"):
        trainer_of(Phase("a", epochs(1)), Phase("b", FitLoop())).fit(model, data)


@pytest.mark.parametrize("names", [["a", "a"], ["phase_end"], ["a b"], ["phases"], ["given"], []])
def test_phases_need_names_of_their_own(names: list[str]) -> None:
    with pytest.raises(SettingError, match="phase"):
        PhasesLoop(*(Phase(name, epochs(1)) for name in names))


def test_settings_of_a_phase_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SettingError, match=r"give a list, \['backbone'\]"):
        Phase("a", epochs(1), freeze="backbone")
    with pytest.raises(SettingError, match="'keep', 'new'"):
        Phase("a", epochs(1), optimizer="fresh")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="cycles"):
        PhasesLoop(Phase("a", epochs(1)), cycles=0)
    with pytest.raises(SettingError, match="there are 1 optimizers"):
        trainer_of(Phase("a", epochs(1), optimizers=[1])).fit(Net(), loader())
    with pytest.raises(SettingError, match="no setting 'momentum'"):
        trainer_of(Phase("a", epochs(1), settings={"momentum": 1})).fit(Net(), loader())


def test_a_phase_whose_beginning_failed_can_begin_again() -> None:
    broken = [True]

    def optimizer(own: Any) -> Any:
        if broken.pop():
            broken.append(False)
            raise RuntimeError("no memory")
        return SGD(own, lr=0.1)

    broken.insert(0, False)
    trainer = trainer_of(Phase("a", epochs(1), freeze=["backbone"], optimizer=optimizer))
    model = Net()
    with pytest.raises(RuntimeError, match="no memory"):
        trainer.fit(model, loader())
    trainer.run()
    assert trainer.epoch == 1
    assert all(p.requires_grad for p in model.parameters())


# -- resuming ------------------------------------------------------------------------------------


def down(optimizer: Any) -> Any:
    return {"scheduler": LinearLR(optimizer, 1.0, 0.0, total_iters=2), "interval": "step"}


def each_epoch(optimizer: Any) -> Any:
    return ExponentialLR(optimizer, 0.5)


def make_trainer() -> Trainer:
    trainer = trainer_of(
        Phase("pretrain", FitLoop(max_epochs=1, sanity_batches=1), freeze=["backbone"]),
        Phase(
            "finetune",
            steps(2),
            freeze=["backbone.0"],
            optimizer=lambda own: SGD(own, lr=0.1, momentum=0.9),
            train=loader(8, seed=3),
            validation=loader(4, shuffle=False, seed=4),
            fresh_callbacks=True,
        ),
        Phase("cooldown", steps(2), schedule=down),
        callbacks=[EarlyStopping("loss", patience=3)],
    )
    trainer.start(Net(), loader(8), loader(4, shuffle=False, seed=2))
    return trainer


def make_rivals() -> Trainer:
    """Each phase has a schedule for the optimizer that works in it."""
    trainer = trainer_of(
        Phase("a", steps(1), optimizers=[0], schedule=down),
        Phase("b", steps(1), optimizers=[1], train=loader(8, seed=5), schedule=each_epoch),
        cycles=2,
    )
    trainer.start(Rivals(), loader(12))
    return trainer


def make_folds() -> Trainer:
    """Phases that make optimizers of their own, in each fold."""
    phases = PhasesLoop(
        Phase("a", steps(1), freeze=["backbone"], train=loader(8, seed=5)),
        Phase("b", steps(1), optimizer=lambda own: SGD(own, lr=0.1), schedule=down),
    )
    trainer = Trainer(KFoldLoop(2, fit=phases), progress=False, device="cpu")
    trainer.start(Net(), loader(8))
    return trainer


def make_nested() -> Trainer:
    """The optimizers that an inner phase made are kept by the outer one; both have data of theirs."""
    inner = PhasesLoop(
        Phase("x", steps(1), freeze=["head"], optimizer=lambda own: SGD(own, lr=0.1, momentum=0.9)),
        Phase("y", steps(1), schedule=down, train=loader(8, seed=6)),
    )
    outer = Phase("a", inner, freeze=["backbone.0"], train=loader(8, seed=5))
    trainer = trainer_of(outer, Phase("b", steps(2)))
    trainer.start(Net(), loader(8))
    return trainer


def test_phases_are_resumed_to_the_same_bits() -> None:
    assert_resumable(make_trainer, examples=5, stops_per_run=3, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_trainer, make_rivals, make_folds, make_nested])
def test_phases_are_resumed_to_the_same_bits_at_every_boundary(make: Any) -> None:
    report = assert_resumable(make, exhaustive=True)
    assert len(report.tried) == report.possible > 30


def test_a_schedule_that_begins_where_training_had_come_is_not_told_as_changed(
    tmp_path: Any,
) -> None:
    """The second cycle begins at the rate that the first one ended with; schedules may read it."""

    def cosine(optimizer: Any) -> Any:
        lowest = optimizer.param_groups[0]["lr"] / 4
        return {"scheduler": CosineAnnealingLR(optimizer, 4, lowest), "interval": "step"}

    def run() -> Trainer:
        phase = Phase("a", epochs(1), schedule=cosine)
        return trainer_of(phase, cycles=2, checkpoints=tmp_path / "run")

    killed, data = run(), loader()
    killed.fit(Net(), data, until=lambda trainer: trainer.steps == 6)
    assert killed.epoch == 1
    killed.checkpoint()
    with warnings.catch_warnings():
        warnings.simplefilter("error", SettingsChanged)
        run().start(Net(), data, resume="auto")


def test_what_is_frozen_is_so_after_a_resume_and_not_in_the_phase_after(tmp_path: Any) -> None:
    def run() -> Trainer:
        return trainer_of(
            Phase("pretrain", epochs(2), freeze=["backbone"]),
            Phase("finetune", epochs(1), optimizer="new"),
            checkpoints=tmp_path / "run",
        )

    killed, data = run(), loader()
    killed.fit(Net(), data, until="*.batch_end")
    killed.checkpoint()
    resumed, model = run(), Net()
    flags = noted(resumed, "*.epoch.fetch", lambda trainer: model.backbone[0].weight.requires_grad)
    resumed.fit(model, data, resume="auto")
    assert flags == [False] * 7 + [True] * 4
    assert resumed.epoch == 3


def test_a_run_of_phases_that_has_ended_is_not_begun_again_by_resuming_it(tmp_path: Any) -> None:
    def run() -> Trainer:
        return trainer_of(
            Phase("a", epochs(1)),
            Phase("b", epochs(1), optimizer=lambda own: SGD(own, lr=0.1)),
            checkpoints=tmp_path / "run",
        )

    ended, data = run(), loader()
    ended.fit(Net(), data)
    ended.checkpoint()
    resumed = run()
    resumed.fit(Net(), data, resume="auto")
    assert (resumed.path, resumed.epoch) == (None, 2)
    assert same(values(resumed.model), values(ended.model))


def test_a_phase_that_freezes_everything_is_told_so() -> None:
    trainer = trainer_of(Phase("all", FitLoop(max_epochs=1), freeze=["backbone", "head"]))
    with pytest.raises(StepOutputError, match=r"every parameter of Net is frozen.*`freeze`"):
        trainer.fit(Net(), loader())
