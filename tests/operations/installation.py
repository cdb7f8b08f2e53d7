"""An installation of its own: a folder, a database and a provider, and the commands that an operator runs there."""

import os
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Installation:
    folder: Path
    database_url: str
    provider_url: str
    # Where its static files are, if not in its folder.
    static_files: Path | None = None
    secret_key: str = field(default_factory=lambda: secrets.token_urlsafe(50), repr=False)

    @property
    def keyring(self) -> Path:
        return self.folder / "keyring.json"

    def with_database(self, url: str) -> "Installation":
        """The same installation, with another database."""
        return replace(self, database_url=url)

    def at(self, folder: Path) -> "Installation":
        """The same installation on another machine, with copies of the files that are kept beside the database."""
        folder.mkdir()
        for name in ("keyring.json", "ledger_anchor.key", "ledger_anchors.jsonl"):
            shutil.copy(self.folder / name, folder)
        return replace(self, folder=folder)

    def manage(self, *words: str, given: str = "") -> "subprocess.CompletedProcess[str]":
        """Run `manage.py` with this on its standard input, whatever comes of it."""
        return self._run("manage.py", *words, given=given)

    def live(self, what: str) -> str:
        """Let things happen in it, as `tests.operations.history` says, and give what that prints."""
        done = self._run("-m", "tests.operations.history", what)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout

    def _run(self, *words: str, given: str = "") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env=self._environment(),
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )

    def _environment(self) -> dict[str, Any]:
        ours = ("RENSEI_", "DATABASE_URL", "CELERY_", "DJANGO_SETTINGS_MODULE")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        elsewhere = {"RENSEI_STATIC_DIR": str(self.static_files)} if self.static_files else {}
        return inherited | {
            **elsewhere,
            "DATABASE_URL": self.database_url,
            "RENSEI_ANTHROPIC_BASE_URL": self.provider_url,
            "RENSEI_DATA_DIR": str(self.folder),
            "RENSEI_LOG_LEVEL": "WARNING",
            "SECRET_KEY": self.secret_key,
        }
