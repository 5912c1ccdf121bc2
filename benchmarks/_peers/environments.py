"""An environment for each peer: torch is shared, everything else is its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Peer:
    """A trainer that is compared.

    Attributes:
        name: As the table calls it.
        adapter: The module of `adapters` that uses it.
        environment: The environment that it runs in.
        requirements: What pip installs there.
    """

    name: str
    adapter: str
    environment: str
    requirements: tuple[str, ...] = ()


PEERS = (
    Peer("bare PyTorch", "bare", "ours", (str(REPOSITORY),)),
    Peer("statemachine_trainer", "ours", "ours", (str(REPOSITORY),)),
    Peer("background checkpoints", "ours_background", "ours", (str(REPOSITORY),)),
    Peer("Ignite", "ignite", "ignite", ("pytorch-ignite==0.5.5", "tqdm==4.70.1")),
    Peer("Fabric", "fabric", "lightning", ("lightning==2.6.6",)),
    Peer("Lightning", "lightning", "lightning", ("lightning==2.6.6",)),
    Peer("Accelerate", "accelerate", "accelerate", ("accelerate==1.15.0",)),
    Peer(
        "transformers",
        "transformers",
        "transformers",
        ("transformers==5.23.0", "accelerate==1.15.0"),
    ),
    Peer("torchtnt", "torchtnt", "torchtnt", ("torchtnt==0.2.4", "setuptools==80.9.0")),
    Peer("skorch", "skorch", "skorch", ("skorch==1.4.0",)),
    Peer("fastai", "fastai", "fastai", ("fastai==2.8.12",)),
    Peer(
        "pytorch-accelerated",
        "pytorch_accelerated",
        "pytorch_accelerated",
        ("pytorch-accelerated==0.1.61", "accelerate==1.15.0"),
    ),
    Peer("Keras", "keras", "keras", ("keras==3.15.1",)),
)
"""In the order of the table. Composer is left out: it needs torch below 2.7.1."""


def cache_folder() -> Path:
    """Where the environments are: one set for each version of torch."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    python = "{}.{}".format(*sys.version_info)
    return Path(base, "statemachine_trainer", "peers", f"py{python}-torch{version('torch')}")


def python_of(environment: str) -> Path:
    """The interpreter of an environment."""
    return cache_folder() / environment / "bin" / "python"


def set_up(peers: list[Peer]) -> None:
    """Make the environments that are not there yet; those that are stay as they are.

    One holds the torch of this interpreter's version. The others see it through a path file and
    install only what they need besides, so that nobody finds packages of another peer by chance.
    """
    torch = f"torch=={version('torch')}"
    _make("torch", (torch, f"numpy=={version('numpy')}"), shares=None)
    packages = next((cache_folder() / "torch" / "lib").glob("python*")) / "site-packages"
    for peer in peers:
        _make(peer.environment, peer.requirements, shares=packages, holding=torch)


def _make(
    name: str, requirements: tuple[str, ...], *, shares: Path | None, holding: str | None = None
) -> None:
    folder = cache_folder() / name
    stamp = folder / "requirements.txt"
    wanted = "\n".join(requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"Setting up {name}: {' '.join(requirements)}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    if shares is not None:
        packages = next((folder / "lib").glob("python*")) / "site-packages"
        (packages / "shared_torch.pth").write_text(f"{shares}\n")
    install = [str(python_of(name)), "-m", "pip", "install", "--quiet", *requirements]
    if holding is not None:
        held = folder / "holding.txt"
        held.write_text(holding)
        install += ["--constraint", str(held)]
    if str(REPOSITORY) in requirements:
        install.insert(install.index(str(REPOSITORY)), "--editable")
    subprocess.run(install, check=True, stdout=sys.stderr)
    stamp.write_text(wanted)
