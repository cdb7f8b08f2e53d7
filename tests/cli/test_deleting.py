"""What is deleted is asked about first, and only then."""

import pytest

from tests.cli.test_dispatching import NODE

pytestmark = pytest.mark.outside


@pytest.fixture
def everything(terminal, make_profile, mia):
    """One of each that can be deleted."""
    make_profile()
    terminal.succeed("rensei project create old-project")
    terminal.succeed("rensei catalog create --provider claude --model-id nova --display-name Nova")
    terminal.succeed("rensei workflow apply -", given=NODE)
    return terminal


DELETED = {
    "project": ("rensei project delete old-project", "rensei project list", "old-project"),
    "workflow": ("rensei workflow delete greet", "rensei workflow list", "greet"),
    "catalog": ("rensei catalog delete nova", "rensei catalog list", "nova"),
    "member": ("rensei member remove mia@acme.test", "rensei member list", "mia@acme.test"),
    "profile": ("rensei profile delete prof_quick", "rensei profile list", "prof_quick"),
}


class TestDeletion:
    @pytest.mark.parametrize("what", DELETED)
    def test_needs_an_answer(self, everything, what):
        if what == "profile":
            everything.succeed("rensei workflow delete greet --yes")
        line, listed, name = DELETED[what]

        unasked = everything.run(f"echo y | {line}")
        kept = everything.succeed(listed)
        refused = everything.run(f"script -qec '{line}' /dev/null <<< n")
        still = everything.succeed(listed)
        agreed = everything.run(f"script -qec '{line}' /dev/null <<< y")
        left = everything.run(listed).stdout

        assert (unasked.returncode, unasked.stderr.partition(":")[0]) == (1, "CONFIRMATION_NEEDED")
        assert (refused.returncode, agreed.returncode) == (1, 0)
        assert name in kept
        assert name in still
        assert name not in left

    @pytest.mark.parametrize("what", DELETED)
    def test_is_done_unasked_with_yes(self, everything, what):
        if what == "profile":
            everything.succeed("rensei workflow delete greet --yes")
        line, listed, name = DELETED[what]

        everything.succeed(f"{line} --yes")

        assert name not in everything.run(listed).stdout
