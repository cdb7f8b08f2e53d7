"""`rensei setup` at a real terminal: signing in through the browser, and everything that it asks."""

import os
import pty
import re
import subprocess
import time

import pytest

from rensei.orgs.models import Host

pytestmark = pytest.mark.outside

SECONDS_MAX = 60


class Screen:
    """A terminal that a person looks at and types into."""

    def __init__(self, terminal, line):
        master, slave = pty.openpty()
        self._master = master
        self.process = subprocess.Popen(
            ["bash", "-c", line],
            cwd=terminal.home,
            env=terminal.environment() | {"TERM": "dumb"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        os.set_blocking(master, False)
        self.text = ""

    def wait_for(self, pattern):
        deadline = time.monotonic() + SECONDS_MAX
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < deadline, self.text
            self._read()
        return found

    def type(self, text):
        os.write(self._master, f"{text}\n".encode())

    def end(self):
        deadline = time.monotonic() + SECONDS_MAX
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.text
            self._read()
        self._read()
        os.close(self._master)
        return self.process.returncode

    def _read(self):
        time.sleep(0.1)
        try:
            self.text += os.read(self._master, 65536).decode(errors="replace").replace("\r", "")
        except (BlockingIOError, OSError):
            return


class TestBrowserApproval:
    def test_signs_in_and_registers_the_machine(self, make_terminal, acme, my_project, ada, page_as, server):
        terminal = make_terminal()
        screen = Screen(terminal, "rensei setup --host-name laptop")

        code = screen.wait_for(r"approve the code ([A-Z0-9]{4}-[A-Z0-9]{4})")[1]
        page_as(ada).post("/device", {"code": code, "organization": "acme", "approve": ""})
        screen.wait_for("Project to work in")
        screen.type("my-project")

        assert screen.end() == 0
        context = terminal.config()["contexts"][0]
        assert (context["org"], context["project"]) == ("acme", "my-project")
        assert context["host_id"] == Host.objects.get(name="laptop").id
        assert context["token"] not in screen.text
        assert terminal.read("rensei whoami --json")["host"]["name"] == "laptop"

    def test_that_is_denied_says_so(self, make_terminal, acme, ada, page_as, server):
        screen = Screen(make_terminal(), "rensei setup")

        code = screen.wait_for(r"approve the code ([A-Z0-9]{4}-[A-Z0-9]{4})")[1]
        page_as(ada).post("/device", {"code": code, "organization": "acme", "deny": ""})

        assert screen.end() == 1
        assert "DEVICE_CODE_INVALID" in screen.text


class TestWithoutAPerson:
    def test_needs_a_token(self, make_terminal, server):
        result = make_terminal().run("rensei setup --no-interactive")

        assert result.returncode == 1
        assert result.stderr.startswith("TOKEN_MISSING: ")

    def test_needs_an_address(self, make_terminal, make_token):
        terminal = make_terminal()
        del terminal.variables["RENSEI_API_URL"]

        result = terminal.run("rensei setup --no-interactive --token -", given=make_token())

        assert result.returncode == 1
        assert "--url" in result.stderr

    def test_refuses_a_project_that_is_not_there(self, make_terminal, make_token):
        line = "rensei setup --no-interactive --token - --project nowhere"

        result = make_terminal().run(line, given=make_token())

        assert result.returncode == 1
        assert "rensei project create nowhere" in result.stderr

    def test_leaves_an_auditor_without_a_machine(self, make_terminal, make_token, otto, access_of):
        terminal = make_terminal()

        terminal.succeed("rensei setup --token -", given=make_token(access_of(otto)))

        assert terminal.config()["contexts"][0]["host_id"] is None
        assert not Host.objects.exists()


class TestScopes:
    """What a terminal may do after it was set up, and what it may not."""

    def test_of_a_pasted_token_stay_with_the_terminal(self, make_terminal, make_token):
        terminal = make_terminal()

        terminal.succeed("rensei setup --token - --login none", given=make_token(scopes=["manage", "runs"]))

        assert terminal.read("rensei whoami --json")["scopes"] == ["runs", "manage", "leases"]
        assert terminal.run("rensei usage").stderr.startswith("SCOPE_MISSING: ")

    def test_too_few_to_register_leave_it_without_a_machine(self, make_terminal, make_token):
        terminal = make_terminal()

        told = terminal.run("rensei setup --token -", given=make_token(scopes=["read", "runs"]))

        assert told.returncode == 0
        assert "lacks the scope manage" in told.stderr
        assert not Host.objects.exists()

    def test_are_chosen_for_a_new_token(self, terminal):
        made = terminal.read("rensei token create --name ci --scope runs --scope gateway --network 192.0.2.0/24 --json")

        assert (made["scopes"], made["allowedNetworks"]) == (["runs", "gateway"], ["192.0.2.0/24"])
        assert "runs, gateway" in terminal.succeed("rensei token list")
