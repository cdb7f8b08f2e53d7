"""Members, the audit log, signing out, and pages in the browser."""

import json

import pytest

from rensei.accounts.models import Invitation
from rensei.dispatch.models import Run
from tests.cli.test_dispatching import NODE

pytestmark = pytest.mark.outside


class TestMember:
    def test_is_invited_listed_and_given_a_role(self, terminal, mia):
        invited = terminal.read("rensei member invite new@acme.test --role AUDITOR --json")
        changed = terminal.read("rensei member role mia@acme.test --role admin --json")

        assert (Invitation.objects.get().email, invited["role"]) == ("new@acme.test", "auditor")
        assert (changed["email"], changed["role"]) == ("mia@acme.test", "admin")
        assert "mia@acme.test" in terminal.succeed("rensei member list")

    def test_that_is_unknown_is_said_to_be(self, terminal):
        result = terminal.run("rensei member remove nobody@acme.test --yes")

        assert (result.returncode, result.stderr.partition(":")[0]) == (1, "NOT_FOUND")


class TestAudit:
    def test_lists_what_was_done(self, terminal):
        terminal.succeed("rensei project create one")

        listed = terminal.read("rensei audit list --action project.created --json")["results"]

        assert [event["objectId"] for event in listed] == ["one"]
        assert "project.created" in terminal.succeed("rensei audit list --search one --actor ada@acme.test --limit 5")

    def test_is_not_for_members(self, make_terminal, make_token, mia, access_of):
        member = make_terminal("mia", RENSEI_AUTH_TOKEN=make_token(access_of(mia)))

        result = member.run("rensei audit list")

        assert (result.returncode, result.stderr.partition(":")[0]) == (1, "NOT_PERMITTED")


class TestLogout:
    def test_forgets_the_token_and_leaves_the_other_sign_ins(self, machine, make_token, eve, access_of):
        machine.succeed("rensei setup --token - --login none", given=make_token(access_of(eve, "evil")))
        tokens = {one["org"]: one["token"] for one in machine.config()["contexts"]}

        said = machine.run("rensei logout --org acme")

        assert said.stdout.startswith("Signed out of acme")
        assert "stays registered as host_" in said.stderr
        assert tokens["acme"] not in machine.everything_kept().decode()
        assert machine.read("rensei whoami --json")["org"]["slug"] == "evil"

    def test_leaves_nothing_at_the_end(self, machine):
        token = machine.config()["contexts"][0]["token"]

        machine.succeed("rensei logout")

        assert token not in machine.everything_kept().decode()
        assert machine.run("rensei whoami").stderr.startswith("NOT_SIGNED_IN: ")
        assert machine.run("rensei logout").stderr.startswith("NOT_SIGNED_IN: ")

    def test_takes_the_token_out_of_the_keyring(self, make_terminal, make_token):
        keyring = "tests.cli.file_keyring.FileKeyring"
        terminal = make_terminal("kept", PYTHON_KEYRING_BACKEND=keyring)
        terminal.succeed("rensei setup --token - --login none", given=make_token())
        kept = terminal.home / "keyring.json"
        assert "rsk_live_" in kept.read_text()

        terminal.succeed("rensei logout")

        assert "rsk_live_" not in kept.read_text()


class TestWeb:
    def test_opens_the_page_of_what_is_shown(self, terminal, server, connected, make_profile, my_project):
        terminal.install_program("browser", '#!/bin/sh\necho "$1" >> opened\n')
        terminal.variables["BROWSER"] = "browser"
        profile = make_profile()
        terminal.succeed(f"rensei dispatch --profile {profile} Hello")
        terminal.succeed("rensei workflow apply -", given=NODE)
        run = Run.objects.get()
        workflow = terminal.read("rensei workflow show greet --json")["id"]
        shown = {
            f"run show {run.id}": f"runs/{run.id}",
            f"profile show {profile}": f"settings/profiles/{profile}",
            "catalog show claude-opus-5-5": "settings/catalog/claude/claude-opus-5-5",
            "workflow show greet": f"workflows/{workflow}",
            "policy show": "settings/access",
            "policy show --project my-project": "settings/projects/my-project/access",
        }

        written = [terminal.succeed(f"rensei {line} --web") for line in shown]

        opened = (terminal.home / "opened").read_text().splitlines()
        assert opened == [f"{server.url}/o/acme/{path}" for path in shown.values()]
        assert written == [f"{address}\n" for address in opened]
        assert json.loads(terminal.succeed(f"rensei run show {run.id} --web --json")) == {"url": opened[0]}
