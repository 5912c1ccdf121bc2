"""Prints the table of docs/resuming.md: stop points tried and exact, by set-up.

python tests/resume/table.py
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

from statemachine_trainer.data import ReplayWarning  # noqa: E402
from statemachine_trainer.testing import NotResumable, assert_resumable  # noqa: E402
from tests.resume.setups import SETUPS  # noqa: E402


def main() -> None:
    warnings.simplefilter("ignore", ReplayWarning)
    print("| set-up | boundaries | transient | stop points tried | exact |")
    print("|---|---|---|---|---|")
    for name, setup in SETUPS.items():
        try:
            report = assert_resumable(setup.make_trainer, exhaustive=True)
        except NotResumable as error:
            print(f"| {name} | | | | NOT EXACT: {str(error).splitlines()[2].strip()} |")
            continue
        numbers = [report.boundaries, report.transient, len(report.tried), len(report.tried)]
        print(f"| {name} | {' | '.join(map(str, numbers))} |", flush=True)


if __name__ == "__main__":
    main()
