"""A keyring for machines without one, which the command finds by PYTHON_KEYRING_BACKEND. It can be locked."""

import json
from pathlib import Path

from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked, PasswordDeleteError


class FileKeyring(KeyringBackend):
    priority = 1

    def get_password(self, service: str, username: str) -> str | None:
        return self._kept().get(f"{service}: {username}")

    def set_password(self, service: str, username: str, password: str) -> None:
        self._file.write_text(json.dumps({**self._kept(), f"{service}: {username}": password}))

    def delete_password(self, service: str, username: str) -> None:
        kept = self._kept()
        if kept.pop(f"{service}: {username}", None) is None:
            raise PasswordDeleteError
        self._file.write_text(json.dumps(kept))

    @property
    def _file(self) -> Path:
        if (Path.home() / "locked").exists():
            raise KeyringLocked
        return Path.home() / "keyring.json"

    def _kept(self) -> dict[str, str]:
        kept: dict[str, str] = json.loads(self._file.read_text()) if self._file.exists() else {}
        return kept
