"""`pip install rensei` is the command alone, and `rensei[server]` a whole server. Neither needs a checkout."""

import json
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rensei.cli.errors import ADD_ALL
from tests import servers
from tests.packaging import installed
from tests.packaging.installed import ROOT, Environment
from tests.waiting import wait_until

pytestmark = [pytest.mark.outside, pytest.mark.timeout(600)]

PACKAGES_MAX = 19
START_SECONDS_MAX = 200


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed.build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return installed.install(tmp_path_factory.mktemp("light") / "venv", wheel)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """A demo that runs from the wheel, and what it printed."""

    environment: Environment
    url: str
    printed: Path

    def find(self, pattern: str) -> str:
        found = re.search(pattern, self.printed.read_text())
        assert found, self.printed.read_text()
        return found[1]


@pytest.fixture(scope="module")
def demo(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """It starts in a folder that has packages of the same names, which it must not load."""
    server = installed.install(tmp_path_factory.mktemp("server") / "venv", wheel, extra="server")
    for name in ("catalog", "rensei"):
        (server.home / name).mkdir()
        (server.home / name / "__init__.py").write_text("raise SystemExit('This is another package.')")
    port, printed = servers.free_port(), server.home / "printed"
    with printed.open("wb") as output:
        process = subprocess.Popen(
            [server.program("rensei-manage"), "start", "--demo", "--port", str(port)],
            cwd=server.home,
            env=server.variables(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(
            lambda: process.poll() is not None or "Ctrl-C stops everything." in printed.read_text(),
            seconds=START_SECONDS_MAX,
        )
        assert process.poll() is None, printed.read_text()
        yield Demo(environment=server, url=f"http://{servers.LOOPBACK}:{port}", printed=printed)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, printed.read_text()
        assert "Rensei has stopped." in printed.read_text()
    finally:
        process.kill()
        process.wait()


def get(url: str) -> bytes:
    """:raises HTTPError: if it is not there"""
    with urllib.request.urlopen(url) as answer:
        body: bytes = answer.read()
        return body


class TestWheel:
    def test_holds_every_file_of_the_packages_the_templates_and_the_documentation(self, wheel):
        tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        places = {name: name for name in ("rensei", "integrations", "profiles", "catalog", "billing")}
        places |= {name: f"rensei/bundled/{name}" for name in ("templates", "docs")}
        ours = [name.partition("/") for name in tracked.splitlines() if (ROOT / name).exists()]

        expected = {f"{places[folder]}/{rest}" for folder, _, rest in ours if folder in places}

        assert len(expected) > 500
        assert expected <= installed.names_in(wheel)

    def test_holds_nothing_else(self, wheel):
        tops = {name.partition("/")[0] for name in installed.names_in(wheel)}

        assert tops == {"rensei", "integrations", "profiles", "catalog", "billing"}


class TestCommandAlone:
    def test_brings_few_packages(self, light):
        brought = light.packages() - {"rensei"}

        assert len(brought) <= PACKAGES_MAX, sorted(brought)
        assert "django" not in brought

    def test_has_every_command(self, light):
        assert light.succeed("rensei", "--version").strip()
        for words in re.findall(r"^  ([a-z][a-z-]*)  ", light.succeed("rensei", "--help"), flags=re.MULTILINE):
            assert "Usage: rensei" in light.succeed("rensei", words, "--help")

    def test_says_how_the_server_is_added(self, light):
        refused = light.run("rensei-manage", "start")

        assert refused.returncode == 1
        assert refused.stderr.strip() == (
            "Only the `rensei` command is installed here. To add the server: pip install 'rensei[server]'"
        )

    def test_says_how_jq_is_added(self, light):
        refused = light.run("rensei", "api", "GET", "/runs", "--jq", ".")

        assert refused.returncode == 2
        assert ADD_ALL.split(":", maxsplit=1)[0] in refused.stderr

    def test_says_how_the_sdk_of_a_console_login_is_added(self, light):
        answer = light.succeed(
            "python", "-m", "rensei.cli.machine.console_call", given=json.dumps({"profile": None, "look": True})
        )

        failure = json.loads(answer)
        assert failure["code"] == "HOST_LOGIN_MISSING"
        assert failure["fix"] == ADD_ALL


class TestServer:
    def test_answers_the_command_alone(self, demo, light):
        token = demo.find(r"API token of ada@example\.com: (\S+)")
        where = {"RENSEI_API_URL": demo.url, "RENSEI_AUTH_TOKEN": token}

        asked = ("rensei", "dispatch", "--input", "What is an envelope key?")
        assert "This is the Anthropic simulator" in light.succeed(*asked, **where)

    def test_signs_in_without_a_keyring_and_says_how_to_have_one(self, demo, light):
        token = demo.find(r"API token of ada@example\.com: (\S+)")

        light.succeed("rensei", "setup", "--url", demo.url, "--token", "-", "--login", "none", given=token)

        assert "rensei[full]" in light.succeed("rensei", "doctor")
        assert (light.home / ".config/rensei/config.json").stat().st_mode & 0o777 == 0o600
        assert json.loads(light.succeed("rensei", "whoami", "--json"))["org"]["slug"] == "acme"

    def test_serves_pages_and_documents(self, demo):
        pages = [get(demo.url + path) for path in ("/accounts/login/", "/docs/errors", "/api/docs")]

        assets = {name.decode() for page in pages for name in re.findall(rb"(?:href|src)=\"(/static/[^\"]+)\"", page)}
        assert len(assets) > 5
        for name in {"/docs/screenshots/run.png", *assets}:
            assert get(demo.url + name)

    def test_keeps_its_data_in_the_home_of_its_user(self, demo):
        data = demo.environment.home / ".local/share/rensei/var/demo"

        assert {"rensei.sqlite3", "keyring.json", "secret_key"} <= {path.name for path in data.iterdir()}

    def test_has_the_commands_of_an_operator(self, demo):
        data = {"RENSEI_DATA_DIR": str(demo.environment.home / ".local/share/rensei/var/demo")}

        assert "No changes detected" in demo.environment.succeed("rensei-manage", "makemigrations", "--check", **data)
        assert demo.environment.succeed("rensei-manage", "load_catalog", **data)
