"""Which program touched which file: strace writes it down, and this reads it."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_EXECVE = re.compile(r'execve\("[^"]*", \[(?P<words>.*?)\](?:, |\.\.\.)')
_BORN = re.compile(r"(?:clone3?|v?fork)\b.* = (?P<child>\d+)$")
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"')
_QUIET_SECONDS = 0.5
_PATIENCE_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Touch:
    """A call of the system that names a file, and the words that the program was started with."""

    program: tuple[str, ...]
    call: str


def command(trace: Path) -> list[str]:
    """What to put before a command. The program stays the child of whoever started it (-D), and gets their signals."""
    filters = ["-e", "trace=%file,%process", "--seccomp-bpf", "-s", "1000"]
    return ["strace", "-D", "-f", "-qq", *filters, "-o", str(trace)]


def touches(trace: Path, place: str) -> list[Touch]:
    """Find the calls that name a file with these words in its path, whether the file was there or not."""
    lines = _read(trace)
    parents = {found["child"]: pid for pid, call in lines if (found := _BORN.search(call))}
    programs: dict[str, tuple[str, ...]] = {}
    begun: dict[str, tuple[str, ...]] = {}
    found = []
    for pid, call in lines:
        if pid not in programs:
            programs[pid] = programs.get(parents.get(pid, ""), ())
        if execve := _EXECVE.match(call):
            begun[pid] = tuple(_WORD.findall(execve["words"]))
        if pid in begun and "execve" in call and call.endswith(" = 0"):
            programs[pid] = begun.pop(pid)
        elif place in call and not execve:
            found.append(Touch(program=programs[pid], call=call))
    return found


def _read(trace: Path) -> list[tuple[str, str]]:
    """Read the lines as process and call. strace ends a moment after the program that it watched."""
    deadline, size = time.monotonic() + _PATIENCE_SECONDS, -1
    while trace.stat().st_size != size:
        assert time.monotonic() < deadline, "the trace does not end"
        size = trace.stat().st_size
        time.sleep(_QUIET_SECONDS)
    return list(_split(trace.read_text(errors="replace")))


def _split(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        pid, _, call = line.partition(" ")
        yield pid, call.strip()
