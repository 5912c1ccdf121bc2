"""Images, figures, texts, histograms and files in trackers, read back from what the real packages wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statemachine_trainer.integrations.pictures import (
    array_of_figure,
    array_of_image,
    array_of_numbers,
)
from statemachine_trainer.integrations.trackers import CSV, MLflow, NotKept, TensorBoard, Trackio
from statemachine_trainer.loops.loop_errors import SettingError
from tests.integrations.test_trackers import track

ALL = (
    "import torch\n"
    "def keep(tracker, *kinds):\n"
    "    image = torch.linspace(0, 1, 12).reshape(1, 3, 4)\n"
    "    values = {'image': image, 'text': 'words', 'histogram': torch.arange(5)}\n"
    "    for kind in kinds:\n"
    "        getattr(tracker, kind)(3, f'a {kind}', values[kind])\n"
)


@pytest.mark.parametrize(
    "image",
    [
        torch.tensor([[0.0, 1.0]]),
        torch.tensor([[[0, 255]]], dtype=torch.uint8),
        torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16, requires_grad=True),
        torch.tensor([[False, True]]),
        np.array([[0.0, 1.0]]),
        np.array([[[0], [255]]]),
        [[0, 255]],
    ],
)
def test_an_image_is_given_in_many_ways(image: Any) -> None:
    found = array_of_image(image)
    assert found.dtype == np.uint8
    assert found.tolist() == [[[0], [255]]]


def test_colours_of_a_tensor_come_first_and_those_of_an_array_last() -> None:
    assert array_of_image(torch.zeros(3, 5, 7)).shape == (5, 7, 3)
    assert array_of_image(np.zeros((5, 7, 3))).shape == (5, 7, 3)


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(2, 3, 5, 7),
        torch.zeros(2, 5, 7),
        torch.zeros(4),
        torch.zeros(3, 0, 0),
        np.zeros((3, 5, 7)),
        torch.full((2, 2), -0.1),
        torch.full((2, 2), 1.5),
        torch.full((2, 2), torch.nan),
        torch.full((2, 2), 300),
        torch.zeros(2, 2, dtype=torch.complex64),
        "image.png",
        None,
    ],
)
def test_what_is_no_image_is_refused(image: Any) -> None:
    with pytest.raises(SettingError, match=r"[Ii]mage"):
        array_of_image(image)


@pytest.mark.parametrize("values", [[], [float("nan")], ["a"], torch.tensor([torch.inf]), None])
def test_what_makes_no_histogram_is_refused(values: Any) -> None:
    with pytest.raises(SettingError, match="histogram"):
        array_of_numbers(values)


def test_a_figure_is_drawn_and_what_is_none_is_refused() -> None:
    figures: Any = pytest.importorskip("matplotlib.figure")
    figure: Any = figures.Figure(figsize=(2, 1), dpi=50)
    figure.add_subplot().plot([1, 2])
    drawn = array_of_figure(figure)
    assert drawn.shape == (50, 100, 4)
    assert drawn.min() < drawn.max()
    with pytest.raises(SettingError, match="figure of matplotlib"):
        array_of_figure("plot.png")


def test_a_tracker_without_a_place_for_something_says_which_have_one(tmp_path: Path) -> None:
    tracker = CSV(tmp_path / "metrics.csv")
    keeping: list[Callable[[], object]] = [
        lambda: tracker.image(1, "a", torch.zeros(2, 2)),
        lambda: tracker.text(1, "a", "b"),
        lambda: tracker.histogram(1, "a", [1]),
        lambda: tracker.artifact(tmp_path),
    ]
    for keep in keeping:
        with pytest.raises(NotKept, match=r"CSV keeps no .*WandB.* do"):
            keep()


@pytest.mark.slow
def test_tensorboard_has_them(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    track(
        ALL + "from matplotlib.figure import Figure\n"
        "board = trackers.TensorBoard('board')\n"
        "fit(board, epochs=1)\n"
        "keep(board, 'image', 'text', 'histogram')\n"
        "board.figure(3, 'a figure', Figure())\n"
        "board.close()\n"
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "found = EventAccumulator('board').Reload()\n"
        "assert {'a image', 'a figure'} <= {*found.Tags()['images']}, found.Tags()\n"
        "assert found.Images('a image')[0].step == 3\n"
        "assert found.Histograms('a histogram')[0].histogram_value.max == 4\n"
        "assert 'a text/text_summary' in found.Tags()['tensors']\n"
        "assert 'train/loss' in found.Tags()['scalars'], found.Tags()\n",
        tmp_path,
    )


@pytest.mark.slow
def test_mlflow_has_them(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("PIL")
    (tmp_path / "table.txt").write_text("1 2")
    track(
        ALL + "tracker = trackers.MLflow(uri='sqlite:///mlflow.db')\n"
        "fit(tracker, epochs=1)\n"
        "keep(tracker, 'image', 'text')\n"
        "tracker.artifact('table.txt')\n"
        "tracker.artifact('table.txt', 'tables/other.txt')\n"
        "tracker.close()\n"
        "from mlflow.tracking import MlflowClient\n"
        "client = MlflowClient(tracking_uri='sqlite:///mlflow.db')\n"
        "def names(path=None):\n"
        "    found = client.list_artifacts(tracker.run_id, path)\n"
        "    return {n for o in found for n in (names(o.path) if o.is_dir else {o.path})}\n"
        "wanted = {'a image/00000003.png', 'a text/00000003.txt', 'table.txt', 'tables/other.txt'}\n"
        "assert names() == wanted, names()\n",
        tmp_path,
    )


@pytest.mark.slow
def test_weights_and_biases_has_them_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    pytest.importorskip("PIL")
    (tmp_path / "table.txt").write_text("1 2")
    track(
        ALL + "tracker = trackers.WandB(project='digits', mode='offline')\n"
        "keep(tracker, 'image', 'text', 'histogram')\n"
        "tracker.artifact('table.txt')\n"
        "tracker.close()\n",
        tmp_path,
    )
    (written,) = tmp_path.rglob("run-*.wandb")
    content = written.read_bytes()
    assert all(f"a {kind}".encode() in content for kind in ("image", "text", "histogram"))
    assert b"table.txt" in content
    assert [*tmp_path.rglob("a image*.png")]


@pytest.mark.slow
def test_trackio_has_them(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    track(
        ALL + "tracker = trackers.Trackio('digits', name='mine')\n"
        "keep(tracker, 'image', 'text', 'histogram')\n"
        "tracker.close()\n",
        tmp_path,
    )
    (database,) = tmp_path.rglob("digits*.db")
    content = b"".join(one.read_bytes() for one in database.parent.glob(f"{database.name}*"))
    assert all(f"a {kind}".encode() in content for kind in ("image", "text", "histogram"))
    assert [*tmp_path.rglob("*.png")]


@pytest.mark.parametrize("kind", [TensorBoard, MLflow, Trackio])
def test_each_service_says_what_it_keeps_in_its_methods(kind: type) -> None:
    assert {"image", "text"} <= vars(kind).keys()
