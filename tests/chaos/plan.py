"""
What happens in a chaos run, drawn from a seed before anything happens: the same seed gives the same plan.

The plan says what is done after how many dispatches. How far each process has come by then is the machine's affair.
"""

import hashlib
import random
from dataclasses import dataclass, field
from enum import StrEnum

ORGS = ("acme", "globex", "initech")
MODES = ("byok", "metered", "shared")
WORKERS = 4
# The clock of the worker in this place is wrong, by as many hours in one direction or the other.
SKEWED = 0
SKEW_HOURS = 26
# One run in so many is cancelled, dispatched a second time under its Idempotency-Key, or rung for again.
CANCEL_ONE_IN = 20
DOUBLE_ONE_IN = 10
RING_ONE_IN = 5
KILLS_FOR_A_RESTART = 100
KILLS_FOR_A_FREEZE = 10
KILLS_FOR_A_TERM = 25
PAUSE_SECONDS_MAX = 0.3

# How often a prompt asks the provider for what. Those with `times` succeed at a later attempt.
PROMPTS = {
    "": 60,
    "[[fault:500 times=1]]": 4,
    "[[fault:529 times=2]]": 4,
    "[[fault:429 retry-after=0 times=1]]": 4,
    "[[fault:overloaded]]": 3,
    "[[fault:400]]": 2,
    "[[fault:truncate after={after}]]": 4,
    "[[fault:stream-error after={after}]]": 4,
    "[[fault:cut after={after}]]": 4,
    "[[fault:reset]]": 3,
    "[[fault:html]]": 2,
    "[[fault:no-usage]]": 2,
    "[[fault:negative-usage]]": 2,
    "[[fault:huge-usage]]": 2,
}


class Kind(StrEnum):
    """What is done to a process."""

    KILL = "kill"
    FREEZE = "freeze"
    TERMINATE = "terminate"
    RESTART_DATABASE = "restart-database"
    RESTART_BROKER = "restart-broker"


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One dispatch. `cancels` and `rings_for` are the numbers of earlier runs."""

    number: int
    org: str
    mode: str
    prompt: str
    doubled: bool
    cancels: int | None
    rings_for: int | None


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something done after so many dispatches, and after a pause. `place` is a worker's place among the workers."""

    after: int
    pause_seconds: float
    kind: Kind
    place: int = 0
    skew_hours: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    runs: list[PlannedRun]
    events: list[Event] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Name the plan, so that two of them can be compared at a glance."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]


def draw(*, seed: int, runs: int, kills: int, restarts_database: bool, restarts_broker: bool) -> Plan:
    """Draw a plan. It depends on these values and on nothing else."""
    chance = random.Random(seed)
    planned = [_draw_run(chance, number) for number in range(runs)]
    wanted = {
        Kind.KILL: kills,
        Kind.FREEZE: _share(kills, KILLS_FOR_A_FREEZE),
        Kind.TERMINATE: _share(kills, KILLS_FOR_A_TERM),
        Kind.RESTART_DATABASE: _share(kills, KILLS_FOR_A_RESTART) if restarts_database else 0,
        Kind.RESTART_BROKER: _share(kills, KILLS_FOR_A_RESTART) if restarts_broker else 0,
    }
    events = [_draw_event(chance, kind, runs) for kind, count in wanted.items() for _ in range(count)]
    return Plan(runs=planned, events=sorted(events, key=lambda event: event.after))


def _draw_run(chance: random.Random, number: int) -> PlannedRun:
    (fault,) = chance.choices(list(PROMPTS), list(PROMPTS.values()))
    words, seconds = chance.randint(10, 60), round(chance.uniform(0.002, 0.02), 3)
    fault = fault.format(after=chance.randint(0, 8))
    return PlannedRun(
        number=number,
        org=chance.choice(ORGS),
        mode=chance.choice(MODES),
        prompt=f"[[reply {words} words]] Run {number}. [[slow {seconds}]] {fault}".strip(),
        doubled=chance.randrange(DOUBLE_ONE_IN) == 0,
        cancels=_draw_earlier(chance, number, one_in=CANCEL_ONE_IN),
        rings_for=_draw_earlier(chance, number, one_in=RING_ONE_IN),
    )


def _draw_earlier(chance: random.Random, number: int, *, one_in: int) -> int | None:
    """Draw this run or one of the last thirty: some of them are waiting, some under way, some over."""
    earlier = max(0, number - chance.randint(0, 30))
    return earlier if chance.randrange(one_in) == 0 else None


def _draw_event(chance: random.Random, kind: Kind, runs: int) -> Event:
    place = chance.randrange(WORKERS)
    skew = chance.choice((-SKEW_HOURS, SKEW_HOURS)) if place == SKEWED else 0
    return Event(
        after=chance.randrange(runs),
        pause_seconds=round(chance.uniform(0, PAUSE_SECONDS_MAX), 3),
        kind=kind,
        place=place,
        skew_hours=skew,
    )


def _share(kills: int, kills_for_one: int) -> int:
    return max(1, kills // kills_for_one) if kills else 0
