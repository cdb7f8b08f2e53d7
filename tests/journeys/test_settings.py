"""The servers that the journeys start use the database as those of an installation do."""

import json
import os
import subprocess
import sys

import pytest

from tests.journeys.stack import ROOT

OPTIONS = "import json; from django.conf import settings; print(json.dumps(settings.DATABASES['default']['OPTIONS']))"


def options(module: str, url: str) -> dict[str, object]:
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": module, "DATABASE_URL": url, "SECRET_KEY": "x" * 50}
    told = subprocess.run([sys.executable, "-c", OPTIONS], cwd=ROOT, env=environment, capture_output=True, check=True)
    found: dict[str, object] = json.loads(told.stdout)
    return found


class TestSettings:
    @pytest.mark.parametrize("url", ["sqlite:///some.sqlite3", "postgres://rensei@127.0.0.1:5432/rensei"])
    def test_have_the_connections_of_an_installation(self, url: str) -> None:
        assert options("tests.journeys.settings", url) == options("rensei.settings", url)
