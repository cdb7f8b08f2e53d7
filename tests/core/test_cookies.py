"""The names and marks of the cookies, as an installation with an https address sets them."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ASK = """
import json
from rensei import settings
print(json.dumps([settings.SESSION_COOKIE_NAME, settings.CSRF_COOKIE_NAME, settings.CSRF_COOKIE_SECURE]))
"""


def cookies(public_url: str) -> list[object]:
    environment = {**os.environ, "RENSEI_PUBLIC_URL": public_url, "SECRET_KEY": "made up for this test"}
    done = subprocess.run(
        [sys.executable, "-c", ASK], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    found: list[object] = json.loads(done.stdout)
    return found


class TestCookies:
    def test_have_the_prefix_of_the_host_under_https(self) -> None:
        assert cookies("https://rensei.example") == ["__Host-session", "__Host-csrftoken", True]

    def test_have_none_without(self) -> None:
        assert cookies("http://127.0.0.1:8000") == ["session", "csrftoken", False]

    def test_are_read_by_the_reference_under_both_names(self) -> None:
        assert "(?:__Host-)?csrftoken=" in (ROOT / "rensei/static/rensei/api_docs.js").read_text()
