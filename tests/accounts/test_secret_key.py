"""Another SECRET_KEY while people are signed in: what the one before has signed is accepted until it is forgotten."""

import os
import re
import secrets
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core import mail
from django.core.management import CommandError, call_command
from django.test import Client

from rensei.accounts import known_browsers
from rensei.core.later import later
from rensei.orgs.models import Org, User
from rensei.tokens import device_codes
from tests.architecture.modules import ROOT

PASSWORD = "correct horse battery"


def rotate(settings: Any, *, forget: bool = False) -> None:
    settings.SECRET_KEY_FALLBACKS = [] if forget else [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    settings.SECRET_KEY = secrets.token_urlsafe(50)


def sign_in(client: Client) -> None:
    client.post("/accounts/login/", {"login": "ada@acme.test", "password": PASSWORD})


def is_signed_in(client: Client) -> bool:
    return client.get("/o/acme/settings/integrations").status_code == 200


class TestRotation:
    def test_leaves_people_signed_in_and_signs_their_sessions_again(self, acme: Org, settings: Any) -> None:
        client = Client()
        sign_in(client)
        rotate(settings)

        assert is_signed_in(client)

        settings.SECRET_KEY_FALLBACKS = []
        assert is_signed_in(client), "its first request signed the session by the new key"

    def test_signs_out_those_who_did_not_come_meanwhile(self, acme: Org, settings: Any) -> None:
        client = Client()
        sign_in(client)
        rotate(settings, forget=True)

        assert not is_signed_in(client)

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize("forget", [False, True])
    def test_keeps_links_for_new_passwords(self, acme: Org, settings: Any, forget: bool) -> None:
        Client().post("/accounts/password/reset/", {"email": "ada@acme.test"})
        later.wait()
        found = re.search(r"http://\S+(/accounts/password/reset/key/\S+)", str(mail.outbox[-1].body))
        assert found is not None
        rotate(settings, forget=forget)

        page = Client().get(found[1], follow=True).content.decode()

        assert ('type="password"' in page) is not forget

    @pytest.mark.parametrize("forget", [False, True])
    def test_keeps_browsers_known(self, acme: Org, settings: Any, rf: Any, forget: bool) -> None:
        client = Client()
        sign_in(client)
        rotate(settings, forget=forget)
        request = rf.get("/")
        request.COOKIES = {name: cookie.value for name, cookie in client.cookies.items()}

        assert (known_browsers.browser_of(request, email="Ada@acme.test") is None) is forget
        assert known_browsers.browser_of(request, email="mia@acme.test") is None

    def test_keeps_codes_of_machines(self, ada: User, settings: Any) -> None:
        asked = device_codes.ask(host_name="laptop", address="192.0.2.1")
        rotate(settings)

        assert device_codes.find_waiting(ada, user_code=asked.user_code).host_name == "laptop"


@pytest.mark.django_db
class TestCommand:
    def manage(self, *arguments: str) -> str:
        said = StringIO()
        call_command("vault", "rotate-secret-key", *arguments, stdout=said)
        return said.getvalue()

    @pytest.fixture
    def path(self, settings: Any, tmp_path: Path) -> Path:
        settings.DATA_DIR = tmp_path
        path = tmp_path / "secret_key"
        path.touch(0o600)
        path.write_text(f"{settings.SECRET_KEY}\n")
        settings.SECRET_KEY_PATH = path
        return path

    def read(self, folder: Path, **more: str) -> list[str]:
        """Read the setting as a process that starts now."""
        names = "settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS, settings.SECRET_KEY_PATH"
        program = f"from django.conf import settings; print({names})"
        environment = {"PATH": os.environ["PATH"], "DJANGO_SETTINGS_MODULE": "rensei.settings"}
        run = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**environment, "RENSEI_DATA_DIR": str(folder), **more},
            capture_output=True,
            text=True,
            check=True,
        )
        *keys, used = run.stdout.split()
        assert used == ("None" if "SECRET_KEY" in more else str(folder / "secret_key"))
        return keys

    def test_puts_a_new_key_before_the_old_one_until_it_is_finished(self, path: Path, settings: Any) -> None:
        said = self.manage()
        new, old = path.read_text().split()

        assert old == settings.SECRET_KEY
        assert new not in said
        assert self.read(path.parent) == [new, old]
        assert self.read(path.parent, SECRET_KEY_FALLBACKS="older") == [new, old, "older"]
        assert self.read(path.parent, SECRET_KEY=old) == [old]
        assert path.stat().st_mode & 0o077 == 0

        self.manage("--finish")
        assert path.read_text().split() == [new]

    def test_forgets_a_key_that_others_know_at_once(self, path: Path, settings: Any) -> None:
        self.manage("--at-once")

        assert settings.SECRET_KEY not in path.read_text()
        assert len(path.read_text().split()) == 1

    def test_says_what_to_do_where_the_key_comes_from_the_environment(self, settings: Any, tmp_path: Path) -> None:
        """Although a file has the same one, as after it was moved into the environment."""
        settings.DATA_DIR, settings.SECRET_KEY_PATH = tmp_path, None
        (tmp_path / "secret_key").write_text(f"{settings.SECRET_KEY}\n")

        with pytest.raises(CommandError, match="SECRET_KEY_FALLBACKS"):
            self.manage()
        assert (tmp_path / "secret_key").read_text() == f"{settings.SECRET_KEY}\n"
