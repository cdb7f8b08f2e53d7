"""The named pipe by which processes wake one another where SQLite is the database."""

import os
import select
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from rensei.core.changes import Pipe


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(connection.settings_dict, "NAME", tmp_path / "rensei.sqlite3")
    return tmp_path / "rensei.sqlite3-queued"


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe("queued")
    yield made
    made.close()


def is_woken(pipe: Pipe) -> bool:
    return bool(select.select([pipe.fileno()], [], [], 0)[0])


class TestPipe:
    def test_wakes_its_reader_once(self, pipe: Pipe, path: Path) -> None:
        pipe.forget()
        assert not is_woken(pipe)

        Pipe("queued").send()

        assert is_woken(pipe)
        pipe.forget()
        assert not is_woken(pipe)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_wakes_another_process(self, path: Path) -> None:
        os.mkfifo(path)
        reads = "import sys; sys.stdout.write(open(sys.argv[1], 'rb').read(1).decode())"
        with subprocess.Popen([sys.executable, "-c", reads, path], stdout=subprocess.PIPE) as process:
            # Opening a pipe for writing waits for its reader.
            with path.open("wb"):
                Pipe("queued").send()
            assert process.communicate(timeout=60)[0] == b"!"

    def test_lets_no_sender_wait_when_it_is_full(self, pipe: Pipe) -> None:
        pipe.forget()

        for _ in range(70_000):
            Pipe("queued").send()

        assert is_woken(pipe)

    def test_needs_no_reader(self, pipe: Pipe, path: Path) -> None:
        Pipe("queued").send()
        assert not path.exists()

        pipe.forget()
        pipe.close()
        Pipe("queued").send()

    def test_leaves_a_file_alone_that_is_no_pipe(self, pipe: Pipe, path: Path) -> None:
        path.write_text("mine")

        Pipe("queued").send()
        pipe.forget()

        assert path.read_text() == "mine"
        assert pipe.fileno() is None

    def test_is_done_without_where_it_cannot_be_made(self, pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: Any, **kwargs: Any) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "mkfifo", refuse)

        pipe.forget()

        assert pipe.fileno() is None
