"""`rensei exec`: a real client gets the gateway and a token, which ends with it in every way that it can end."""

import os
import signal
import sys

import pytest

from rensei.dispatch.models import Run
from rensei.tokens.models import ApiToken

pytestmark = pytest.mark.outside

CALL = """\
import anthropic
message = anthropic.Anthropic().messages.create(
    model="{model}", max_tokens=4000, messages=[{{"role": "user", "content": "Hello"}}]
)
print(*(block.text for block in message.content if block.type == "text"))
"""
TOLD = "import os; print(sorted(name for name in os.environ if name.startswith(('ANTHROPIC_', 'RENSEI_', 'CLAUDE_'))))"


@pytest.fixture
def client(terminal):
    """A terminal that has the program of the tests, and files that it runs."""

    def write(name: str, text: str) -> str:
        (terminal.home / name).write_text(text)
        return f"{sys.executable} {name}"

    return write


def made_tokens() -> list[ApiToken]:
    return list(ApiToken.objects.filter(name__startswith="rensei exec"))


class TestExec:
    def test_lets_a_client_call_through_the_gateway(self, terminal, connected, make_profile, client):
        program = client("call.py", CALL.format(model=make_profile()))

        result = terminal.run(f"rensei exec -- {program}")

        assert "This is the Anthropic simulator" in result.stdout, result.stderr
        assert Run.objects.get().via == Run.Via.GATEWAY
        (token,) = made_tokens()
        assert token.revoked_at is not None
        assert (token.scopes, token.made_by is not None) == (["gateway"], True)

    def test_leaves_nothing_that_signs_otherwise_and_no_wider_token(self, terminal, client):
        program = client("told.py", TOLD)
        other = {"ANTHROPIC_API_KEY": "x", "CLAUDE_CODE_OAUTH_TOKEN": "x", "ANTHROPIC_MODEL": "prof_a"}

        told = terminal.run(f"rensei exec -- {program}", **other).stdout

        assert told == "['ANTHROPIC_AUTH_TOKEN', 'ANTHROPIC_BASE_URL', 'ANTHROPIC_MODEL']\n"

    def test_shows_the_token_nowhere(self, terminal, client):
        program = client("quiet.py", "import os; print(os.environ['ANTHROPIC_AUTH_TOKEN'][-4:])")

        result = terminal.run(f"rensei exec --debug -- {program}")

        assert made_tokens()[0].hint.endswith(result.stdout.strip())
        assert "rsk_live_" not in result.stdout + result.stderr

    @pytest.mark.parametrize("code", [0, 1, 7, 255])
    def test_ends_as_the_program_ends(self, terminal, code):
        assert terminal.run(f"rensei exec -- sh -c 'exit {code}'").returncode == code
        assert made_tokens()[0].revoked_at is not None

    def test_passes_the_options_of_the_program_on(self, terminal):
        assert terminal.succeed("rensei exec -- echo -n --json -h --jq") == "--json -h --jq"
        assert terminal.succeed("rensei exec echo --json") == "--json\n"

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_revokes_the_token_after_a_signal(self, terminal, number):
        process = terminal.start("rensei exec -- sh -c 'echo begun; exec sleep 60'")
        assert process.stdout
        assert process.stdout.readline() == "begun\n"

        process.send_signal(number)

        assert process.wait(timeout=60) == 128 + number
        process.stdout.close()
        (token,) = made_tokens()
        assert token.revoked_at is not None

    def test_revokes_the_token_of_a_program_that_was_killed(self, terminal):
        assert terminal.run("rensei exec -- sh -c 'kill -9 $$'").returncode == 128 + signal.SIGKILL
        assert made_tokens()[0].revoked_at is not None

    def test_makes_no_token_for_a_program_that_is_not_there(self, terminal):
        result = terminal.run("rensei exec -- no-such-program")

        assert (result.returncode, made_tokens()) == (127, [])

    def test_revokes_the_token_of_a_program_that_does_not_start(self, terminal):
        program = terminal.programs / "broken"
        program.write_bytes(os.urandom(64))
        program.chmod(0o755)

        result = terminal.run("rensei exec -- broken")

        assert (result.returncode, "Traceback" in result.stderr) == (1, False)
        assert made_tokens()[0].revoked_at is not None

    def test_makes_the_token_for_a_short_time(self, terminal):
        terminal.succeed("rensei exec --ttl 30m -- true")

        (token,) = made_tokens()
        assert 1700 < (token.expires_at - token.created_at).total_seconds() <= 1800
        assert terminal.run("rensei exec --ttl soon -- true").returncode == 2

    def test_says_what_to_do_where_the_sign_in_is_the_machine_s(self, machine):
        result = machine.run("rensei exec -- true")

        assert (result.returncode, result.stderr.partition(":")[0]) == (1, "SCOPE_MISSING")
        assert "RENSEI_AUTH_TOKEN" in result.stderr
