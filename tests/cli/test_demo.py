from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

from statemachine_trainer.cli import app
from statemachine_trainer.demo import DigitNet, load_digits, run_demo
from statemachine_trainer.observe.run import Run
from statemachine_trainer.page.recorded import FolderRun
from statemachine_trainer.trainer import Trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of one whole run of the command."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    result = CliRunner().invoke(app, ["demo", "--out", str(folder)])
    assert result.exit_code == 0, result.output
    return folder, result.stdout


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_it_learns_to_read_digits(run: tuple[Path, str]) -> None:
    result = read(run[0] / "result.json")
    assert result["validation_accuracy"] >= 0.97
    assert result["test_accuracy"] >= 0.97


def test_it_prints_the_table_the_result_and_at_the_end_where_the_picture_is(
    run: tuple[Path, str],
) -> None:
    folder, output = run
    assert output.startswith("Handwritten digits: ")
    assert output.splitlines()[-1].endswith(str(folder / "graph.svg"))
    heads = [line for line in output.splitlines() if line.startswith("epoch")]
    assert heads == ["epoch   val_loss  val_accuracy       loss   accuracy         time"]
    assert len(re.findall(r"^ +\d+  .* s$", output, re.MULTILINE)) == 12
    result = read(folder / "result.json")
    assert f"{result['test_accuracy']:.2%} in the test" in output
    assert str(folder) in output


def test_it_writes_graph_weights_and_facts_into_the_folder_of_the_run(
    run: tuple[Path, str],
) -> None:
    folder, _ = run
    files = ["graph.mmd", "graph.svg", "result.json", "weights.safetensors"]
    of_the_run = ["blackbox-0.ring", "journal.sqlite", "run.json"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*files, *of_the_run])
    assert (folder / "graph.mmd").read_text() == Trainer().graph().to_mermaid()
    facts = read(folder / "result.json")
    assert facts["settings"]["seed"] == 0
    assert {"torch", "python", "statemachine_trainer"} <= facts["versions"].keys()


def test_its_folder_is_that_of_a_run_for_all_that_reads_runs(run: tuple[Path, str]) -> None:
    folder, _ = run
    recorded = Run(folder)
    assert (recorded.status, recorded.progress()) == ("ended", (12, 12 * 20))
    assert [one.epoch for one in recorded.epochs()] == list(range(1, 13))
    test = recorded.metrics("test_accuracy")[0].value
    assert test == pytest.approx(read(folder / "result.json")["test_accuracy"])
    for arguments, told in (
        (["runs", str(folder.parent)], "val_accuracy"),
        (["inspect", str(folder)], "ended, 12 epochs"),
        (["blackbox", str(folder)], "ended"),
    ):
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        assert told in result.output


def test_a_page_shows_its_folder(run: tuple[Path, str]) -> None:
    shown = FolderRun(run[0]).state()
    assert (shown["mood"], shown["counts"]) == ("ended", {"epoch": 12, "step": 12 * 20})


def test_a_second_run_sets_the_record_of_the_first_aside(tmp_path: Path) -> None:
    weights_of(tmp_path, 1)
    weights_of(tmp_path, 2)
    assert len(Run(tmp_path).epochs()) == len(Run(tmp_path / "earlier-1").epochs()) == 1


def test_the_weights_that_it_writes_have_the_accuracy_that_it_tells(run: tuple[Path, str]) -> None:
    folder, _ = run
    model = DigitNet(1)
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    model.eval()
    pictures, classes = load_digits(0).test.tensors
    with torch.no_grad():
        accuracy = (model(pictures).argmax(1) == classes).double().mean().item()
    told = read(folder / "result.json")["test_accuracy"]
    # A batch of another size is summed in another order: a picture or so on the edge may differ.
    assert accuracy == pytest.approx(told, abs=0.01)


def test_the_parts_of_the_data_do_not_overlap_and_have_all_classes_alike() -> None:
    digits = load_digits(3)
    parts = [digits.train, digits.validation, digits.test]
    assert [len(part) for part in parts] == [1257, 270, 270]
    assert sum(len(part) for part in parts) == 1797
    for part in parts:
        shares = torch.bincount(part.tensors[1], minlength=10) / len(part)
        assert shares.min() > 0.09
        assert shares.max() < 0.11


def weights_of(folder: Path, seed: int) -> dict[str, torch.Tensor]:
    run_demo(epochs=1, seed=seed, out=folder, quiet=True, say=lambda _line: None)
    return load_file(folder / "weights.safetensors")


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    one, same, other = (
        weights_of(tmp_path / name, seed) for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])


def test_too_little_training_is_told_by_the_exit_code(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = CliRunner().invoke(app, ["demo", "--epochs", "1", "--quiet", "--out", str(out)])
    assert result.exit_code == 1
    assert "below 97%" in result.stderr
    assert (out / "weights.safetensors").exists()


def test_quiet_says_the_result_only(tmp_path: Path) -> None:
    said: list[str] = []
    run_demo(epochs=1, out=tmp_path / "run", quiet=True, say=said.append)
    assert [line.split()[0] for line in said] == ["Accuracy", "Written", "More"]


def test_without_a_folder_it_makes_a_new_one_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {run_demo(epochs=1, quiet=True, say=lambda _line: None).folder for _ in range(2)}
    assert len(folders) == 2
    assert all(folder.parent == Path("runs") for folder in folders)


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "has other files in it, such as 'thesis.tex'" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "file")])
    assert result.exit_code == 2
    assert "--out" in result.stderr
    assert "Traceback" not in result.output


def test_without_scikit_learn_it_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['sklearn'] = None  # so Python marks what cannot be imported\n"
        "from statemachine_trainer.cli import main\n"
        f"sys.argv = ['smt', 'demo', '--out', {str(tmp_path / 'run')!r}]\n"
        "main()\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'statemachine-trainer[demo]'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_data_are_pictures_between_0_and_1() -> None:
    train: TensorDataset = load_digits(0).train
    assert train.tensors[0].shape == (1257, 1, 8, 8)
    assert (train.tensors[0].min().item(), train.tensors[0].max().item()) == (0, 1)
