"""A model in a compiler or in other wrappers: trained as itself, and saved under its own names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DataParallel, DistributedDataParallel

from statemachine_trainer import Trainer, load_weights
from statemachine_trainer.loops.fit import FitLoop
from statemachine_trainer.loops.recipes.phases import Phase, PhasesLoop
from statemachine_trainer.parallel import UnsupportedWrapper
from statemachine_trainer.parallel.wrappers import PlainNames, see_through
from statemachine_trainer.snapshot.held import own_states
from statemachine_trainer.testing import assert_resumable

DATA = [(torch.full((3, 4), 0.1 * n), torch.zeros(3, 2)) for n in range(4)]
Graphs = list[object]


class Task(nn.Module):
    """Has hooks, and a step that calls the model."""

    def __init__(self, wrap: Callable[[nn.Module], Any] = lambda net: net) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = wrap(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)))
        self.head = nn.Linear(3, 2)
        self.heard: list[str] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.net(inputs))
        return out

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def on_epoch_end(self) -> None:
        self.heard.append("epoch_end")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def backend(graphs: Graphs) -> Callable[..., Any]:
    def compiled(graph: Any, _inputs: object) -> Any:
        graphs.append(graph)
        return graph.forward

    return compiled


def trainer(**settings: Any) -> Trainer:
    return Trainer(**{"max_epochs": 2, "device": "cpu", "progress": False, "seed": 3, **settings})


def fitted(model: nn.Module, **settings: Any) -> Trainer:
    made = trainer(**settings)
    made.fit(model, DATA, DATA[:1])
    return made


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [*model.state_dict().values()]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("precision", ["32", "bf16", "fp16"])
def test_a_compiled_model_is_trained_compiled_with_its_hooks_to_the_same_weights(
    precision: str,
) -> None:
    plain, model, graphs = Task(), Task(), Graphs()
    fitted(plain, precision=precision)
    made = fitted(torch.compile(model, backend=backend(graphs)), precision=precision)  # type: ignore[arg-type]
    assert graphs
    assert made.model is model
    assert model.heard == ["epoch_end"] * 2
    assert all(torch.equal(*pair) for pair in zip(weights(plain), weights(model), strict=True))


def test_the_forward_of_a_plain_model_with_a_loss_is_compiled_too() -> None:
    graphs = Graphs()
    model = torch.compile(nn.Linear(4, 2), backend=backend(graphs))
    trainer().fit(model, DATA, loss=nn.MSELoss(), optimizer=torch.optim.SGD)  # type: ignore[arg-type]
    assert graphs


def test_a_model_compiled_in_place_stays_compiled() -> None:
    graphs, model = Graphs(), Task()
    model.compile(backend=backend(graphs))
    fitted(model)
    assert graphs


WRAPS: dict[str, Callable[[nn.Module], Any]] = {
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "data parallel": DataParallel,
    "recomputed": checkpoint_wrapper,
    "twice": lambda net: torch.compile(DataParallel(net), backend="eager"),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS.keys())
def test_parts_in_wrappers_have_the_names_and_the_files_of_a_plain_model(
    wrap: Callable[[nn.Module], Any], tmp_path: Path
) -> None:
    wrapped, plain = Task(wrap), Task()
    state = fitted(wrapped, checkpoints=tmp_path / "wrapped").state_dict()["context"]
    assert [*state["model"]["weights"]] == [*plain.state_dict()]
    assert {*state["model"]["training"]} == {name for name, _ in plain.named_modules()}
    assert state["optimizers"][0]["parameters"] == [[name for name, _ in plain.named_parameters()]]
    load_weights(plain, tmp_path / "wrapped")
    assert all(torch.equal(*pair) for pair in zip(weights(plain), weights(wrapped), strict=True))
    fitted(plain, checkpoints=tmp_path / "plain")
    load_weights(wrapped, tmp_path / "plain")
    assert all(torch.equal(*pair) for pair in zip(weights(plain), weights(wrapped), strict=True))


@pytest.mark.parametrize("there", ["plain", "compiled"])
def test_a_run_goes_on_with_or_without_the_compiler(there: str, tmp_path: Path) -> None:
    def made(*, compiled: bool) -> nn.Module:
        model = Task(WRAPS["compiled"] if compiled else lambda net: net)
        return torch.compile(model, backend="eager") if compiled else model  # type: ignore[return-value]

    reference = Task()
    fitted(reference, max_epochs=3)
    fitted(made(compiled=there == "compiled"), checkpoints=tmp_path)
    model = made(compiled=there == "plain")
    trainer(max_epochs=3, checkpoints=tmp_path).fit(model, DATA, DATA[:1], resume="auto")
    assert all(torch.equal(*pair) for pair in zip(weights(reference), weights(model), strict=True))


def test_a_compiled_run_may_be_stopped_anywhere() -> None:
    def make_trainer() -> Trainer:
        made = trainer(max_epochs=1)
        made.start(torch.compile(Task(WRAPS["compiled"]), backend="eager"), DATA, DATA[:1])  # type: ignore[arg-type]
        return made

    assert_resumable(make_trainer, examples=6, seed=0)


def test_files_of_earlier_versions_with_the_names_of_the_compiler_are_read() -> None:
    model, later = Task(), Task()
    old = {f"_orig_mod.{name}": value + 1 for name, value in model.state_dict().items()}
    PlainNames(later).load_state_dict(old)
    assert all(
        torch.equal(one + 1, other)
        for one, other in zip(weights(model), weights(later), strict=True)
    )


def test_parts_in_wrappers_are_frozen_by_their_own_names() -> None:
    model = Task(WRAPS["compiled"])
    before = [one.clone() for one in model.net.parameters()]
    phases = PhasesLoop(Phase("first", FitLoop(max_epochs=1), freeze=["net.0", "net.1.weight"]))
    Trainer(phases, progress=False).fit(model, DATA)
    changed = [not torch.equal(*pair) for pair in zip(before, model.net.parameters(), strict=True)]
    assert changed == [False, False, False, True]


@pytest.mark.usefixtures("group")
class TestInAProcessGroup:
    @pytest.mark.parametrize("outer", ["compiler", "ranks"])
    def test_compiler_and_ranks_may_stand_around_a_model_in_either_order(self, outer: str) -> None:
        graphs, plain, model = Graphs(), Task(), Task()
        fitted(plain)
        whole: Any
        if outer == "ranks":
            whole = DistributedDataParallel(torch.compile(model, backend=backend(graphs)))
        else:
            whole = torch.compile(DistributedDataParallel(model), backend=backend(graphs))
        seen: list[object] = []
        wrapper = whole if outer == "ranks" else whole._orig_mod
        wrapper.register_forward_hook(lambda *_: seen.append(1))
        fitted(whole)
        assert graphs
        assert len(seen) == 2 * len(DATA)
        assert all(torch.equal(*pair) for pair in zip(weights(plain), weights(model), strict=True))

    def test_a_part_in_ranks_has_its_plain_names(self, tmp_path: Path) -> None:
        fitted(Task(DistributedDataParallel), checkpoints=tmp_path)
        load_weights(Task(), tmp_path)

    @pytest.mark.filterwarnings("ignore")
    def test_parameters_without_names_are_refused(self) -> None:
        from torch.distributed.fsdp import FullyShardedDataParallel

        model = FullyShardedDataParallel(Task(), device_id=torch.device("cpu"))
        with pytest.raises(UnsupportedWrapper, match="FullyShardedDataParallel"):
            fitted(model)


def test_what_is_no_module_comes_back_as_it_is() -> None:
    assert see_through(3) == (3, None)


def test_generators_of_parts_in_wrappers_are_held_under_plain_paths() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.noise = torch.Generator().manual_seed(1)

    held = {
        name: [*own_states({"model": nn.Sequential(wrap(Noisy()))})] for name, wrap in WRAPS.items()
    }
    assert held == {name: ["model.0.noise"] for name in WRAPS}
