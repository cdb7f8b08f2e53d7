"""`rensei agent run`: a folder goes up, a program works on it in a sandbox, and what it leaves comes down."""

import shutil

import pytest

from rensei.core.clock import database_now
from rensei.core.models import WorkerHeartbeat

pytestmark = [pytest.mark.outside, pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is missing")]

AGENT = """
import json, os, pathlib, sys, urllib.request
body = {"model": os.environ["ANTHROPIC_MODEL"], "max_tokens": 50,
        "messages": [{"role": "user", "content": sys.stdin.read()}]}
request = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", json.dumps(body).encode(),
                                 {"content-type": "application/json", "anthropic-version": "2023-06-01"})
answer = json.load(urllib.request.urlopen(request))
print("asked", file=sys.stderr)
pathlib.Path("out").mkdir()
pathlib.Path("out/data.bin").write_bytes(pathlib.Path("sub/data.bin").read_bytes()[::-1])
print(answer["usage"]["output_tokens"] > 0)
sys.exit(int(sys.argv[1]))
"""


class TestAgentRun:
    @pytest.mark.parametrize("code", [0, 3])
    def test_brings_back_what_the_program_has_left(self, terminal, make_profile, connect, code):
        connect()
        WorkerHeartbeat.objects.update_or_create(
            worker="test", defaults={"seen_at": database_now(), "offers_sandboxes": True}
        )
        folder = terminal.home / "up"
        (folder / "sub").mkdir(parents=True)
        (folder / "agent.py").write_text(AGENT)
        (folder / "sub/data.bin").write_bytes(b"\x00\xff1")
        (folder / "link").symlink_to("/etc/passwd")
        options = "--max-cost 1 --upload up --download down --output 'out/**'"

        result = terminal.run(
            f"rensei agent run --profile {make_profile()} {options} --program 'python3 agent.py {code}' 'My task.'"
        )

        assert (result.returncode, result.stdout.strip()) == (1 if code else 0, "True")
        assert "asked" in result.stderr
        assert ("AGENT_FAILED" in result.stderr) == bool(code)
        assert (terminal.home / "down/out/data.bin").read_bytes() == b"1\xff\x00"

    def test_is_refused_where_its_program_is_not_closed(self, terminal):
        result = terminal.run("""rensei agent run --max-cost 1 --program "python3 'x" Task""")

        assert result.returncode == 2
        assert "--program" in result.stderr

    def test_sends_a_repository_with_a_token_from_standard_input(self, terminal, make_profile, connect):
        connect()
        command = f"rensei agent run --profile {make_profile()} --max-cost 1 --program true"
        git = "--git https://git.example.com/a.git --ref main --git-token --git-user deploy"

        result = terminal.run(f"{command} {git} Task", given="secret-token\n")

        assert result.returncode == 1
        assert "GIT_HOST_NOT_ALLOWED" in result.stderr or "NO_ELIGIBLE_POOL" in result.stderr
        assert "secret-token" not in result.stdout + result.stderr

    @pytest.mark.parametrize("given", ["--ref main Task", "--git https://a.example.com/b --git-token -- -"])
    def test_is_refused_where_the_repository_is_not_clear(self, terminal, given):
        assert terminal.run(f"rensei agent run --max-cost 1 {given}").returncode == 2

    def test_is_claude_code_without_a_program(self, terminal, make_profile, connect):
        connect()
        WorkerHeartbeat.objects.update_or_create(
            worker="test",
            defaults={"seen_at": database_now(), "offers_sandboxes": True, "claude_code_refusal": "it is missing."},
        )

        result = terminal.run(f"rensei agent run --profile {make_profile()} --max-cost 1 --max-turns 3 -- Task")

        assert result.returncode == 1
        assert "AGENT_PROGRAM_UNAVAILABLE" in result.stderr
        assert "it is missing." in result.stderr
