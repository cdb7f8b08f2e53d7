"""Runs and money are dated and compared by the database's clock: see `rensei/core/clock.py`."""

import re
from pathlib import Path

from tests.architecture.modules import modules

PACKAGES = ("rensei.dispatch", "rensei.gateway", "rensei.workflows", "billing")
# A call of the process's clock. A default of a model only names it.
OWN_CLOCK = re.compile(r"timezone\.now\(\)|datetime\.(?:utc)?now\(")
# The seconds that a client waits, from the moment of an answer.
ALLOWED = {"rensei.gateway.answers"}


class TestClocks:
    def test_of_a_process_date_no_run_and_no_money(self):
        found = [
            module.__name__
            for module in modules()
            if module.__name__.startswith(PACKAGES) and OWN_CLOCK.search(Path(module.__file__ or "").read_text())
        ]

        assert set(found) == ALLOWED
