"""The compiled step: a whole training step as one compiled call.

- `step`: the loop, `CompiledStep`, and when it goes the uncompiled way;
- `fused`: all that is captured and compiled for one optimizer;
- `capture`: the training step as a graph, its guards, and the code around it;
- `joint`: graph, gradients, clipping and optimizer traced into one graph;
- `program`: that graph compiled;
- `binding`: what the programs hold of an optimizer, and whether it still is so.
"""

from statemachine_trainer.loops.compiled.step import CompiledStep, NotCompiled

__all__ = ["CompiledStep", "NotCompiled"]
