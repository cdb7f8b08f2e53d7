"""
A pytest plugin: what this machine lacks for the tests marked `redis`, `browser`, `softhsm`, `strace` or `podman`.

Such tests are skipped, with the command that adds what they need. With RENSEI_REQUIRE_ALL=1, which CI sets,
every skip is a failure, so that nothing is left out without a word. A test of one database's own statements,
marked `sqlite` or `postgres`, belongs to that database's run alone. A test that uses no database is marked `outside`
here, and needs to run once.
"""

import gc
import os
import shutil
from collections.abc import Generator

import pytest

from tests import servers

CHROMIUM = "chromium"
GIVE_A_DATABASE = {"db", "transactional_db", "django_db_setup"}
# Tests whose timeout is as long as this are begun first.
LONG_SECONDS = 300
COLLECTED_OBJECTS = 20_000
YOUNG_COLLECTIONS = 10


def missing_packages() -> dict[str, str]:
    """List the Debian package that each marker lacks here."""
    found = {
        "postgres": ("postgresql", servers.find_postgres()),
        "redis": ("redis-server", servers.find_redis()),
        "browser": ("chromium", shutil.which(CHROMIUM)),
        "softhsm": ("softhsm2", shutil.which("softhsm2-util")),
        "strace": ("strace", shutil.which("strace")),
        "podman": ("podman", shutil.which("podman")),
    }
    return {marker: package for marker, (package, place) in found.items() if not place}


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """
    Collecting creates much and releases next to nothing, so there is no garbage to search for. All of it stays to the
    end, so it is not searched while the tests run either, and as the server does, these search less often than Python.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(COLLECTED_OBJECTS, YOUNG_COLLECTIONS, YOUNG_COLLECTIONS)
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if not _uses_a_database(item):
            item.add_marker("outside")
    elsewhere = "sqlite" if os.environ.get("DATABASE_URL", "").startswith("postgres") else "postgres"
    if others := [item for item in items if item.get_closest_marker(elsewhere)]:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]
    for marker, package in missing_packages().items():
        for item in items:
            if marker != "postgres" and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{package} is not installed: apt-get install {package}"))


@pytest.hookimpl(trylast=True, specname="pytest_collection_modifyitems")
def pytest_begin_with_the_longest(items: list[pytest.Item]) -> None:
    """Begun last, a test of minutes would keep one worker busy while the others have nothing left to do."""
    items.sort(key=lambda item: not _is_long(item))


def _is_long(item: pytest.Item) -> bool:
    """Tell whether the test may take minutes, with processes of its own that it shares with no other."""
    marker = item.get_closest_marker("timeout")
    return marker is not None and marker.args[0] >= LONG_SECONDS and not _is_given_a_database(item)


def _uses_a_database(item: pytest.Item) -> bool:
    return _is_given_a_database(item) or any(item.get_closest_marker(name) for name in ("sqlite", "postgres"))


def _is_given_a_database(item: pytest.Item) -> bool:
    """Tell whether pytest-django gives the test a database."""
    fixtures: set[str] = set(getattr(item, "fixturenames", ()))
    return item.get_closest_marker("django_db") is not None or bool(fixtures & GIVE_A_DATABASE)


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
