"""The machine's token is in the keyring of the system, and where there is none in a file that only its owner reads."""

import json
import re
import stat

import pytest

from rensei.orgs.models import Host

pytestmark = pytest.mark.outside

KEYRING = "tests.cli.file_keyring.FileKeyring"
NULL = "keyring.backends.null.Keyring"


@pytest.fixture
def signed_in(make_terminal, make_token):
    """Sign a machine in, with a keyring or another."""

    def sign_in(backend):
        terminal = make_terminal(PYTHON_KEYRING_BACKEND=backend)
        terminal.succeed("rensei setup --token - --login none", given=make_token())
        return terminal

    return sign_in


def kept_in_keyring(terminal):
    return json.loads((terminal.home / "keyring.json").read_text())


class TestAKeyring:
    def test_keeps_the_token_and_our_file_does_not(self, signed_in, server):
        terminal = signed_in(KEYRING)

        ((name, token),) = kept_in_keyring(terminal).items()
        assert name == f"rensei: acme at {server.url}"
        assert token.encode() not in terminal.everything_kept()
        assert terminal.read("rensei whoami --json")["host"] is not None

    def test_is_named_by_the_doctor_and_the_list_of_contexts(self, signed_in):
        terminal = signed_in(KEYRING)

        assert re.search("Token +the keyring: .*FileKeyring", terminal.succeed("rensei doctor"))
        assert [one["tokenIn"] for one in terminal.read("rensei context list --json")["results"]] == ["keyring"]

    def test_that_is_locked_is_said_to_be_without_a_traceback(self, signed_in):
        terminal = signed_in(KEYRING)
        (terminal.home / "locked").touch()

        result = terminal.run("rensei whoami")

        assert result.returncode == 1
        assert result.stderr.startswith("TOKEN_UNREADABLE: ")
        assert "Traceback" not in result.stderr

    def test_keeps_the_machine_registered_when_somebody_signs_in_again(self, signed_in, make_token):
        terminal = signed_in(KEYRING)
        before = kept_in_keyring(terminal)

        terminal.succeed("rensei setup --token - --login none", given=make_token())

        assert kept_in_keyring(terminal) == before
        assert Host.objects.count() == 1

    def test_that_lost_the_token_is_filled_by_signing_in_again(self, signed_in, make_token):
        terminal = signed_in(KEYRING)
        (terminal.home / "keyring.json").unlink()

        terminal.succeed("rensei setup --token - --login none", given=make_token())

        assert len(kept_in_keyring(terminal)) == 1
        assert terminal.run("rensei whoami").returncode == 0

    def test_that_came_later_takes_the_token_over(self, signed_in):
        terminal = signed_in("keyring.backends.fail.Keyring")
        before = terminal.config()["contexts"][0]["token"]

        terminal.succeed("rensei context use acme", PYTHON_KEYRING_BACKEND=KEYRING)

        assert list(kept_in_keyring(terminal).values()) == [before]
        assert terminal.config()["contexts"][0]["token"] is None


class TestNoKeyring:
    @pytest.mark.parametrize("backend", ["keyring.backends.fail.Keyring", NULL], ids=["none", "keeps-nothing"])
    def test_leaves_the_token_in_a_file_that_only_its_owner_reads(self, signed_in, backend):
        terminal = signed_in(backend)

        assert terminal.config()["contexts"][0]["token"].startswith("rsk_live_")
        assert stat.S_IMODE(terminal.config_file.stat().st_mode) == 0o600
        assert "which only you can read" in terminal.succeed("rensei doctor")

    def test_is_not_looked_for_where_the_token_comes_from_elsewhere(self, terminal):
        assert terminal.run("rensei whoami", PYTHON_KEYRING_BACKEND="no.such.Keyring").returncode == 0


class TestTheDoctor:
    def test_knows_the_machine_though_another_token_is_used(self, machine, make_token):
        host = machine.config()["contexts"][0]["host_id"]

        written = machine.succeed("rensei doctor", RENSEI_AUTH_TOKEN=make_token())

        assert "RENSEI_AUTH_TOKEN, for this call" in written
        assert host in written
        assert "not registered" not in written
