"""The colours of a picture, for light and for dark surroundings."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

Theme = Literal["auto", "light", "dark"]
THEMES: tuple[Theme, ...] = ("auto", "light", "dark")

# The same on light and dark pages; states are filled with it the more, the hotter they are.
HEAT = "#e4572e"
RUNNING = "#f5b041"
ON_RUNNING = "#1a1206"


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours by what they are used for. No two of them are the same: see `css_rules`."""

    paper: str
    ink: str
    line: str
    state: str
    loop: str
    loop_inside: str
    border: str
    posted: str
    added: str
    removed: str
    changed: str


LIGHT = Palette(
    paper="#ffffff",
    ink="#1f2933",
    line="#4a5868",
    state="#fdfdfe",
    loop="#f3f6fa",
    loop_inside="#e9eef5",
    border="#8fa0b5",
    posted="#2563c9",
    added="#1a7f37",
    removed="#c62832",
    changed="#9a6200",
)
DARK = Palette(
    paper="#10151c",
    ink="#e8edf3",
    line="#b3bfcd",
    state="#2b3645",
    loop="#171e28",
    loop_inside="#1f2834",
    border="#5d6f86",
    posted="#82b1ff",
    added="#56d364",
    removed="#ff7b72",
    changed="#e3b341",
)


def names_by_colour() -> dict[str, str]:
    """Return the name of each colour of the light palette."""
    return {getattr(LIGHT, one.name): one.name.replace("_", "-") for one in fields(LIGHT)}


def css_variables(palette: Palette) -> str:
    """Return the palette as custom properties of CSS: `--smt-ink: #1f2933; ...`."""
    return " ".join(
        f"--smt-{one.name.replace('_', '-')}: {getattr(palette, one.name)};"
        for one in fields(palette)
    )
