"""The compiled step: a whole training step as one compiled call.

- `step`: the loop, `CompiledStep`, and when it goes the uncompiled way;
- `fused`: all that is captured and compiled for one optimizer;
- `capture`: the training step as a graph, its guards, and the code around it;
- `joint`: graph, gradients, clipping and optimizer traced into one graph;
- `compiling`: that graph compiled;
- `draws`, `layout`: its random numbers, and the memory of its tensors;
- `binding`, `stepping`: what the programs hold of an optimizer and of the code of its step, and
  whether it still is so;
- `hooked`, `lookups`: what else a captured step was read from, and whether names stand for the same;
- `comparing`: whether a program comes to what the step comes to without the compiler;
- `wording`: what Dynamo says, in plain words;
- `kept`: compiled programs on disk, for later processes;
- `private`, `private_disk`, `private_names`: all that is taken from inside of torch.
"""

from statemachine_trainer.loops.compiled.compiled_errors import CompiledDiffers, NotCompiled
from statemachine_trainer.loops.compiled.step import CompiledStep

__all__ = ["CompiledDiffers", "CompiledStep", "NotCompiled"]
