"""Hierarchical state machines whose states work.

Declared with loops, defined by a machine of the library `transitions`, compiled to run.

Knows nothing of torch.
"""

from statemachine_trainer.machine.board import LostSubscription, SignalBoard
from statemachine_trainer.machine.chart import Chart
from statemachine_trainer.machine.declaration import transient
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.fields import field
from statemachine_trainer.machine.loop import Loop, place
from statemachine_trainer.machine.signals import Moment, Signal, Subscription

__all__ = [
    "Chart",
    "Driver",
    "Loop",
    "LostSubscription",
    "Moment",
    "Signal",
    "SignalBoard",
    "Subscription",
    "field",
    "place",
    "transient",
]
