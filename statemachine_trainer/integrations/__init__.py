"""Models, metrics and callbacks of other libraries in this trainer.

Each module needs the library that it is named after, and nothing else here does:

    from statemachine_trainer.integrations import lightning

Models of Hugging Face need no module: `trainer.fit(model, loader, optimizer=...)`.
"""
