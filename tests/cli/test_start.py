"""The command starts quickly, because it loads nothing that it does not need."""

import resource
import subprocess
import sys

import pytest

from rensei.cli import install
from tests.architecture.rooms import ROOT

TIMES = 5
# Of a processor, so that a busy machine makes no difference. The clock shows hardly more on an idle one.
SECONDS_MAX = 0.3


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True)


class TestHelp:
    def test_is_there_in_less_than_300_ms(self):
        run("-m", "compileall", "-q", "rensei/cli", "rensei/__init__.py")
        seconds = []
        for _ in range(TIMES):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            run("-m", "rensei.cli", "--help")
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

        assert min(seconds) < SECONDS_MAX

    @pytest.mark.parametrize("package", ["django", "anthropic", "httpx2", "rich", "rensei.core", "rensei.orgs"])
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
