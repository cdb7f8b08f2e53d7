"""No file of the project holds anything that looks like a key."""

import re
import secrets
import subprocess

from tests.architecture.modules import ROOT

KEY_SHAPES = re.compile(rb"sk-ant-[a-z]+\d\d-[A-Za-z0-9_-]{8,}|rsk_live_[0-9a-f]{16,}|-----BEGIN [A-Z ]*PRIVATE KEY")


def tracked_files():
    """List the files of the project, with those that are about to be added."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def key_shaped(files):
    return [f"{path}: {match[:16]!r}…" for path in files for match in KEY_SHAPES.findall(path.read_bytes())]


class TestTree:
    def test_holds_no_key(self):
        assert key_shaped(tracked_files()) == []

    def test_would_be_caught_holding_one(self, tmp_path):
        for place, start in enumerate((f"sk-ant-api{3:02d}-", "rsk_live_")):
            (tmp_path / f"{place}.py").write_text(f'KEY = "{start}{secrets.token_hex(32)}"')

        assert len(key_shaped(sorted(tmp_path.iterdir()))) == 2
