"""A pytest plugin for `bench/gpu_tests.py`: tests are pieces of `bench/shares.py`; a CUDA error ends the process."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.shares import say

FIRST = ("bfloat16", "float32", "float16")
"""Tests with these words in their names run first, in this order."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", default="0/1", help="PLACE/OF: every OF-th test, starting at number PLACE")
    parser.addoption("--done", type=Path, help="file with the names of tests to skip")


@pytest.hookimpl(trylast=True)  # after -m has deselected tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    place, of = map(int, config.getoption("--share").split("/"))
    done = set(config.getoption("--done").read_text(encoding="utf-8").splitlines())
    mine = sorted(items, key=lambda item: rank(item.nodeid))[place::of]
    items[:] = [item for item in mine if item.nodeid not in done]


def rank(test: str) -> int:
    return next((place for place, dtype in enumerate(FIRST) if dtype in test), len(FIRST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    failed = item.session.testsfailed
    result = yield
    if item.session.testsfailed > failed and not context_lives():
        os._exit(1)
    return result


def context_lives() -> bool:
    """Whether this process can still use its GPU, which it cannot after an illegal access."""
    import torch

    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        say(f"{report.longreprtext}\nnot collected: {report.nodeid}")


def pytest_runtest_logstart(nodeid: str) -> None:
    say(f"BEGIN {nodeid}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    found = report.longrepr
    why = " ".join(str(found[2] if isinstance(found, tuple) else getattr(found, "reprcrash", found)).split())[:500]
    if report.failed:
        say(f"{report.longreprtext}\nFAILED {report.nodeid}: {why}")
    elif report.skipped:
        say(f"SKIPPED {report.nodeid}: {why}")
    elif report.when == "call":
        say(f"PASSED {report.nodeid}")


def pytest_report_teststatus() -> tuple[str, str, str]:
    """Suppress the progress dots."""
    return "", "", ""


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(exitstatus: int) -> None:
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        say("COMPLETE")
