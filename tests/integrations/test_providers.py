"""The adapters: found by themselves, and light until they are used."""

import subprocess
import sys

from catalog.providers import PROVIDERS as SPECS
from integrations.providers.base import ADAPTERS


class TestRegistry:
    def test_has_an_adapter_for_every_provider(self):
        assert set(ADAPTERS) == set(SPECS)

    def test_loads_no_sdk_before_the_first_call(self):
        script = "import django; django.setup(); import sys; sys.exit('anthropic' in sys.modules)"

        ended = subprocess.run([sys.executable, "-c", script], check=False, env=_environment())

        assert ended.returncode == 0


def _environment() -> dict[str, str]:
    return {"DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONPATH": "."}
