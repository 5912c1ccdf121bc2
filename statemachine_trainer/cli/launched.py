"""The program of a rank that `smt launch` has started: calls the function of the user."""

from __future__ import annotations

import json
import os
import sys

import torch.distributed as dist

from statemachine_trainer import run_record
from statemachine_trainer.cli.launch import COMMAND_VARIABLE, takes_options
from statemachine_trainer.cli.targets import object_of_target
from statemachine_trainer.cli.train import call_with_options, read_options
from statemachine_trainer.control.processes import attempt_of_process
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.trainer import Trainer

_FAILED = 1


def main() -> None:
    """Call the function that the command line names, with its options; run the trainer that it returns."""
    target, *options = sys.argv[1:]
    command = json.loads(os.environ.pop(COMMAND_VARIABLE, "[]"))
    run_record.note_launch(command)
    if attempt_of_process():
        os.environ.setdefault(run_record.RESUME_VARIABLE, "auto")
    try:
        if takes_options(options):
            made = call_with_options(*read_options(target, options), target)
        else:
            made = object_of_target(target)()
        if isinstance(made, Trainer) and made.driver.path is not None:
            made.run()
    except StateMachineError as error:
        if "--debug" in command:
            raise
        print(f"smt: rank {os.environ.get('RANK', '0')}: {error}", file=sys.stderr)
        sys.exit(_FAILED)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
