"""Every list and show command on screens of several widths, and in a pipe."""

import re

import pytest
import typer.main

from rensei.cli.main import app
from rensei.dispatch.models import Run
from rensei.workflows.models import Workflow
from tests.cli.terminal import on_screens

pytestmark = [pytest.mark.outside, pytest.mark.django_db(transaction=True)]

ID = re.compile(r"\b(?:run|prof|int|host|pool|wf|wfr|tok|inv)_[A-Za-z0-9_]+")
STYLE = re.compile(r"\x1b\[[0-9;]*m")
WIDTHS = (40, 80, 200)


def list_commands() -> list[str]:
    """Every command that lists something, from the commands themselves."""
    groups = {name: one for name, one in typer.main.get_command(app).commands.items() if hasattr(one, "commands")}
    lists = [f"rensei {name} list" for name, group in sorted(groups.items()) if "list" in group.commands]
    return [*lists, "rensei usage", "rensei usage --group-by profile", "rensei policy show", "rensei doctor"]


@pytest.fixture
def filled(machine, connected, make_profile, my_project, make_token, monkeypatch):
    """The machine of an organization that has at least one row of everything, with names that are long."""
    profile = make_profile(name="A profile with quite a long name for a narrow screen")
    machine.variables["RENSEI_AUTH_TOKEN"] = make_token()
    machine.succeed("rensei pool create --name office-of-the-research-group --provider local")
    machine.succeed(f"rensei dispatch --profile {profile} Hello")
    node = f"{{nodeId: a, nodeType: action/llm.inference, config: {{profileId: {profile}}}}}"
    document = f"{{name: a-long-name-of-a-workflow, nodes: [{node}]}}"
    machine.succeed("rensei workflow apply -", given=document)
    return machine


def every_id(written: str) -> set[str]:
    return set(ID.findall(written))


class TestLists:
    def test_fit_every_screen_with_whole_ids_and_no_blanks_in_a_pipe(self, subtests, filled):
        commands = list_commands()
        assert len(commands) > 14
        for command, piped, screens in on_screens(filled, commands, widths=WIDTHS):
            with subtests.test(f"{command} in a pipe"):
                assert not [line for line in piped.splitlines() if line != line.rstrip()]
                assert "\x1b" not in piped
            for width, screen in zip(WIDTHS, screens, strict=True):
                with subtests.test(f"{command} at {width}"):
                    shown = STYLE.sub("", screen)
                    table = shown.splitlines() if command != "rensei doctor" else []
                    assert shown
                    # An id is on one line, whole, or not there.
                    assert every_id(shown) <= every_id(piped)
                    # A line is only too long where it is a single word.
                    assert not [line for line in table if len(line) > width and " " in line]
                    if width == 200:
                        assert every_id(shown) == every_id(piped)

    def test_say_what_they_leave_out(self, filled):
        run = Run.objects.get()

        done = filled.run("script -qec 'stty cols 40; rensei run list' /dev/null")

        assert run.id in done.stdout
        assert run.state in done.stdout
        assert "This terminal is too narrow for: " in done.stdout


class TestShown:
    def test_things_have_whole_ids_at_every_width(self, subtests, filled):
        run, workflow = Run.objects.get(), Workflow.objects.get()
        commands = [
            f"rensei run show {run.id}",
            f"rensei profile show {run.profile_id}",
            f"rensei workflow show {workflow.id}",
            "rensei whoami",
            "rensei catalog show claude-opus-5-5",
        ]
        for command, piped, screens in on_screens(filled, commands, widths=WIDTHS):
            for width, screen in zip(WIDTHS, screens, strict=True):
                with subtests.test(f"{command} at {width}"):
                    shown = STYLE.sub("", screen)
                    assert every_id(shown) == every_id(piped)
                    assert shown.split() == piped.split()
