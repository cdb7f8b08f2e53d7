"""`manage.py start`: Rensei on this machine, with one command."""

import os
import secrets
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from rensei import launcher, layout
from rensei.core.asgi_limits import SERVER_OPTIONS
from rensei.launcher import LOOPBACK, LaunchFailed, Processes

# A web process waits this long for open streams, which would otherwise keep it running until they end.
STREAM_GRACE_SECONDS = 3


class Command(BaseCommand):
    help = "Start the web server and a worker on this machine; with --demo, on data and a provider of their own."
    # It only starts other processes, and each of them runs the checks itself.
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--demo", action="store_true", help="add a simulated provider and demo data")
        parser.add_argument(
            "--port",
            type=int,
            default=int(os.environ.get("PORT", "8000")),
            help="port of the web server on loopback; the demo's simulator takes the next one (default: %(default)s)",
        )

    def handle(self, *, demo: bool, port: int, **options: Any) -> None:
        data_dir = settings.DATA_DIR / "demo" if demo else settings.DATA_DIR
        environment = _environment(data_dir=data_dir, port=port, demo=demo)
        try:
            launcher.check_port_is_free(port)
            if demo:
                launcher.check_port_is_free(port + 1)
            launcher.create_data_dir(data_dir)
            layout.home().mkdir(parents=True, exist_ok=True)
            if demo or not settings.SECRET_KEY:
                launcher.create_secret_key(data_dir / "secret_key")
            _run(environment, port=port, demo=demo)
        except LaunchFailed as fault:
            raise CommandError(str(fault)) from fault
        self.stdout.write("Rensei has stopped.")


def _run(environment: dict[str, str], *, port: int, demo: bool) -> None:
    manage = (sys.executable, "-m", "rensei.manage")
    mode = ("--demo",) if demo else ()
    with Processes(environment) as processes:
        if demo:
            processes.start("The simulator", *_simulator(port + 1))
        if not processes.run("The preparation", *manage, "prepare", *mode):
            return
        processes.start("The worker", *manage, "worker")
        if settings.CELERY_BROKER_URL and not demo:
            processes.start("The Celery worker", *_celery_worker())
        processes.start("The web server", *_web_server(port))
        if processes.run("The greeting", *manage, "welcome", *mode, "--port", str(port)):
            processes.watch()


def _simulator(port: int) -> tuple[str, ...]:
    return sys.executable, "-m", "rensei.simulator", "--port", str(port), "--stop-with-stdin", "--quiet"


def _web_server(port: int) -> tuple[str, ...]:
    options = {
        "interface": "asgi",
        "host": LOOPBACK,
        "port": port,
        "workers-kill-timeout": STREAM_GRACE_SECONDS,
        "log-level": "warning",
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    return sys.executable, "-m", "granian", *flags, *SERVER_OPTIONS, "--no-ws", "rensei.asgi:application"


def _celery_worker() -> tuple[str, ...]:
    threads = str(settings.RENSEI_WORKER_THREADS)
    options = ("--pool", "threads", "--concurrency", threads, "--loglevel", "WARNING")
    return sys.executable, "-m", "celery", "--app", "rensei", "worker", *options


def _environment(*, data_dir: Path, port: int, demo: bool) -> dict[str, str]:
    """Make the environment of the children. A demo's is isolated: it gets no setting of the real installation."""
    environment = {**os.environ, "RENSEI_DATA_DIR": str(data_dir)}
    environment.setdefault("RENSEI_PUBLIC_URL", f"http://{LOOPBACK}:{port}")
    # Calls are ended and settled before the server is killed, which is soon: Ctrl-C should not take long.
    environment.setdefault("RENSEI_GATEWAY_DRAIN_SECONDS", str(STREAM_GRACE_SECONDS - 2))
    # `welcome` requests what is missing, which the server returns only for this token.
    environment["RENSEI_METRICS_TOKEN"] = settings.RENSEI_METRICS_TOKEN or secrets.token_urlsafe(32)
    if demo:
        closed = {
            "SECRET_KEY": "",
            "SECRET_KEY_FALLBACKS": "",
            "DATABASE_URL": f"sqlite:///{data_dir / 'rensei.sqlite3'}",
            "CELERY_BROKER_URL": "",
            "EMAIL_URL": "consolemail://",
            "RENSEI_PUBLIC_URL": f"http://{LOOPBACK}:{port}",
            "RENSEI_VAULT_KEYRING": str(data_dir / "keyring.json"),
            "RENSEI_ANTHROPIC_BASE_URL": f"http://{LOOPBACK}:{port + 1}",
            "RENSEI_SIMULATED": "true",
        }
        # A secret that is mounted as a file would override these values.
        environment = {name: value for name, value in environment.items() if name.removesuffix("_FILE") not in closed}
        environment |= closed
    return environment
