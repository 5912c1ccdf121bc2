"""A state written down in memory, as it stands in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from statemachine_trainer.snapshot import strictjson
from statemachine_trainer.snapshot.codec import decode, encode


@dataclass(frozen=True, eq=False)
class Written:
    """A plain tree as the text of a checkpoint, and copies of the tensors that it names.

    The copies are on the CPU: what the run does next does not change them.
    """

    text: bytes
    tensors: dict[str, torch.Tensor]

    @classmethod
    def of(cls, tree: dict[str, Any]) -> Written:
        """Write a tree down.

        Raises:
            Unwritable: It holds something that no checkpoint can hold.
        """
        document, tensors = encode(tree)
        copies = {name: one.to("cpu", copy=True) for name, one in tensors.items()}
        return cls(strictjson.dumps(document), copies)

    def tree(self) -> dict[str, Any]:
        """Read the tree, each time anew: a run takes over what it loads."""
        tensors = {name: one.clone() for name, one in self.tensors.items()}
        tree = decode(strictjson.loads(self.text), tensors)
        assert isinstance(tree, dict)
        return tree

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return len(self.text) + sum(one.nbytes for one in self.tensors.values())
