"""Debugging a run: breakpoints, its position, and going back."""

from statemachine_trainer.debugging.breakpoints import Breakpoint, Breakpoints
from statemachine_trainer.debugging.debugger_errors import BadBreakpoint, NothingRemembered
from statemachine_trainer.debugging.rewinding import Memory, Rewound
from statemachine_trainer.debugging.where import Where

__all__ = [
    "BadBreakpoint",
    "Breakpoint",
    "Breakpoints",
    "Memory",
    "NothingRemembered",
    "Rewound",
    "Where",
]
