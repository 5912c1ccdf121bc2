"""No item is read twice, and none is left out, wherever the run is stopped."""

from __future__ import annotations

from torch.utils.data import DataLoader

from statemachine_trainer.trainer import Trainer
from tests.resume.kit import Counted, boundaries, split_run, started


def test_both_parts_together_read_what_one_whole_run_reads_at_every_stop_point() -> None:
    reads: list[int] = []
    checked: list[int] = []

    def make_trainer() -> Trainer:
        trainer = Trainer(max_epochs=2, progress=False, seed=3, sanity_batches=0)
        loader = DataLoader(Counted(8, reads), batch_size=4, shuffle=True)
        return started(trainer, train=loader, validation=DataLoader(Counted(3, checked), 2))

    walk = boundaries(make_trainer)
    whole, whole_checked = [*reads], [*checked]
    assert len(whole) == 16
    assert len(whole_checked) == 6
    for stop, boundary in enumerate(walk):
        if boundary.transient:
            continue
        reads.clear()
        checked.clear()
        split_run(make_trainer, stop)
        assert (reads, checked) == (whole, whole_checked), f"stopped {boundary}"
