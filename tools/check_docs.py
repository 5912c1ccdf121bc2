"""Check the documentation: relative links, code blocks, and the examples in pages and docstrings.

In every Markdown page of the repository

- a relative link leads to a file or folder, and its `#fragment` to a heading of that page;
- a block marked `python` compiles;
- the blocks marked `pycon` pass as doctests: those of one page in order, in one session.

In every module of the package the examples of the docstrings pass as doctests.

Usage: python tools/check_docs.py [PAGE ...]      (pages only, if any are named)
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import os
import pkgutil
import re
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "statemachine_trainer"
DOCTEST_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,}) *(?P<language>[\w-]*)")
CODE_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
INLINE_LINK = re.compile(r"\]\(\s*<?([^\s)>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
REFERENCE_LINK = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)>?")
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$")
ANCHOR = re.compile(r"<a\s+(?:id|name)=\"([^\"]+)\"")
HAS_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)


@dataclass(frozen=True)
class Block:
    """A fenced code block: its language, the line its code starts at (from 1), the code."""

    language: str
    line: int
    code: str


@dataclass(frozen=True)
class Page:
    """A Markdown page, split into prose (line number, text) and code blocks."""

    path: Path
    prose: list[tuple[int, str]]
    blocks: list[Block]


def pages_of(root: Path) -> list[Path]:
    """Every Markdown page under a folder, hidden folders left out."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [Path(folder, name) for name in sorted(names) if name.endswith(".md")]
    return found


def read_page(path: Path) -> Page:
    """Split a page; a fence that is never closed runs to the end, as in CommonMark."""
    prose: list[tuple[int, str]] = []
    blocks: list[Block] = []
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    for number, line in lines:
        opening = FENCE.match(line)
        if opening is None:
            prose.append((number, CODE_SPAN.sub("", line)))
            continue
        fence = opening["fence"]
        code = []
        for _, inner in lines:
            if inner.strip().startswith(fence) and not inner.strip().strip(fence[0]):
                break
            code.append(inner)
        text = textwrap.dedent("\n".join(code)) + "\n"
        blocks.append(Block(opening["language"], number + 1, text))
    return Page(path, prose, blocks)


def anchors_of(path: Path) -> set[str]:
    """The fragments that a page offers: its headings, spelt as GitHub spells them, and anchors."""
    anchors: set[str] = set()
    prose = {number for number, _ in read_page(path).prose}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if number not in prose:
            continue
        anchors.update(ANCHOR.findall(line))
        heading = HEADING.match(line)
        if heading is not None:
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            repeats = 0
            while (name := f"{slug}-{repeats}" if repeats else slug) in anchors:
                repeats += 1
            anchors.add(name)
    return anchors


def links_of(page: Page) -> Iterator[tuple[int, str]]:
    """The links of a page that stay in the repository, each with its line."""
    for number, line in page.prose:
        targets = INLINE_LINK.findall(line) + REFERENCE_LINK.findall(line)
        for target in targets:
            if not HAS_SCHEME.match(target) and not target.startswith("//"):
                yield number, target


def link_problem(page: Path, target: str) -> str | None:
    """What is wrong with a link, or None."""
    name, _, fragment = unquote(target).partition("#")
    if name.startswith("/"):
        return "is absolute: write it relative to the page"
    destination = (page.parent / name).resolve() if name else page
    if not destination.is_relative_to(ROOT):
        return "leads out of the repository"
    if not destination.exists():
        return "leads nowhere"
    if fragment and destination.suffix == ".md" and fragment not in anchors_of(destination):
        return f"names no heading of {destination.relative_to(ROOT)}"
    return None


def compile_problem(block: Block, where: str) -> str | None:
    """What keeps a block from compiling, or None."""
    # Blank lines in front, so that the error names the page's own line.
    source = "\n" * (block.line - 1) + block.code
    try:
        compile(source, where, "exec", dont_inherit=True)
    except SyntaxError as error:
        hint = " (a session with >>> is a `pycon` block)" if ">>> " in block.code else ""
        return f"{where}:{error.lineno}: {error.msg}{hint}"
    return None


def run_session(page: Page, where: str) -> doctest.TestResults:
    """Run all `pycon` blocks of a page as one doctest; failures are printed."""
    parser = doctest.DocTestParser()
    examples: list[doctest.Example] = []
    for block in page.blocks:
        if block.language == "pycon":
            for example in parser.get_examples(block.code, where):
                example.lineno += block.line - 1
                examples.append(example)
    test = doctest.DocTest(examples, {"__name__": "__main__"}, where, where, 0, "")
    return doctest.DocTestRunner(optionflags=DOCTEST_OPTIONS).run(test)


def check_page(path: Path) -> tuple[list[str], dict[str, int]]:
    """Check one page: what is wrong with it, and how much was looked at."""
    where = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
    page = read_page(path)
    links = list(links_of(page))
    python = [block for block in page.blocks if block.language in ("python", "py")]
    problems = [
        f"{where}:{number}: the link {target} {problem}"
        for number, target in links
        if (problem := link_problem(path, target)) is not None
    ]
    problems += [problem for block in python if (problem := compile_problem(block, where))]
    session = run_session(page, where)
    if session.failed:
        problems.append(f"{where}: {session.failed} of {session.attempted} examples failed (above)")
    return problems, {"links": len(links), "blocks": len(python), "examples": session.attempted}


def modules_of(package: str) -> Iterator[ModuleType]:
    """Import every module of a package; one that needs a package not installed is left out."""
    root = importlib.import_module(package)
    yield root
    for info in pkgutil.walk_packages(root.__path__, prefix=f"{package}."):
        if info.name.endswith(".__main__"):
            continue
        try:
            yield importlib.import_module(info.name)
        except ModuleNotFoundError as error:
            if (error.name or package).partition(".")[0] == package:
                raise
            print(f"left out: {info.name} needs {error.name}, which is not installed")


def check_docstrings(package: str) -> tuple[list[str], int]:
    """Run the examples of a package's docstrings: what failed, and how many ran."""
    problems = []
    attempted = 0
    for module in modules_of(package):
        result = doctest.testmod(module, optionflags=DOCTEST_OPTIONS)
        attempted += result.attempted
        if result.failed:
            problems.append(
                f"{module.__name__}: {result.failed} of {result.attempted} examples failed (above)"
            )
    return problems, attempted


def main(arguments: list[str]) -> int:
    """Check the named pages, or all pages and docstrings; the exit status is 1 for a problem."""
    pages = [Path(name).resolve() for name in arguments] or pages_of(ROOT)
    sys.path.insert(0, str(ROOT))  # a script's path begins with its own folder, not with ours
    problems: list[str] = []
    counts = {"links": 0, "blocks": 0, "examples": 0}
    # Examples may write files: not among ours.
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        for path in pages:
            page_problems, page_counts = check_page(path)
            problems += page_problems
            counts = {key: counts[key] + page_counts[key] for key in counts}
        if not arguments:
            docstring_problems, attempted = check_docstrings(PACKAGE)
            problems += docstring_problems
            counts["examples"] += attempted
    for problem in problems:
        print(problem)
    print(
        f"{len(pages)} pages, {counts['links']} links, {counts['blocks']} python blocks, "
        f"{counts['examples']} examples: {len(problems) or 'no'} problems"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
