"""Every command ends with a sentence where its machine cannot read, encode or write something, not with a traceback."""

import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rensei.cli.client import at
from rensei.cli.errors import Refused
from tests.architecture.modules import ROOT
from tests.cli.terminal import Terminal

pytestmark = [pytest.mark.outside, pytest.mark.django_db(transaction=True)]


def run_every_command(
    terminal: Terminal, folder: Path, *, stdin: bytes = b"", stdout: str = "", **variables: str
) -> list[dict]:
    given = folder / "stdin"
    given.write_bytes(stdin)
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.every_command", str(folder), str(given), stdout or str(folder / "stdout")],
        cwd=ROOT,
        env=terminal.environment() | variables,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    found: list[dict] = json.loads(done.stdout)
    assert len(found) > 40
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "every"
    place.mkdir()
    return place


class TestEveryCommand:
    @pytest.mark.parametrize(
        "condition",
        [
            pytest.param({"stdin": b"\xff\xfe caf\xe9\n"}, id="input-that-is-not-utf-8"),
            pytest.param({"stdin": b"{}\n", "PYTHONIOENCODING": "ascii"}, id="a-terminal-that-knows-ascii-only"),
            pytest.param({"stdin": b"{}\n", "stdout": "/dev/full"}, id="a-full-disk"),
            pytest.param({"stdin": b"{}\n", "HOME": "/dev/null"}, id="a-home-that-cannot-be-written"),
        ],
    )
    def test_ends_with_a_sentence(self, subtests, terminal, connected, make_profile, folder, condition):
        make_profile()

        for ended in run_every_command(terminal, folder, **condition):
            with subtests.test(" ".join(ended["words"])):
                assert ended["code"] in {0, 1, 2}, ended["stderr"]
                assert "Traceback" not in ended["stderr"]
                assert "Exception ignored" not in ended["stderr"]

    def test_reads_no_input_that_is_not_text(self, terminal, connected, make_profile):
        done = terminal.run(r"printf '\xff' | rensei dispatch --input -")

        assert done.returncode == 1
        assert done.stderr.startswith("INPUT_UNREADABLE: What was handed in is not text in UTF-8.\n")

    def test_writes_what_a_terminal_can_encode(self, terminal, my_project):
        my_project.name = "Größe"
        my_project.save()

        done = terminal.run("rensei project list", PYTHONIOENCODING="ascii")

        assert done.returncode == 0
        assert r"Gr\xf6\xdfe" in done.stdout

    def test_says_that_a_disk_is_full(self, terminal, connected, make_profile):
        done = terminal.run("rensei catalog list > /dev/full")

        assert done.returncode == 1
        assert "No space left on device" in done.stderr

    def test_is_silent_where_the_reader_has_read_enough(self, terminal, connected, make_profile):
        done = terminal.run("rensei catalog list --json | head -c 1")

        assert done.stderr == ""


class TestAddress:
    @pytest.mark.parametrize("hostile", ["../profiles/prof_deep", "..", ".", "", "a/b", "a\nb", "x" * 201])
    def test_refuses_what_is_no_id(self, hostile):
        with pytest.raises(Refused, match="is no id"):
            at("tokens", hostile)

    @given(st.text(max_size=30))
    def test_keeps_every_id_one_part(self, text):
        try:
            address = at("tokens", text)
        except Refused:
            return

        assert unquote(address.removeprefix("tokens/")) == text
        assert not set(address.removeprefix("tokens/")) & set("/?#")

    @pytest.mark.parametrize(
        "line",
        [
            "rensei token revoke ../profiles/prof_quick",
            "rensei host revoke ../profiles/prof_quick",
            "rensei integration remove ../profiles/prof_quick",
            "rensei run show ../me",
            "rensei catalog show ../profiles/prof_quick",
            "rensei policy show --project ../profiles",
        ],
    )
    def test_leads_nowhere_else(self, terminal, connected, make_profile, line):
        make_profile()

        done = terminal.run(line)

        assert (done.returncode, done.stderr.partition(":")[0]) == (1, "ID_INVALID")
        assert terminal.read("rensei profile show prof_quick --json")["id"] == "prof_quick"
