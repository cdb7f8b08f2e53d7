"""JSON of many values is checked by a process of low priority before this one reads it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from rensei.core import json_body, json_check
from rensei.core.errors import FieldError
from rensei.core.json_body import parse_object, read_object
from rensei.core.json_check import MARKS, check_apart
from tests.hostile_json import WORST, hostile_body
from tests.waiting import wait_until

GOOD = b'{"a":[' + b"1," * MARKS + b"1]}"
BAD = GOOD.replace(b'{"a"', b'{"a":1,"a"')
LONG = 100_000


@pytest.fixture
def checker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    checker = json_check._Checker()
    monkeypatch.setattr(json_check, "_checker", checker)
    # However busy the machine is.
    monkeypatch.setattr(json_check, "SECONDS_MAX", 60)
    yield checker
    checker.end()


def refusal_of(check: Any, body: bytes) -> Any:
    try:
        check(body)
    except FieldError as refusal:
        return refusal.detail, refusal.errors
    return None


def _out_of_memory(*args: object, **more: object) -> bytes:
    raise MemoryError


class TestABodyOfManyValues:
    def test_is_refused_in_the_same_words_as_where_it_is_read(self, checker: Any) -> None:
        bodies = (
            [make(LONG) for make in WORST.values()] + [hostile_body(seed)(LONG) for seed in range(40)] + [GOOD, BAD]
        )

        for body in bodies:
            found = refusal_of(lambda body: checker.check(body, is_stored=True), body)
            assert found == refusal_of(read_object, body)
            found = refusal_of(lambda body: checker.check(body, is_stored=False), body)
            assert found == refusal_of(parse_object, body)

    def test_is_not_built_in_this_process_when_it_is_refused(
        self, checker: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        built: list[Any] = []
        monkeypatch.setattr(json_body, "_build", built.append)
        monkeypatch.setattr(orjson, "loads", built.append)

        with pytest.raises(FieldError, match="The name 'a' is given twice"):
            check_apart(BAD, is_stored=True)

        assert built == []

    def test_is_checked_by_a_process_of_low_priority_without_our_environment(self, checker: Any) -> None:
        check_apart(GOOD, is_stored=True)

        pid = checker._process.pid
        assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)
        assert b"PATH=" not in Path(f"/proc/{pid}/environ").read_bytes()


class TestTheProcess:
    def test_is_not_started_for_few_values(self, checker: Any) -> None:
        check_apart(b'{"a":1,"a":' + b" " * LONG + b"1}", is_stored=True)

        assert checker._process is None

    def test_that_ends_or_takes_too_long_refuses_nothing_and_is_started_again(
        self, checker: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        check_apart(GOOD, is_stored=True)
        killed = checker._process
        killed.kill()
        check_apart(BAD, is_stored=True)
        with pytest.raises(FieldError):
            check_apart(BAD, is_stored=True)
        stopped = checker._process
        os.kill(stopped.pid, signal.SIGSTOP)
        with monkeypatch.context() as patched:
            patched.setattr(json_check, "SECONDS_MAX", 0.1)
            check_apart(BAD, is_stored=True)
            check_apart(BAD, is_stored=True)
        # Bodies that follow do not wait for it either.
        assert checker._process is None
        checker._paused_until = 0.0
        with pytest.raises(FieldError):
            check_apart(BAD, is_stored=True)

        assert killed is not stopped
        assert killed.returncode == stopped.returncode == -signal.SIGKILL

    def test_tells_no_body_what_another_was_refused_for(self, checker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(json_check, "_received", _out_of_memory)
            with pytest.raises(MemoryError):
                check_apart(BAD, is_stored=True)

        check_apart(GOOD, is_stored=True)

    def test_ends_with_its_server(self, checker: Any) -> None:
        check_apart(GOOD, is_stored=True)

        checker._line.close()

        wait_until(lambda: checker._process.poll() is not None, what="the end of the process")
