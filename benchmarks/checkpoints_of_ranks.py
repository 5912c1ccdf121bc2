"""What a checkpoint in parts costs, against the number of ranks and the size of the model: bytes and seconds.

A perceptron with Adam is cut up by `fully_shard` among 1, 2, 4 and 8 processes over gloo. Counted is what the ranks
hand to the process group while one checkpoint is saved, and what each writes. Seconds are the lowest of some saves.
They tell little where there are more ranks than cores; bytes are the same everywhere.

    python benchmarks/checkpoints_of_ranks.py [--ranks 1 2 4 8] [--widths 256 2048] [--write FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from overhead import machine
from torch import Tensor, multiprocessing, nn
from torch.distributed import distributed_c10d
from torch.distributed.fsdp import fully_shard

from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.snapshot import Store
from statemachine_trainer.snapshot.ranked import save_together

SAVES = 5
Found = dict[str, float]


def bytes_of(value: object) -> int:
    """Return the bytes of the tensors in an argument of a collective."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(bytes_of, value)) if isinstance(value, list) else 0


class Counted:
    """Counts the bytes that this rank hands to the process group.

    Attributes:
        sent: So far.
    """

    def __init__(self, rank: int) -> None:
        self.sent = 0
        self._rank = rank

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count within the block."""
        before = {}
        for name, place in (
            *(("all_gather", 1), ("all_reduce", 0), ("gather", 0), ("send", 0), ("isend", 0)),
            *(("broadcast", 0), ("scatter", 1)),
        ):
            before[name] = getattr(distributed_c10d, name)
            for module in (distributed_c10d, dist):
                setattr(module, name, self._counted(before[name], place, name))
        try:
            yield
        finally:
            for name, call in before.items():
                for module in (distributed_c10d, dist):
                    setattr(module, name, call)

    def _counted(self, call: Any, place: int, name: str) -> Any:
        from_first = name in ("broadcast", "scatter")  # the others hand in room for what they get

        def counting(*arguments: Any, **named: Any) -> Any:
            if not from_first or self._rank == 0:
                value = arguments[place] if len(arguments) > place else named.get("scatter_list")
                self.sent += bytes_of(value)
            return call(*arguments, **named)

        return counting


def measure(width: int, folder: Path) -> Found:
    """Save checkpoints as one of the ranks that are up; return what one of them cost at this rank."""
    ranks = Ranks.here()
    rank = 0 if ranks is None else ranks.rank
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 64))
    if ranks is not None:
        parts: tuple[Any, ...] = (model[0], model[2], model)
        for part in parts:
            fully_shard(part)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 64)).sum().backward()
    optimizer.step()
    tree = {"weights": dict(model.state_dict()), "optimizer": optimizer.state_dict()}
    store, counted, seconds = Store(folder), Counted(rank), []
    for number in range(SAVES):
        counted.sent, before = 0, time.perf_counter()
        with counted.counting():
            if ranks is None:
                path = store.save(tree, name=f"{number}")
            else:
                path = save_together(ranks, store, tree, name=f"{number}", metadata={})
        seconds.append(time.perf_counter() - before)
    sizes = {one.name: one.stat().st_size for one in path.iterdir()}
    own = sizes.pop(f"shard-{rank}.safetensors", 0)
    rest = sum(size for name, size in sizes.items() if not name.startswith("shard-"))
    return {"sent": counted.sent, "part": own, "rest": rest, "seconds": min(seconds)}


def _as_rank(rank: int, size: int, widths: list[int], folder: Path) -> None:
    os.environ |= {"RANK": f"{rank}", "WORLD_SIZE": f"{size}", "LOCAL_RANK": f"{rank}"}
    torch.set_num_threads(1)
    if size > 1:
        place = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=size)
    found = {width: measure(width, folder / f"width-{width}") for width in widths}
    (folder / f"found-{rank}.json").write_text(json.dumps(found))
    if size > 1:
        dist.destroy_process_group()


def launch(size: int, widths: list[int]) -> dict[int, list[Found]]:
    """Measure with so many ranks; return what each found, by width."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = (size, widths, folder)
        start: Any = vars(multiprocessing)["start_processes"]  # it has no types
        start(_as_rank, given, nprocs=size, start_method="fork")
        told = [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(size)]
    return {width: [one[f"{width}"] for one in told] for width in widths}


def draw(found: dict[int, dict[int, list[Found]]], path: Path) -> None:
    """Draw bytes and seconds against the number of ranks, a line for each width, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "ranks"  # the same figures make the same file
    from matplotlib import pyplot as plt

    titles = {
        "sent": "bytes a rank sends",
        "part": "bytes a rank writes",
        "rest": "bytes rank 0 writes for all",
        "seconds": "seconds",
    }
    figure, panels = plt.subplots(1, len(titles), figsize=(12, 3))
    sizes = [*found]
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        for width, color in zip(found[sizes[0]], ("#fb923c", "#1e3a8a", "#0f766e"), strict=False):
            most = [found[size][width][-1][key] for size in sizes]
            panel.plot(sizes, most, "o-", color=color, markersize=4, label=f"width {width}")
        panel.set_title(title, fontsize=9)
        panel.set_xscale("log", base=2)
        panel.set_xticks(sizes, [f"{size}" for size in sizes])
        panel.set_xlabel("ranks")
        panel.set_yscale("symlog", linthresh=1 if key != "seconds" else 0.001)
        panel.set_ylim(bottom=0)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--write", type=Path, help="folder for the table and the plot")
    given = parser.parse_args()
    found = {size: launch(size, given.widths) for size in given.ranks}
    rows = [
        "| ranks | weights | a rank sends, bytes | rank 0 writes for all, bytes | a rank writes, bytes | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for size, by_width in found.items():
        for width, told in by_width.items():
            weights, last = 129 * width + 64, told[-1]
            cells = f"{last['sent']:,.0f} | {last['rest']:,.0f} | {last['part']:,.0f} | {last['seconds']:.3f}"
            rows.append(f"| {size} | {weights:,} | {cells} |")
    table = "\n".join(rows)
    how = f"{machine()}; load {os.getloadavg()[0]:.1f}; lowest of {SAVES} saves"
    print(f"{how}\n\n{table}")
    if given.write is not None:
        text = f"# Checkpoints in parts, against the number of ranks\n\n{how}\n\n{table}\n"
        (given.write / "checkpoints_of_ranks.md").write_text(text)
        draw(found, given.write / "checkpoints_of_ranks.svg")


if __name__ == "__main__":
    main()
