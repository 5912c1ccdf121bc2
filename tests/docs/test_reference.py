"""The reference of the site leaves out nothing that is public."""

from __future__ import annotations

from pathlib import Path

import statemachine_trainer

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def test_every_public_name_stands_in_the_reference() -> None:
    text = "\n".join(page.read_text() for page in REFERENCE.glob("*.md"))
    missing = [n for n in statemachine_trainer.__all__ if f"statemachine_trainer.{n}\n" not in text]
    assert missing == []


def test_every_page_of_the_reference_is_listed() -> None:
    listed = (REFERENCE / "index.md").read_text().split()
    pages = {page.stem for page in REFERENCE.glob("*.md")} - {"index"}
    assert pages <= set(listed)
