"""What other trainers cost, each against a bare PyTorch loop that takes turns with it.

The first call sets up an environment for each peer under the cache folder (torch is shared, a
minute and some 100 MB for most); later calls use them. Each peer runs in processes of its own, in
which a bare loop trains a twin model on the same batches, block by block in turns (see `_twins.py`).

- tiny: a perceptron of which a step takes some hundred microseconds;
- tiny, one callback: the same with one callback for each batch;
- 5 ms: a larger one, of about 5 ms a step;
- tiny, as used, and 5 ms, as used: the same with a progress bar, two values and the learning rate
  logged in each step, and a checkpoint every 100 steps, as far as a peer has them (ours with the
  black box, and checkpoints in the background); of peers that have an adapter for it;
- training: three epochs of 100 of these steps with a validation each, a loader with 2 workers, a
  log and a checkpoint every 100 steps; whole trainings take turns.

    python benchmarks/peers.py [--quick] [--processes 3] [--only Ignite --only Fabric]
        [--row tiny] [--cpu-time] [--write docs/performance] [--set-up]

On a machine that others use at the same time --cpu-time leaves out what they take, for all rows but
the last, whose loader works in other processes. With --write the table, the plot and the figures go
to that folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from _peers.environments import PEERS, Peer, python_of, set_up
from _peers.report import Results, load, plot, table
from overhead import machine

HERE = Path(__file__).parent
TIMED = ("tiny", "tiny, one callback", "tiny, as used", "5 ms", "5 ms, as used", "training")


def run(peer: Peer, rows: tuple[str, ...], settings: list[str]) -> list[dict[str, object]]:
    """Measure rows of a peer in a new process."""
    command = [str(python_of(peer.environment)), "-m", "_peers.inside", peer.adapter, *rows]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": str(HERE),
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # import times are those of compiled modules
    done = subprocess.run(
        [*command, *settings], env=environment, capture_output=True, text=True, timeout=1800
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"row"')]
    if done.returncode:
        last = "\n".join(done.stderr.splitlines()[-6:])
        print(f"{peer.name} failed at {rows[max(0, len(lines) - 1) :]}:\n{last}", file=sys.stderr)
    return [json.loads(line) for line in lines]


def measure(
    peers: list[Peer], rows: tuple[str, ...], processes: int, settings: list[str]
) -> Results:
    """Measure peers, one process after the other, each peer in turn."""
    results: Results = {peer.name: {} for peer in peers}
    for number in range(processes):
        for peer in peers:
            # What is counted is counted once; memory is that of a process that does nothing else.
            runs = [rows, ("counts",), ("memory",)] if number == 0 else [rows]
            for line in (line for some in runs for line in run(peer, some, settings)):
                results[peer.name].setdefault(str(line.pop("row")), []).append(line)
            print(f"{number + 1}/{processes} {peer.name}", file=sys.stderr)
    return results


def main() -> None:
    """Set up, measure, print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one process, few turns")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--turns", type=float, default=1.0, help="factor on the number of turns")
    parser.add_argument("--only", action="append", help="only this peer; may be given again")
    parser.add_argument("--row", action="append", choices=TIMED, help="only this row")
    parser.add_argument("--write", type=Path, help="folder for the table, the plot and figures")
    parser.add_argument(
        "--cpu-time", action="store_true", help="instead of the time on the wall, but for trainings"
    )
    parser.add_argument("--set-up", action="store_true", help="set up and do nothing else")
    options = parser.parse_args()
    wanted = options.only or [peer.name for peer in PEERS]
    unknown = set(wanted) - {peer.name for peer in PEERS}
    if unknown:
        parser.error(f"no peer is called {sorted(unknown)}; there are {[p.name for p in PEERS]}")
    peers = [peer for peer in PEERS if peer.name in wanted]
    set_up(peers)
    if options.set_up:
        return
    processes = 1 if options.quick else options.processes
    factor = options.turns / 3 if options.quick else options.turns
    settings = ["--turns", str(factor), *(["--cpu-time"] if options.cpu_time else [])]
    clock = "CPU time" if options.cpu_time else "time on the wall"
    how = f"{machine()}; one thread; {processes} processes for each peer; {clock}; {load()}"
    results = measure(peers, tuple(options.row or TIMED), processes, settings)
    print(f"{how}\n\n{table(results)}")
    if options.write is not None:
        options.write.mkdir(parents=True, exist_ok=True)
        figures = {"how": how, "results": results}
        (options.write / "peers.json").write_text(json.dumps(figures, indent=1) + "\n")
        (options.write / "peers.md").write_text(f"# Twelve trainers\n\n{how}\n\n{table(results)}\n")
        plot(results, options.write / "peers.svg")


if __name__ == "__main__":
    main()
