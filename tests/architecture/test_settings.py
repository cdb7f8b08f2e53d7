"""Every setting is documented, and the production checks have nothing to say."""

import os
import re
import secrets
import subprocess
import sys

import pytest

from tests.architecture.rooms import ROOT

SOURCE = (ROOT / "rensei/settings.py").read_text()
VARIABLES = sorted(set(re.findall(r"env(?:\.\w+)?\(\s*\"([A-Z_]+)\"", SOURCE)))


class TestVariables:
    def test_are_found(self):
        assert {"RENSEI_DATA_DIR", "SECRET_KEY", "DATABASE_URL", "RENSEI_RATE_API", "DB_POOL_SIZE"} <= set(VARIABLES)

    @pytest.mark.parametrize("name", VARIABLES)
    def test_stand_in_the_example(self, name):
        assert re.search(rf"^#? ?{name}=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE)

    @pytest.mark.parametrize("name", VARIABLES)
    def test_stand_in_the_docs(self, name):
        assert f"`{name}`" in (ROOT / "docs/settings.md").read_text()


class TestProduction:
    def test_passes_djangos_own_checks(self, tmp_path):
        environment = {
            "PATH": os.environ["PATH"],
            "RENSEI_PUBLIC_URL": "https://rensei.example",
            "RENSEI_DATA_DIR": str(tmp_path),
            "SECRET_KEY": secrets.token_urlsafe(60),
        }

        check = subprocess.run(
            [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

        assert check.returncode == 0, check.stderr
        assert "0 silenced" in check.stdout or "1 silenced" in check.stdout
