"""The results of `benchmarks/peers.py` as a table and as a plot."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

Results = dict[str, dict[str, list[dict[str, Any]]]]
"""What each process found, by peer and row."""


def load() -> str:
    """How busy the machine is with others: on a busy one times say little."""
    return f"load {os.getloadavg()[0]:.1f} at the beginning" if hasattr(os, "getloadavg") else ""


RATIOS = ("tiny", "tiny, one callback", "tiny, as used", "5 ms", "5 ms, as used", "training")


def table(results: Results) -> str:
    """Lay out the results in Markdown."""
    rows = [
        "| | tiny | one callback | as used | 5 ms | as used | training | more, us/step | calls "
        "| operations | waits | peak MiB | import, s | weights |",
        f"|{'---|' * 14}",
    ]
    for peer, found in results.items():
        cells = [_ratio(found.get(row, [])) for row in RATIOS]
        cells += [
            _median(found.get("tiny", []), "extra_us", "{:.0f}"),
            _median(found.get("counts", []), "calls", "{:.0f}"),
            _median(found.get("counts", []), "operations", "{:.0f}"),
            _median(found.get("counts", []), "waits", "{:.0f}"),
            _median(found.get("memory", []), "peak_mib", "{:.0f}"),
            _median(found.get("import", []), "seconds", "{:.2f}"),
            _weights(found),
        ]
        rows.append(f"| {peer} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _ratio(runs: list[dict[str, Any]]) -> str:
    ratios = [run["ratio"] for run in runs]
    if not ratios:
        return "-"
    middle = f"**{statistics.median(ratios):.3f}**"
    return middle if len(ratios) == 1 else f"{middle} ({min(ratios):.3f} to {max(ratios):.3f})"


def _median(runs: list[dict[str, Any]], name: str, form: str) -> str:
    return form.format(statistics.median(run[name] for run in runs)) if runs else "-"


def _weights(found: dict[str, list[dict[str, Any]]]) -> str:
    runs = [run for row in RATIOS for run in found.get(row, [])]
    if not runs:
        return "-"
    if all(run["same_bits"] for run in runs):
        return "to the bit"
    return f"within {max(run['apart'] for run in runs):.0e}"


def plot(results: Results, path: Path) -> None:
    """Draw the ratios, a panel for each row, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "peers"  # the same figures make the same file
    from matplotlib import pyplot as plt

    names = [*results]
    rows = [row for row in RATIOS if any(row in found for found in results.values())]
    width = 2.5 + 2.7 * len(rows)
    figure, grid = plt.subplots(1, len(rows), figsize=(width, 4.2), sharey=True, squeeze=False)
    panels = grid[0]
    for panel, row in zip(panels, rows, strict=True):
        for place, name in enumerate(names):
            ratios = [run["ratio"] for run in results[name].get(row, [])]
            if not ratios:
                continue
            middle = statistics.median(ratios)
            color = "#c2410c" if name == "statemachine_trainer" else "#64748b"
            panel.barh(place, middle, color=color, height=0.7)
            panel.plot([min(ratios), max(ratios)], [place, place], color="black", linewidth=1)
            panel.text(middle, place, f" {middle:.3f}", va="center", fontsize=8)
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_title(row, fontsize=10)
        panel.margins(x=0.2)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.supxlabel("time, as a ratio to a bare PyTorch loop", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
