"""
A slice of the chaos run, on a database of its own, and two planted defects that it has to find.

CHAOS_RUNS and CHAOS_KILLS make it larger; CHAOS_SEED replays what failed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
RUNS = os.environ.get("CHAOS_RUNS", "100")
KILLS = os.environ.get("CHAOS_KILLS", "10")


def run_chaos(*options: str) -> tuple[int, dict[str, Any], str]:
    """Run the driver, and give its exit code, its totals and everything that it said."""
    seed = os.environ.get("CHAOS_SEED")
    command = [sys.executable, "-m", "tests.chaos", "--hurry", *(["--seed", seed] if seed else []), *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = result.stdout + result.stderr
    reports = [line for line in result.stdout.splitlines() if line.startswith("{")]
    assert reports, said[-5000:]
    return result.returncode, json.loads(reports[0]), said


def assert_survived(code: int, report: dict[str, Any], said: str) -> None:
    assert code == 0, said[-5000:]
    assert report["differences"] == 0
    assert report["done"]["kill"] == int(KILLS)
    assert report["done"]["runs"] == sum(report["ended"].values())
    assert report["done"]["runs"] + sum(report["refused"].values()) == int(RUNS)
    assert report["calls"] > 0


class TestChaos:
    @pytest.mark.sqlite
    def test_leaves_every_call_explained_on_sqlite(self, migrated):
        assert_survived(*run_chaos("--runs", RUNS, "--kills", KILLS, "--database", "sqlite", "--copy-of", migrated))

    @pytest.mark.postgres
    @pytest.mark.redis
    def test_leaves_every_call_explained_on_postgresql_with_celery(self, migrated_postgres):
        options = ("--database", "postgres", "--celery", "--copy-of", str(migrated_postgres))

        code, report, said = run_chaos("--runs", RUNS, "--kills", KILLS, *options)

        assert_survived(code, report, said)
        assert report["done"]["restart-database"] >= 1
        assert report["done"]["restart-broker"] >= 1


@pytest.mark.sqlite
class TestAPlantedDefect:
    def test_that_settles_twice_is_found_in_the_provider_s_log(self, migrated):
        code, _, said = run_chaos("--runs", "25", "--kills", "0", "--plant", "double-settlement", "--copy-of", migrated)

        assert code == 1
        assert "provider's log: output_tokens of att_" in said
        assert "SEED=" in said
        assert "COMMIT=" in said

    def test_that_leaves_charges_out_is_found_by_the_audit_and_in_the_provider_s_log(self, migrated):
        code, _, said = run_chaos("--runs", "25", "--kills", "0", "--plant", "missing-charge", "--copy-of", migrated)

        assert code == 1
        assert "audit: missing-charge" in said
        assert "provider's log: a call without a charge: att_" in said
