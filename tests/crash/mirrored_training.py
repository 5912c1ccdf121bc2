"""A training whose checkpoints go to S3, killed just before it sends its n-th file.

    python -m tests.crash.mirrored_training FOLDER ADDRESS ENDPOINT N

N is 0 for never. Prints the digest of the weights that it ends with.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from typing import Any

from statemachine_trainer import Checkpoints, Mirror, Retention
from tests.callbacks.kit import Net, batches, trainer_with


class Killed(Mirror):
    """A mirror that kills its process before the n-th file."""

    def __init__(self, address: str, before: int, options: Any) -> None:
        super().__init__(address, options=options)
        self.left = before

    def _make_folder(self, path: str) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._make_folder(path)


def main(folder: str, address: str, endpoint: str, before: str) -> None:
    mirror = Killed(address, int(before), options={"endpoint_url": endpoint})
    checkpoints = Checkpoints(folder, every=3, retention=Retention(last=2), mirror=mirror)
    trainer = trainer_with(checkpoints, max_epochs=2)
    trainer.fit(Net(), batches(), batches(1), resume="auto")
    weights = b"".join(one.numpy().tobytes() for one in trainer.model.state_dict().values())
    print(hashlib.sha256(weights).hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])
