"""The command starts quickly, because it loads nothing that it does not need."""

import resource
import subprocess
import sys

import pytest

from rensei.cli import install
from tests.architecture.modules import ROOT

pytestmark = pytest.mark.outside

TIMES = 5
# The library that reads the command line is loaded in any case, and all the rest may take a few times as long: that is
# less than 300 ms on a machine of today that is idle. Times are a processor's, and each is the best of a few, so that a
# busy machine makes no difference.
TIMES_THE_LIBRARY_MAX = 4


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True)


def seconds_of(*words: str) -> float:
    """How much of a processor a run takes at best."""
    seconds = []
    for _ in range(TIMES):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(*words)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


class TestHelp:
    def test_takes_little_longer_than_the_library_that_reads_the_command_line(self):
        run("-m", "compileall", "-q", "rensei/cli", "rensei/__init__.py")

        library = seconds_of("-c", "import typer")
        whole = seconds_of("-m", "rensei.cli", "--help")

        assert whole < TIMES_THE_LIBRARY_MAX * library

    @pytest.mark.parametrize(
        "package",
        ["django", "anthropic", "httpx2", "rich", "keyring", "rensei.core", "rensei.orgs", "integrations", "profiles"],
    )
    def test_loads_nothing_slow(self, package):
        loaded = run("-X", "importtime", "-m", "rensei.cli", "--help").stderr

        assert "rensei.cli.main" in loaded
        assert f" {package}\n" not in loaded


class TestCompletion:
    def test_knows_the_commands_and_the_options(self):
        words = {"_RENSEI_COMPLETE": "complete_bash", "COMP_WORDS": "rensei catalog show --for", "COMP_CWORD": "3"}

        result = subprocess.run(
            [sys.executable, "-m", "rensei.cli"], cwd=ROOT, env=words, capture_output=True, text=True, check=False
        )

        assert result.stdout.split() == ["--format"]


class TestInstall:
    def test_makes_a_command_that_works_in_every_folder(self, tmp_path):
        install.install(tmp_path)

        result = subprocess.run(
            [tmp_path / "rensei", "--version"], cwd="/", capture_output=True, text=True, check=True, env={}
        )

        assert result.stdout == "rensei 0.1.0\n"
