"""The measurements of the doors: each puts the same load on each contender, and audits what Rensei wrote of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tests.benchmarks import loads, processes
from tests.benchmarks.answers import make_request
from tests.benchmarks.contenders import Contender
from tests.benchmarks.loads import Load, OpenStreams
from tests.benchmarks.verdict import Auditor, Void

RENSEI = "rensei"
CONNECTIONS_FOR_LATENCY = (1, 16, 64)
# Node compiles what is hot, and Python imports what is used, only under load.
WARM_UP_SECONDS = 2.0
PAUSE_SECONDS = 0.3


@dataclass(kw_only=True)
class Bench:
    """The running contenders, with `direct` for the stand-in itself, and how long and how hard to load them."""

    contenders: dict[str, Contender]
    database_pid: int
    auditor: Auditor
    seed: int
    seconds: float
    rounds: int
    connections: int
    say: Callable[[str], None] = print
    bodies: dict[str, bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.bodies = {
            "plain": make_request(self.seed),
            "stream": make_request(self.seed, stream=True),
            "slow": make_request(self.seed, stream=True, slow=True),
        }

    def warm_up(self) -> None:
        """Let every server load what its first calls load."""
        for contender in self.contenders.values():
            for kind, send in (("plain", loads.plain), ("stream", loads.streams)):
                seconds = min(WARM_UP_SECONDS, self.seconds)
                load = send(contender, body=self.bodies[kind], connections=8, seconds=seconds)
                self._audit(contender, load.failed)

    def throughput(self, kind: str) -> dict[str, list[Load]]:
        """Load each in turn, several times over, so that a slow moment of the machine does not hit one alone."""
        send = loads.plain if kind == "plain" else loads.streams
        found: dict[str, list[Load]] = {name: [] for name in self.contenders}
        for _ in range(self.rounds):
            for name, contender in self.contenders.items():
                load = self._load(contender, send, kind=kind, connections=self.connections)
                found[name].append(load)
                self.say(f"  {kind:6} {name:8} {load.rate:8.0f}/s  p50 {load.p50_ms} ms  {load.failed or ''}")
        return found

    def latency(self) -> dict[int, dict[str, Load]]:
        """Time plain requests at a few numbers of connections."""
        found: dict[int, dict[str, Load]] = {}
        for connections in CONNECTIONS_FOR_LATENCY:
            found[connections] = {}
            for name, contender in self.contenders.items():
                load = self._load(contender, loads.plain, kind="plain", connections=connections)
                found[connections][name] = load
                self.say(f"  {connections:2} connections  {name:8} p50 {load.p50_ms} ms  p99 {load.p99_ms} ms")
        return found

    def first_events(self) -> dict[str, Load]:
        """Time the first event of one stream after the other."""
        found = {}
        for name, contender in self.contenders.items():
            found[name] = self._load(contender, loads.streams, kind="stream", connections=1)
            self.say(f"  first event  {name:8} p50 {found[name].first_p50_ms} ms  p99 {found[name].first_p99_ms} ms")
        return found

    def memory(self, *, count: int) -> dict[str, OpenStreams]:
        """Hold many slow streams open at each."""
        found = {}
        for name, contender in self.contenders.items():
            if name == "direct":
                continue
            opened = loads.open_streams(contender, body=self.bodies["slow"], count=count)
            self._audit(contender, opened.failed)
            found[name] = opened
            mib = opened.memory_bytes_max / 2**20
            self.say(f"  {opened.opened} open streams  {name:8} {mib:.0f} MiB  {opened.failed or ''}")
        return found

    def modes(self, profiles: dict[str, str]) -> dict[str, Load]:
        """Load Rensei in each auth mode, by naming a profile."""
        found = {}
        for mode, profile in profiles.items():
            body = make_request(self.seed, model=profile)
            found[mode] = self._load(
                self.contenders[RENSEI], loads.plain, kind="plain", connections=self.connections, body=body
            )
            self.say(f"  {mode:8} {found[mode].rate:8.0f}/s  p50 {found[mode].p50_ms} ms")
        return found

    def _load(
        self, contender: Contender, send: Callable[..., Load], *, kind: str, connections: int, body: bytes | None = None
    ) -> Load:
        """
        Put one load on one contender, with what it cost.

        :raises Void: if Rensei failed an answer, or its ledger does not agree with the upstream's log
        """
        before = self._costs(contender)
        load = send(contender, body=body or self.bodies[kind], connections=connections, seconds=self.seconds)
        if contender.name == RENSEI:
            # What is written after the answer is a part of the cost.
            self.auditor.settle()
        after = self._costs(contender)
        self._audit(contender, load.failed)
        server, database = (late - early for late, early in zip(after, before, strict=True))
        return replace(load, server_cpu_seconds=server, database_cpu_seconds=database)

    def _audit(self, contender: Contender, failed: dict[str, int]) -> None:
        """Compare Rensei's ledger with what the upstream served. The others have none, and may fail."""
        if contender.name == RENSEI:
            self.auditor.check()
            if failed:
                raise Void(f"Rensei failed to answer: {failed}")
        else:
            # What it has not finished must not be in the way of the next.
            time.sleep(PAUSE_SECONDS)

    def _costs(self, contender: Contender) -> tuple[float, float]:
        return processes.cost_of(contender.pid).cpu_seconds, processes.cost_of(self.database_pid).cpu_seconds


def middle(found: Sequence[Load]) -> Load:
    """Take the load with the median rate."""
    return sorted(found, key=lambda load: load.rate)[len(found) // 2]


def cpu_ms_per_answer(found: Sequence[Load], *, of: str = "server") -> float | None:
    answered = sum(load.answered for load in found)
    seconds: float = sum(getattr(load, f"{of}_cpu_seconds") for load in found)
    return seconds * 1000 / answered if answered else None
