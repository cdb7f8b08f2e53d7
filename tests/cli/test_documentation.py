"""The commands of the documentation of the Anthropic provider, and those of docs/cli.md, run by a shell as printed."""

import re

import pytest

from rensei.cli import docs
from rensei.workflows.models import WorkflowRun
from tests.architecture.modules import ROOT

pytestmark = pytest.mark.outside

CREATE_PROFILE = """\
rensei profile create \\
  --name "anthropic-deep-reasoning" \\
  --provider claude \\
  --model-id "claude-opus-4-1-20250514" \\
  --auth-modes byok,metered \\
  --effort high \\
  --scope project \\
  --project-id my-project"""
CREATE_MODEL = """\
rensei catalog create \\
  --provider claude \\
  --model-id "claude-opus-4-1-20250514" \\
  --display-name "Claude Opus 4.1\""""


class TestPrintedCommands:
    def test_list_the_models(self, terminal):
        listed = terminal.succeed("rensei catalog list --provider claude")

        for model in ("claude-opus-4-1-20250514", "claude-sonnet-4-20250514", "claude-3-5-haiku-20241022"):
            assert model in listed

    def test_show_the_price_of_a_model(self, terminal):
        pricing = terminal.read("rensei catalog show claude-opus-4-1-20250514 --format json | jq .pricing")

        assert pricing["inputPerMTokenCents"] == 1500
        assert pricing["outputPerMTokenCents"] == 7500

    def test_create_the_profile_and_refuse_a_second_one_clearly(self, terminal, my_project):
        first = terminal.run(CREATE_PROFILE)
        again = terminal.run(CREATE_PROFILE)

        assert (first.returncode, again.returncode) == (0, 1)
        assert "prof_anthropic_deep_reasoning" in first.stdout
        assert again.stderr.startswith("ALREADY_EXISTS: ")
        shown = terminal.read("rensei profile show prof_anthropic_deep_reasoning --json")
        assert shown["authModes"] == ["byok", "metered"]
        assert (shown["effort"], shown["scope"], shown["projectId"]) == ("high", "project", "my-project")

    def test_say_how_to_create_a_project_that_is_missing(self, terminal):
        result = terminal.run(CREATE_PROFILE)

        assert result.returncode == 1
        assert "rensei project create my-project" in result.stderr

    def test_add_a_model_any_number_of_times(self, terminal):
        first = terminal.read(f"{CREATE_MODEL} --json")
        again = terminal.read(f"{CREATE_MODEL} --json")

        assert first == again
        assert first["modelId"] == "claude-opus-4-1-20250514"

    def test_set_the_machine_up_any_number_of_times(self, make_terminal, make_token):
        terminal = make_terminal()
        terminal.succeed("rensei setup --token - --login none", given=make_token())
        first = terminal.config()

        terminal.succeed("rensei setup --login none")

        assert terminal.config() == first
        assert first["contexts"][0]["host_id"].startswith("host_")


class TestSession:
    def test_of_the_document_runs_as_printed(self, make_terminal, make_token, connected, server):
        document = (ROOT / "docs/cli.md").read_text()
        (session,) = re.findall(r"```console\n(.*?)```", document, flags=re.DOTALL)
        typed = [line[2:] for line in session.splitlines() if line.startswith(("$ ", "> "))]
        shown = [line for line in session.splitlines() if not line.startswith(("$ ", "> ", "…"))]
        terminal = make_terminal(RENSEI=server.url, TOKEN=make_token())

        written = terminal.succeed("set -e\n" + "\n".join(typed))

        for line in shown:
            pattern = re.escape(line).replace("…", ".*")
            assert re.search(rf"^{pattern} *$", written, flags=re.MULTILINE), line
        assert written.count("This is the Anthropic simulator") == 4
        assert WorkflowRun.objects.get().state == "SUCCEEDED"


class TestReference:
    def test_is_what_the_commands_say_of_themselves(self):
        _, mark, reference = docs.DOCUMENT.read_text().partition(docs.MARK)

        assert mark
        assert reference.strip() == docs.reference().strip(), "run python -m rensei.cli.docs"

    @pytest.mark.parametrize(
        "name", ["setup", "dispatch", "worker", "doctor", "workflow apply", "profile resolve", "policy set"]
    )
    def test_has_every_command(self, name):
        assert f"## rensei {name}\n" in docs.reference()
