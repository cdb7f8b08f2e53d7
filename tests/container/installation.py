"""An installation of several containers: the services of compose.yaml on one database, one broker and one volume."""

import contextlib
import json
import os
import secrets
import signal
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from rensei.simulator.server import RunningSimulator
from tests import servers
from tests.container.images import ROOT, Container, Storage
from tests.waiting import wait_until

USER = 10001
START_SECONDS_MAX = 180
LOG_SHOWN = 3000


@dataclass(kw_only=True)
class Installation:
    """What outlasts an upgrade: the volume, the secrets, the database and the address."""

    storage: Storage
    place: Path
    database_url: str
    simulator: RunningSimulator
    port: int = field(default_factory=servers.free_port)
    metrics_token: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @cached_property
    def services(self) -> dict[str, Any]:
        read: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
        return dict(read["services"])

    @property
    def url(self) -> str:
        return f"http://{servers.LOOPBACK}:{self.port}"

    def create(self, image: str) -> None:
        """Make the volume, and the secrets under the names that compose.yaml mounts them by."""
        for folder in (self._data, self._secrets):
            folder.mkdir()
            os.chown(folder, USER, USER)
        self.container(image, SECRET_KEY_FILE="", DATABASE_URL_FILE="").run(
            "rensei-manage", "create_secrets", "/run/secrets/made"
        )
        made = self._secrets / "made"
        (made / "database_url").write_text(self.database_url + "\n")
        names = {"keyring.json": "keyring", "ledger_anchor.key": "ledger_anchor_key"}
        for file in made.iterdir():
            file.rename(self._secrets / names.get(file.name, file.name))

    def container(self, image: str, **more: str) -> Container:
        """Make a container of the installation, with the environment of compose.yaml."""
        environment = {
            **self.services["web"]["environment"],
            "CELERY_BROKER_URL": "",
            "RENSEI_PUBLIC_URL": self.url,
            "RENSEI_ANTHROPIC_BASE_URL": self.simulator.url,
            "RENSEI_METRICS_TOKEN": self.metrics_token,
            **more,
        }
        return Container(
            storage=self.storage,
            name=self.storage.buildah("from", "--pull-never", image),
            mounts={self._data: "/var/lib/rensei", self._secrets: "/run/secrets"},
            environment=environment,
        )

    @contextlib.contextmanager
    def running(self, image: str, *names: str, broker: str = "") -> Iterator[list[Container]]:
        """
        Prepare the database and run these services until the end, in the order of their names.

        :raises TimeoutExpired: if a process that runs at the end needs longer to stop than compose.yaml gives it
        """
        self.container(image).run(*self.services["prepare"]["command"])
        started = [self.container(image, CELERY_BROKER_URL=broker) for _ in names]
        logs = [self.place / f"{image.rpartition('/')[2]}-{place}-{name}.log" for place, name in enumerate(names)]
        try:
            for name, one, log in zip(names, started, logs, strict=True):
                one.start(*self._command(name, image), log=log)
            wait_until(self._is_ready, seconds=START_SECONDS_MAX, what="/readyz", every=0.5)
            yield started
            for name, one in zip(names, started, strict=True):
                if one.is_running:
                    one.stop(seconds_max=float(self.services[name]["stop_grace_period"].removesuffix("s")))
        except BaseException:
            for log in logs:
                print(f"--- {log.name}\n{log.read_text()[-LOG_SHOWN:] if log.exists() else ''}")
            raise
        finally:
            for one in started:
                if one.is_running:
                    one.signal(signal.SIGKILL)

    def ask(self, path: str, *, token: str, body: object = None) -> Any:
        """Send a request to REST or the gateway."""
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "anthropic-version": "2023-06-01",
        }
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def _command(self, name: str, image: str) -> list[str]:
        """Return the command of a service. The default one of the image listens on a port that others may use here."""
        given: list[str] | None = self.services[name].get("command")
        if given is not None:
            return given
        own = json.loads(self.storage.buildah("inspect", "--type", "image", image))["Docker"]["config"]["Cmd"]
        return [str(self.port) if word == "8000" else word for word in own]

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.ask("/readyz", token=self.metrics_token)["ready"])
        return False

    @property
    def _data(self) -> Path:
        return self.place / "data"

    @property
    def _secrets(self) -> Path:
        return self.place / "secrets"
