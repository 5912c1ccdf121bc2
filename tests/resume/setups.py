"""The set-ups that are stopped at every boundary, here and in the table of docs/resuming.md."""

from __future__ import annotations

from statemachine_trainer.testing.setups import Setup

SETUPS = {
    "one optimizer": Setup(schedule="onecycle", clip_norm=1.0),
    "two optimizers": Setup(optimization="two", schedule="plateau", samples=15),
    "optimizers that take turns": Setup(optimization="frequencies", schedule="multistep"),
    "truncated backpropagation with hidden state": Setup(
        split_steps=2, schedule="step", samples=15
    ),
    "optimization by hand": Setup(optimization="manual"),
    "LBFGS": Setup(optimization="lbfgs"),
    "accumulation with validation inside": Setup(
        accumulate=[(0, 3)], validate_every=[2, "batch"], schedule="lambda"
    ),
    "sanity check, two validation loaders": Setup(
        sanity_batches=2, validation_loaders=2, validate_every=[0.5, "epoch"], samples=15
    ),
    "mixed precision, a callback with state, stop": Setup(
        precision="bf16", stateful_callback=True, stop_at=5, gather_outputs=True
    ),
    "losses left out": Setup(nan_at=1, accumulate=[(0, 2)], schedule="epoch"),
    "limit of steps within an epoch": Setup(max_steps=5, max_epochs=3, schedule="sequential"),
    "a sampler with its own generator": Setup(data="sampler", seed=None),
    "a list of batches": Setup(data="list", schedule="restarts"),
    "a stream with state": Setup(data="stateful stream"),
    "a stream without state": Setup(data="stream"),
    "two workers": Setup(workers=2, samples=15),
    "samples seeded one by one": Setup(seed_samples=True, samples=15),
}
