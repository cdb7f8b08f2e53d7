"""Ways to say what to dispatch, and which runs to list."""

from datetime import timedelta

import pytest

from rensei.core.clock import database_now
from rensei.dispatch.models import Run
from rensei.workflows.models import WorkflowRun
from tests.cli.conftest import MODEL

pytestmark = pytest.mark.outside

NODE = """\
nodeId: greet
nodeType: action/llm.inference
config:
  profileId: prof_quick
"""


class TestPrompt:
    def test_is_a_word_of_the_line_or_comes_from_standard_input(self, terminal, connected, make_profile):
        profile = make_profile()

        terminal.succeed(f"rensei dispatch 'What is a vault?' --profile {profile}")
        terminal.succeed(f"echo 'What is a vault?' | rensei dispatch --profile {profile} -")

        first, second = Run.objects.order_by("created_at")
        assert first.input.body["messages"][0]["content"][0]["text"] == "What is a vault?"
        assert second.input.body["messages"][0]["content"][0]["text"] == "What is a vault?\n"

    @pytest.mark.parametrize("line", ["", "Hello --input Hello", "Hello -m a --profile b"])
    def test_is_given_once(self, terminal, line):
        assert terminal.run(f"rensei dispatch {line}").returncode == 2


class TestModel:
    def test_chooses_the_profile_that_names_it(self, terminal, connected, make_profile):
        make_profile(name="other", model_id="claude-opus-5-5")
        make_profile()

        terminal.succeed(f"rensei dispatch -m {MODEL} Hello")

        assert Run.objects.get().profile_id == "prof_quick"

    def test_of_several_profiles_takes_the_default_one(self, terminal, connected, make_profile):
        make_profile()
        make_profile(name="usual", is_default=True)

        terminal.succeed(f"rensei dispatch -m {MODEL} Hello")

        assert Run.objects.get().profile_id == "prof_usual"

    def test_of_several_equal_profiles_takes_none(self, terminal, connected, make_profile):
        make_profile()
        make_profile(name="second")

        result = terminal.run(f"rensei dispatch -m {MODEL} Hello")

        assert (result.returncode, Run.objects.count()) == (1, 0)
        assert "prof_quick, prof_second" in result.stderr.replace("prof_second, prof_quick", "prof_quick, prof_second")

    def test_without_a_profile_says_how_to_create_one(self, terminal, connected):
        result = terminal.run(f"rensei dispatch -m {MODEL} Hello")
        create = next(line for line in result.stderr.splitlines() if "rensei profile create" in line)

        assert result.stderr.startswith("PROFILE_REQUIRED: ")
        terminal.succeed(create.removeprefix("Create one: "))
        terminal.succeed(f"rensei dispatch -m {MODEL} Hello")

    def test_that_is_not_in_the_catalog_is_refused(self, terminal):
        assert terminal.run("rensei dispatch -m nothing Hello").returncode == 1


class TestRunList:
    @pytest.fixture
    def run(self, terminal, connected, make_profile) -> Run:
        terminal.succeed(f"rensei dispatch --profile {make_profile()} Hello")
        return Run.objects.get()

    @pytest.mark.parametrize("state", ["SUCCEEDED", "succeeded", "Succeeded"])
    def test_takes_states_in_any_case(self, terminal, run, state):
        assert run.id in terminal.succeed(f"rensei run list --state {state}")
        assert run.id not in terminal.succeed("rensei run list --state failed")

    def test_takes_a_time(self, terminal, run):
        today = f"{run.created_at:%Y-%m-%d}"
        tomorrow = f"{run.created_at + timedelta(days=1):%Y-%m-%d}"

        for inside in (f"--since {today}", f"--until {today}", "--since 2h", f"--since {today}T00:00:00Z --until 0m"):
            assert run.id in terminal.succeed(f"rensei run list {inside}"), inside
        for outside in (f"--since {tomorrow}", "--until 1d", f"--until {database_now() - timedelta(hours=1):%FT%TZ}"):
            assert run.id not in terminal.succeed(f"rensei run list {outside}"), outside

    @pytest.mark.parametrize("when", ["yesterday", "2026-13-01", "7", "999999w"])
    def test_says_what_is_no_time(self, terminal, when):
        assert terminal.run(f"rensei run list --since {when}").returncode == 2


class TestWorkflowRun:
    def test_of_a_file_applies_it_first(self, terminal, connected, make_profile):
        make_profile()
        (terminal.home / "greet.yaml").write_text(NODE)

        written = terminal.succeed("rensei workflow run greet.yaml --input Hello")
        terminal.succeed("rensei workflow run ./greet.yaml --input Hello")

        assert "This is the Anthropic simulator" in written
        assert {one.version.number for one in WorkflowRun.objects.all()} == {1}

    def test_of_a_file_that_is_not_there_says_so(self, terminal):
        result = terminal.run("rensei workflow run nothing.yaml")

        assert (result.returncode, result.stderr.partition(":")[0]) == (1, "FILE_UNREADABLE")
