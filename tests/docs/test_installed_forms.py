"""The package in a zip file, and one that was installed without its source."""

from __future__ import annotations

import py_compile
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import statemachine_trainer

ROOT = Path(statemachine_trainer.__file__).parent
ASK = "import statemachine_trainer as package; print(len(package.__all__), package.Loop.__name__)"


def ask(place: Path) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(place)!r}); {ASK}"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=place.parent
    )


def test_it_can_be_imported_from_a_zip_file(tmp_path: Path) -> None:
    place = tmp_path / "package.zip"
    with zipfile.ZipFile(place, "w") as archive:
        for path in ROOT.rglob("*.py"):
            archive.write(path, path.relative_to(ROOT.parent))
    done = ask(place)
    assert (done.stdout, done.stderr) == (f"{len(statemachine_trainer.__all__)} Loop\n", "")


def test_without_its_source_an_import_says_what_is_missing(tmp_path: Path) -> None:
    place = tmp_path / "compiled" / ROOT.name
    shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns("__pycache__", "[a-z]*.py"))
    for path in ("__init__", "lazy", "version"):
        py_compile.compile(str(ROOT / f"{path}.py"), str(place / f"{path}.pyc"))
    (place / "__init__.py").unlink()
    done = ask(place.parent)
    assert done.returncode == 1
    assert "ImportError: statemachine_trainer is installed without its source" in done.stderr
