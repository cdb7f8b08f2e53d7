"""
A pytest plugin: what this machine lacks for the tests marked `redis`, `browser`, `strace` or `podman`.

Such tests are skipped, with the command that adds what they need. With RENSEI_REQUIRE_ALL=1, which CI sets,
every skip is a failure, so that nothing is left out without a word. A test of one database's own statements,
marked `sqlite` or `postgres`, belongs to that database's run alone.
"""

import os
import shutil
from collections.abc import Generator

import pytest

from tests import servers

CHROMIUM = "chromium"


def missing_packages() -> dict[str, str]:
    """List the Debian package that each marker lacks here."""
    found = {
        "postgres": ("postgresql", servers.find_postgres()),
        "redis": ("redis-server", servers.find_redis()),
        "browser": ("chromium", shutil.which(CHROMIUM)),
        "strace": ("strace", shutil.which("strace")),
        "podman": ("podman", shutil.which("podman")),
    }
    return {marker: package for marker, (package, place) in found.items() if not place}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    elsewhere = "sqlite" if os.environ.get("DATABASE_URL", "").startswith("postgres") else "postgres"
    if others := [item for item in items if item.get_closest_marker(elsewhere)]:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]
    for marker, package in missing_packages().items():
        for item in items:
            if marker != "postgres" and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{package} is not installed: apt-get install {package}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not hasattr(report, "wasxfail"):
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and os.environ.get("RENSEI_REQUIRE_ALL") == "1":
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, and here every test has to run: {report.longrepr}"
