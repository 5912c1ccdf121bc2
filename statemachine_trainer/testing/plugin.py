"""The pytest plugin: `--resumable-examples`, `--resumable-report` and a fixture.

def test_my_training_can_be_resumed(assert_resumable):
    assert_resumable(make_trainer)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from statemachine_trainer.testing.defaults import default_examples

_PROPERTY = "resumable"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("resumable", "stopping and resuming training")
    group.addoption(
        "--resumable-examples",
        type=_examples,
        metavar="N",
        help="how many runs assert_resumable tries where a test does not say so itself",
    )
    group.addoption(
        "--resumable-report",
        action="store_true",
        help="list what the tests with the fixture assert_resumable have tried",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Let every `assert_resumable` know how many runs to try."""
    default_examples.set(config.getoption("--resumable-examples"))


@pytest.fixture
def assert_resumable(
    record_property: Callable[[str, object], None],
) -> Callable[..., Any]:
    """`statemachine_trainer.testing.assert_resumable`, whose results `--resumable-report` lists."""
    from statemachine_trainer.testing.resuming import assert_resumable as assert_it

    def assert_and_record(make_trainer: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        report = assert_it(make_trainer, **options)
        record_property(_PROPERTY, str(report))
        return report

    return assert_and_record


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """List what was tried."""
    if not config.getoption("--resumable-report"):
        return
    terminalreporter.section("resumable")
    for reports in terminalreporter.stats.values():
        for report in reports:
            told = getattr(report, "user_properties", ()) if _is_call(report) else ()
            for name, value in told:
                if name == _PROPERTY:
                    terminalreporter.write_line(f"{report.nodeid}: {value}")


def _is_call(report: object) -> bool:
    return getattr(report, "when", None) == "call"


def _examples(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("--resumable-examples is a whole number from 1")
    return number
