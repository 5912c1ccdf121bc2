"""`python -m statemachine_trainer` is `smt`."""

from statemachine_trainer.cli import main

if __name__ == "__main__":
    main()
