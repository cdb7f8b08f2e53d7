"""Every setting is documented, and the production checks have nothing to say."""

import os
import re
import secrets
import stat
import subprocess
import sys

import pytest
from django.core.management import CommandError, call_command
from environ import Env

from integrations.vault import keyring
from rensei.management.commands import start
from tests.architecture.modules import ROOT

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


class TestTheTimeOfAStatement:
    @pytest.mark.parametrize(("module", "seconds"), [("rensei.asgi", 30), ("rensei.settings", 0)])
    def test_is_bounded_in_the_web_server_alone(self, tmp_path, module, seconds):
        program = f"import {module}; from django.conf import settings; print(settings.DATABASES['default']['OPTIONS'])"
        environment = {
            "PATH": os.environ["PATH"],
            "DJANGO_SETTINGS_MODULE": "rensei.settings",
            "SECRET_KEY": "x",
            "RENSEI_DATA_DIR": str(tmp_path),
            "DATABASE_URL": "postgres://rensei:secret@db:5432/rensei",
        }
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

        assert f"statement_timeout={seconds}s" in done.stdout, done.stderr


class TestFiles:
    def read(self, name: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Have a process print a setting."""
        program = f"from django.conf import settings; print(repr(settings.{name}))"
        return subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "DJANGO_SETTINGS_MODULE": "rensei.settings", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def test_hold_secrets_that_are_mounted(self, tmp_path):
        key = secrets.token_urlsafe(40)
        (tmp_path / "key").write_text(f"{key}\n")
        (tmp_path / "url").write_text("postgres://rensei:secret@db:5432/rensei\n")
        files = {"SECRET_KEY_FILE": str(tmp_path / "key"), "DATABASE_URL_FILE": str(tmp_path / "url")}

        assert self.read("SECRET_KEY", RENSEI_DATA_DIR=str(tmp_path), **files).stdout == f"{key!r}\n"
        assert "'NAME': 'rensei'" in self.read("DATABASES", RENSEI_DATA_DIR=str(tmp_path), **files).stdout

    def test_that_are_missing_stop_the_process(self, tmp_path):
        result = self.read("SECRET_KEY", SECRET_KEY_FILE=str(tmp_path / "none"))

        assert result.returncode == 1
        assert f"No such file or directory: '{tmp_path / 'none'}'" in result.stderr

    def test_of_the_installation_do_not_reach_a_demo(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SECRET_KEY_FILE", "/run/secrets/secret_key")
        monkeypatch.setenv("DATABASE_URL_FILE", "/run/secrets/database_url")

        environment = start._environment(data_dir=tmp_path, port=8000, demo=True)

        assert not environment.keys() & {"SECRET_KEY_FILE", "DATABASE_URL_FILE"}
        assert environment["DATABASE_URL"].startswith("sqlite:")


class TestCreateSecrets:
    FILES = {"secret_key", "keyring.json", "ledger_anchor.key", "postgres_password", "database_url"}

    def test_writes_each_into_a_file_that_its_owner_alone_reads(self, tmp_path):
        call_command("create_secrets", tmp_path / "secrets", database_host="db.internal", verbosity=0)

        made = {path.name: path for path in (tmp_path / "secrets").iterdir()}
        assert made.keys() == self.FILES
        assert {stat.S_IMODE(path.stat().st_mode) for path in made.values()} == {0o600}
        keyring.load(made["keyring.json"])
        assert Env.db_url_config(made["database_url"].read_text()) == {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "rensei",
            "USER": "rensei",
            "PASSWORD": made["postgres_password"].read_text(),
            "HOST": "db.internal",
            "PORT": 5432,
        }

    def test_replaces_none(self, tmp_path):
        folder = tmp_path / "secrets"
        call_command("create_secrets", folder, verbosity=0)
        before = {path: path.read_bytes() for path in folder.iterdir()}

        with pytest.raises(CommandError, match="never replaced"):
            call_command("create_secrets", folder, verbosity=0)

        assert {path: path.read_bytes() for path in folder.iterdir()} == before


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
