"""The site: `make site` builds it from these pages, the notebooks and the docstrings, offline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from statemachine_trainer import __version__

ROOT = Path(__file__).resolve().parent.parent

project = "statemachine_trainer"
author = "The statemachine_trainer authors"
copyright = author
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
root_doc = "docs/index"

html_theme = "furo"
html_title = "statemachine_trainer"
html_show_sourcelink = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
# `make site NOTEBOOKS=run` runs them, once for each content. The tests run them anyway.
nb_execution_mode = "cache" if os.environ.get("NOTEBOOKS") == "run" else "off"
nb_execution_cache_path = str(ROOT / "build" / "notebooks")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

default_role = "py:obj"  # `name` in a docstring: code, and a link where there is something to link to
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = True


def show_examples(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Make a block of code of an `Example:` that is code, not a session at a prompt."""
    for number, line in enumerate(lines[:-1]):
        if line == "Example:" and not lines[number + 1].lstrip().startswith(">>>"):
            lines[number] = "Example::"
            lines.insert(number + 1, "")
            return


def setup(app: Any) -> None:
    """Sphinx calls this. Priority: before napoleon reads the sections of a docstring."""
    app.connect("autodoc-process-docstring", show_examples, priority=100)
