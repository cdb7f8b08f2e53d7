"""A real shell completes commands, options and values with the script that the command writes."""

import pytest

from billing.ledger import reports
from catalog.models import CatalogEntry
from rensei.cli.commands import catalog, people, runs, settings
from rensei.dispatch.models import Run
from rensei.orgs.models import Role
from tests import servers

pytestmark = pytest.mark.outside

# What bash does when Tab is pressed after a line.
COMPLETE = """\
eval "$(rensei completion bash)"
COMP_WORDS=({line}{last}); COMP_CWORD=$(({count} - 1)); _rensei_completion rensei
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def offered(terminal, line: str, **variables: str) -> list[str]:
    last = " ''" if line.endswith(" ") else ""
    script = COMPLETE.format(line=line, last=last, count=len(line.split()) + bool(last))
    return terminal.succeed(script, **variables).split()


class TestValues:
    @pytest.mark.parametrize(
        ("line", "value"),
        [
            ("rensei dispatch --profile ", "prof_quick"),
            ("rensei profile show prof_", "prof_quick"),
            ("rensei --project my", "my-project"),
            ("rensei project delete ", "my-project"),
            ("rensei token create --project-id ", "my-project"),
            ("rensei dispatch --pool ", "office"),
            ("rensei dispatch --pool lo", "local"),
            ("rensei run list --state succ", "succeeded"),
            ("rensei run list --state SUCC", "SUCCEEDED"),
            ("rensei dispatch -m claude-opus-5", "claude-opus-5-5"),
            ("rensei catalog show claude-opus-5", "claude-opus-5-5"),
            ("rensei dispatch --effort h", "high"),
            ("rensei usage --group-by pro", "profile"),
            ("rensei member remove ada", "ada@acme.test"),
            ("rensei completion f", "fish"),
            ("rensei work", "workflow"),
        ],
    )
    def test_are_offered(self, terminal, make_profile, my_project, line, value):
        make_profile()
        if value == "office":
            terminal.succeed("rensei pool create --name office --provider local")

        assert value in offered(terminal, line)

    def test_are_none_where_no_server_answers(self, terminal):
        url = f"http://127.0.0.1:{servers.free_port()}"

        assert offered(terminal, "rensei dispatch --profile ", RENSEI_API_URL=url) == []

    def test_are_asked_with_the_flags_of_the_line(self, terminal, make_profile):
        make_profile()
        url = terminal.variables.pop("RENSEI_API_URL")

        assert offered(terminal, f"rensei --url {url} profile show ") == ["prof_quick"]

    @pytest.mark.parametrize(
        ("offered", "known"),
        [
            (runs.STATES, Run.State.values),
            (catalog.LIFECYCLES, CatalogEntry.Lifecycle.values),
            (people.ROLES, Role.values),
            (settings.GROUPS, list(reports.GROUPS)),
        ],
    )
    def test_that_are_fixed_are_the_server_s(self, offered, known):
        assert sorted(offered) == sorted(known)


class TestScript:
    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_is_there_for_each_shell(self, terminal, shell):
        assert "_RENSEI_COMPLETE=complete_" + shell in terminal.succeed(f"rensei completion {shell}")

    def test_is_a_usage_error_for_another_shell(self, terminal):
        assert terminal.run("rensei completion csh").returncode == 2
