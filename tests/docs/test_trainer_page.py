"""The page of the trainer leaves out no setting, no method and no extra."""

from __future__ import annotations

import configparser
import inspect
import re
from pathlib import Path

from statemachine_trainer import Trainer
from statemachine_trainer.machine.keywords import settings_of

ROOT = Path(__file__).parents[2]
NAMES = set(re.findall(r"`([a-z_]+)[(`]", (ROOT / "docs/trainer.md").read_text(encoding="utf-8")))


def test_every_setting_is_there() -> None:
    assert set(settings_of(Trainer)) - NAMES == set()


def test_every_public_method_and_attribute_is_there() -> None:
    public = {name for name, _ in inspect.getmembers(Trainer) if not name.startswith("_")}
    assert public - {"more_settings"} - NAMES == set()


def test_every_extra_is_there() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert set(setup["options.extras_require"]) - NAMES == set()
