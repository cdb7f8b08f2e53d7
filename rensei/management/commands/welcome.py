"""`manage.py welcome`: wait until the server is ready, and print its address."""

import sys
import time
from argparse import ArgumentParser
from textwrap import indent
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from rensei import demo as demo_data
from rensei import launcher, layout
from rensei.accounts import setup
from rensei.core.money import dollars
from rensei.dispatch.models import Run

READY_SECONDS_MAX = 60.0
RUN_SECONDS_MAX = 60.0


class Command(BaseCommand):
    help = "Wait until the server on this machine is ready, and print where to go."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--port", type=int, required=True)
        parser.add_argument("--demo", action="store_true")

    def handle(self, *, port: int, demo: bool, **options: Any) -> None:
        token = settings.RENSEI_METRICS_TOKEN
        missing = launcher.wait_until_ready(port=port, token=token, seconds_max=READY_SECONDS_MAX)
        if missing:
            self.stdout.write(f"Rensei has started, but is not ready: {missing}")
        elif demo:
            self._show_demo()
        else:
            self._show_setup()
        self.stdout.write("Ctrl-C stops everything.")

    def _show_setup(self) -> None:
        self.stdout.write(f"\nRensei is ready: {settings.PUBLIC_URL}/")
        if link := setup.link():
            self.stdout.write(f"There is no account yet. Make the first one here; the link works once: {link}")

    def _show_demo(self) -> None:
        # In a checkout, the Python of its environment is not the one that a shell finds.
        manage = layout.MANAGE if layout.INSTALLED else f"{sys.executable} manage.py"
        self.stdout.write("")
        self._show_first(demo_data.first_run())
        self._show_agent(demo_data.agent_run())
        self.stdout.write(
            f"""
This is a DEMO. Every call goes to a simulated provider on this machine, {settings.RENSEI_ANTHROPIC_BASE_URL};
nothing leaves it, and nothing costs money. A key to connect in the pages: {demo_data.sample_key()}

  {settings.PUBLIC_URL}/            the pages; sign in as {demo_data.OWNER}
  {settings.PUBLIC_URL}/admin/      the operators' admin; sign in as {demo_data.OPERATOR}
  {settings.PUBLIC_URL}/api/docs    the REST API
  {settings.PUBLIC_URL}/docs/       the documentation

The passwords were printed at the first start. To set a new one:
  RENSEI_DATA_DIR={settings.DATA_DIR} {manage} changepassword {demo_data.OWNER}
"""
        )

    def _show_first(self, run: Run) -> None:
        self._show_end(f"The first run, {run.id}", run)
        if run.state == Run.State.SUCCEEDED:
            self.stdout.write(f"  asked:    {demo_data.PROMPT}")
            self.stdout.write(f"  answered: {indent(run.output_text, ' ' * 12).strip()}")
            self.stdout.write(f"  cost:     {dollars(run.amount_picodollars) or 'unpriced'} US dollars")

    def _show_agent(self, run: Run | None) -> None:
        if run is None:
            self.stdout.write("This machine starts no sandboxes, therefore no agent has run: see Settings → Capacity.")
            return
        self._show_end(f"An agent in a sandbox, {run.id}", run)
        if run.state == Run.State.SUCCEEDED:
            self.stdout.write(f"  wrote:    {indent(run.output_text, ' ' * 12).strip()}")
            self.stdout.write(f"  page:     {settings.PUBLIC_URL}/o/{demo_data.ORG}/runs/{run.id}")

    def _show_end(self, name: str, run: Run) -> None:
        """Wait for the end of a run, and write its state, and its error if it has one."""
        deadline = time.monotonic() + RUN_SECONDS_MAX
        while run.state not in Run.ENDED and time.monotonic() < deadline:
            time.sleep(0.1)
            run.refresh_from_db()
        self.stdout.write(f"{name}: {run.state}, {run.auth_mode}, {run.served_model_id}")
        if run.error:
            self.stdout.write(f"  {run.error['code']}: {run.error['detail']}")
            if fix := run.error["fix"]:
                self.stdout.write(f"  {fix}")
