"""Host sessions on a real machine: its own login signs."""

import hashlib
import json
import shutil

import pytest

from billing.models import CostEvent
from rensei.dispatch.models import Run
from tests import servers
from tests.cli import logins

pytestmark = pytest.mark.outside


def state() -> str:
    return Run.objects.get().state


class TestConsoleLogin:
    def test_is_found_by_setup_and_by_the_doctor(self, machine, console):
        assert machine.config()["contexts"][0]["login"] == "console"
        assert "login of the Anthropic SDK works" in machine.succeed("rensei doctor")

    def test_signs_a_dispatch_on_the_machine(self, machine, console, here, simulator):
        result = machine.run(f"rensei dispatch --profile {here} --input 'What is a vault?' --effort high")

        run = Run.objects.get()
        assert result.returncode == 0, result.stderr
        assert result.stdout == run.output_text + "\n"
        assert "host-session, paid by host-account" in result.stderr
        call = [one for one in simulator.requests() if one["path"] == "/v1/messages"][-1]
        assert call["key_sha256"] == hashlib.sha256(console.encode()).hexdigest()
        assert call["body"]["output_config"] == {"effort": "high"}
        line = CostEvent.objects.get()
        assert call["attempt_id"] == line.attempt_id
        assert (line.payer, line.billed, line.input_tokens) == ("host-account", False, call["usage"]["input_tokens"])

    def test_pays_whatever_the_shell_says(self, machine, console, here, simulator, make_key):
        other = make_key()

        machine.succeed(
            f"rensei dispatch --profile {here} --input Hello",
            ANTHROPIC_API_KEY=other,
            ANTHROPIC_BASE_URL=f"http://127.0.0.1:{servers.free_port()}",
            CLAUDE_CODE_OAUTH_TOKEN=other,
        )

        assert {one["key_sha256"] for one in simulator.requests()} == {hashlib.sha256(console.encode()).hexdigest()}

    @pytest.mark.parametrize(
        ("fault", "code"),
        [
            ("nocredit", "HOST_PLAN_EXHAUSTED"),
            ("oauthexpired", "HOST_LOGIN_MISSING"),
            ("ratelimited", "PROVIDER_RATE_LIMITED"),
            ("overloaded", "PROVIDER_OVERLOADED"),
            ("unprocessable", "PROVIDER_REJECTED"),
        ],
    )
    def test_that_is_refused_ends_the_run_with_its_reason(self, machine, console, here, fault, code):
        result = machine.run(f"rensei dispatch --profile {here} --input '[[fault:{fault}]] Hello'")

        assert result.returncode == 1
        assert Run.objects.get().error["code"] == code
        assert code in result.stderr

    def test_that_is_gone_is_said_to_be(self, machine, console, here):
        shutil.rmtree(machine.home / ".config/anthropic")

        result = machine.run(f"rensei dispatch --profile {here} --input Hello")

        assert result.returncode == 1
        assert "HOST_LOGIN_MISSING" in result.stderr
        assert "ant auth login" in result.stderr


class TestNoLogin:
    def test_is_said_before_anything_waits_for_it(self, machine, here):
        result = machine.run(f"rensei dispatch --profile {here} --input Hello")

        assert result.returncode == 1
        assert "HOST_LOGIN_MISSING" in result.stderr
        assert state() == "CANCELLED"

    def test_of_another_machine_is_refused_with_the_way_out(self, terminal, here):
        result = terminal.run(f"rensei dispatch --profile {here} --input Hello")

        assert result.returncode == 1
        assert result.stderr.startswith("HOST_SESSION_WRONG_MACHINE: ")


class TestClaudeProgram:
    def test_is_taken_only_when_the_person_says_so(self, machine):
        logins.install_stand_in(machine)

        machine.succeed("rensei setup")
        unasked = machine.config()["contexts"][0]["login"]
        machine.succeed("rensei setup --login claude-code")

        assert (unasked, machine.config()["contexts"][0]["login"]) == ("none", "claude-code")

    def test_gets_model_system_effort_length_and_prompt_and_nothing_else(self, machine, here):
        called = logins.install_stand_in(machine)
        machine.succeed("rensei setup --login claude-code")

        written = machine.succeed(
            f"rensei dispatch --profile {here} --input 'What is it?' "
            "--system 'Be brief.' --effort low --max-tokens 900",
            ANTHROPIC_API_KEY="not passed on",
        )

        call = json.loads(called.read_text())
        arguments = " ".join(call["arguments"])
        assert written == "Slow and steady.\n"
        assert call["prompt"] == "What is it?"
        assert call["folder"] == []
        assert "--model claude-sonnet-5-5 --system-prompt Be brief. --effort low" in arguments
        assert call["environment"]["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == "900"
        assert not {"ANTHROPIC_API_KEY", "RENSEI_API_URL", "RENSEI_AUTH_TOKEN"} & set(call["environment"])

    def test_is_not_given_what_it_cannot_honour(self, machine, here):
        from PIL import Image

        called = logins.install_stand_in(machine)
        machine.succeed("rensei setup --login claude-code")
        Image.new("RGB", (8, 8)).save(machine.home / "black.png")

        result = machine.run(f"rensei dispatch --profile {here} --input Hello --image black.png")

        assert result.returncode == 1
        assert "cannot take blocks of the kind image" in result.stderr
        assert not called.exists()
        assert not CostEvent.objects.exists()

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (("Claude AI usage limit reached|1764000000", 429), "HOST_PLAN_EXHAUSTED"),
            (("Invalid API key · Please run /login", None), "HOST_LOGIN_MISSING"),
            (("API Error: 529 Overloaded", 529), "PROVIDER_OVERLOADED"),
            (("API Error: 400 Nonsense", 400), "PROVIDER_REJECTED"),
        ],
    )
    def test_that_fails_ends_the_run_with_its_reason(self, machine, here, error, code):
        logins.install_stand_in(machine, error=error)
        machine.succeed("rensei setup --login claude-code")

        result = machine.run(f"rensei dispatch --profile {here} --input Hello")

        assert result.returncode == 1
        assert Run.objects.get().error["code"] == code

    @pytest.mark.parametrize(
        ("fault", "words"),
        [({"status": 1}, "is not logged in"), ({"version": "1.0.3"}, "is too old"), (None, "no `claude` program")],
    )
    def test_that_is_of_no_use_is_said_to_be(self, machine, fault, words):
        if fault is not None:
            logins.install_stand_in(machine, **fault)
        ended = machine.run("rensei setup --login claude-code")

        result = machine.run("rensei doctor")

        assert (ended.returncode, result.returncode) == (1, 1)
        assert words in ended.stdout
        assert words in result.stdout

    def test_of_anthropic_signs_a_dispatch(self, machine, real_claude, here, simulator):
        written = machine.succeed(f"rensei dispatch --profile {here} --input 'What is a vault?' --system 'Be brief.'")

        call = [one for one in simulator.requests() if one["path"] == "/v1/messages"][-1]
        run = Run.objects.get()
        assert "This is the Anthropic simulator" in written
        assert call["key_sha256"] == hashlib.sha256(real_claude.encode()).hexdigest()
        assert run.usage["output_tokens"] == call["usage"]["output_tokens"]
