"""Build the site: pages, notebooks and docstrings as HTML in `build/site`, offline.

Sphinx reads one folder. The pages link to notebooks and to files of the repository as they lie here, so
what it reads is a copy in `build/pages` that lies alike.

Usage: python tools/build_site.py      (NOTEBOOKS=run runs the notebooks too, once for each content)
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

# By its name, so that types are checked the same where Sphinx is not installed.
sphinx: Callable[[list[str]], int] = import_module("sphinx.cmd.build").main
# A neighbour in this folder, which is no package.
write_pages: Callable[[Path], None] = import_module("generated_pages").write_pages

ROOT = Path(__file__).resolve().parent.parent
PAGES, SITE = ROOT / "build" / "pages", ROOT / "build" / "site"
FRONT = '<meta http-equiv="refresh" content="0; url=docs/index.html">'


def main() -> int:
    """Copy what is read, build, and return the exit code of Sphinx: any warning is an error."""
    for name in ("docs", "notebooks"):
        shutil.copytree(ROOT / name, PAGES / name, dirs_exist_ok=True, copy_function=_copy_changed)
        _delete_what_is_gone(PAGES / name, ROOT / name)
    write_pages(PAGES / "docs" / "reference")
    arguments = ["-q", "-W", "--keep-going", "-b", "html", "-c", str(ROOT / "docs")]
    code = sphinx([*arguments, str(PAGES), str(SITE)])
    if code == 0:
        (SITE / "index.html").write_text(FRONT)
        print(f"The site is in {SITE.relative_to(ROOT)}/index.html")
    return code


def _copy_changed(source: str, target: str) -> str:
    """Copy a file unless the copy is the same, so that only what changed is built again."""
    old, new = Path(target), Path(source)
    if not old.exists() or old.read_bytes() != new.read_bytes():
        shutil.copyfile(new, old)
    return target


def _delete_what_is_gone(copy: Path, original: Path) -> None:
    for path in sorted(copy.rglob("*"), reverse=True):
        if not (original / path.relative_to(copy)).exists():
            path.rmdir() if path.is_dir() else path.unlink()


if __name__ == "__main__":
    sys.exit(main())
