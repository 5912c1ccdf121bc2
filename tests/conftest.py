"""Settings for every test: hypothesis profiles and seeds, one thread for torch, signals as in a terminal."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Before anything imports torch, and inherited by the processes that tests start: with several
# threads, two test workers on two cores slow each other down many times over.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# A shell starts what it runs in the background with SIGINT ignored, nohup does so with SIGHUP, and
# processes that tests start would inherit it: Ctrl-C would not reach them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for other in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
    if signal.getsignal(other) is signal.SIG_IGN:
        signal.signal(other, signal.SIG_DFL)

# Else each worker, and each process that tests start, would compile this package anew. What tests write
# themselves is left alone: Python takes a file that changes within a second for the one that it knows.
WRITES_NO_BYTECODE = sys.dont_write_bytecode
sys.dont_write_bytecode = False

# No deadline: how long an example takes says something of the machine, nothing of the law.
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "dev",
    deadline=None,
    max_examples=30,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)

# Collecting imports half a million objects, and leaves next to no garbage among them.
gc.set_threshold(200_000, 10, 10)

MANY_MODULES = 100
_put_aside = [0]
"""How many modules there were when what they hold was put aside."""

PROFILE = os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
settings.load_profile(PROFILE)


# First, so that hypothesis reads this seed; pytest-xdist hands it on to its workers.
@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Draw the same examples each time in the fast suite and in CI, which decide on a change; else new ones.

    A draw that nobody has met yet says something of the code as it was before, and must not refuse
    the change that happens to meet it. `make test-slow` looks for such draws.
    """
    if config.getoption("hypothesis_seed") is None:
        decides = PROFILE == "ci" or "not slow" in config.getoption("markexpr")
        seed = 0 if decides else random.SystemRandom().randrange(2**32)
        config.option.hypothesis_seed = str(seed)


def pytest_report_header(config: pytest.Config) -> str:
    seed = config.getoption("hypothesis_seed")
    return f"hypothesis: profile {PROFILE}, seed {seed} (again: --hypothesis-seed={seed})"


def pytest_collection_finish() -> None:
    """Write no bytecode from here on, if so told, and hold torch to one thread if it has been imported."""
    sys.dont_write_bytecode = WRITES_NO_BYTECODE
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    # Tests make most objects only to drop them at once; looking for cycles after every 700 of them took a
    # sixth of their time.
    gc.set_threshold(10_000, 10, 10)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none, and put aside what was imported since the test before.

    What was imported stays to the end. Each search for garbage would go through all of it: half a million
    objects once something was compiled, for a quarter of a second.
    """
    if len(sys.modules) > _put_aside[0] + MANY_MODULES:
        gc.collect()
        gc.freeze()
        _put_aside[0] = len(sys.modules)
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")


@pytest.fixture
def address() -> Iterator[str]:
    """A place in memory that fsspec reaches, empty before and after."""
    fsspec = pytest.importorskip("fsspec")
    name = f"memory://{uuid.uuid4().hex}/run"
    yield name
    files, root = fsspec.url_to_fs(name)
    if files.exists(root):
        files.rm(root, recursive=True)
