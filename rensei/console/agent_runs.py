"""The run of an agent as its page shows it: the program, its log, its sandboxes with their calls, and its files."""

import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from billing.models import CostEvent
from rensei.core.limits import MIB
from rensei.core.usage import Usage
from rensei.dispatch import agents, stored_bytes
from rensei.dispatch.models import Attempt, Run, RunChunk, Sandbox
from rensei.dispatch.pools.agent_runner import CUT
from rensei.dispatch.queries import chunks_of

# What an `AgentEnd` calls them, for people.
LEFT_OUT = {
    "TOO_MANY": f"because more than {agents.OUTPUTS_MAX:,} files match",
    "TOO_LARGE": f"because all together are larger than {agents.OUTPUTS_BYTES_MAX // MIB} MiB",
    "LINK": "because they are links",
    "NOT_A_FILE": "because they are no regular files",
    "NAME": "because their names cannot be kept",
}
# The least width of a bar, in percent, so that it can be seen.
BAR_MIN = 0.6
# How deep calls of subagents are shown.
DEEPEST = 3
# A character of UTF-8 that did not fit as a whole.
CHARACTER_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Program:
    """What an agent was given. The values of its environment are not shown: they may be credentials."""

    command: str
    repository: str
    ref: str
    files: Sequence[tuple[str, int]]
    variables: Sequence[str]
    outputs: Sequence[str]
    turns_at_most: int | None
    seconds: int

    @property
    def is_claude_code(self) -> bool:
        return self.command == agents.CLAUDE_CODE

    @property
    def files_bytes(self) -> int:
        return sum(size for _, size in self.files)


@dataclass(frozen=True, kw_only=True)
class Call:
    """
    A call of the program to the model. The bar is its part of the sandbox's time, in percent.

    `depth` is 0 for the main agent, 1 for a subagent that it has started, and so on.
    """

    attempt: Attempt
    depth: int
    models: Sequence[str]
    usage: Usage | None
    bar_from: float
    bar_width: float


@dataclass(frozen=True, kw_only=True)
class Box:
    """A sandbox, and the calls that were made from it, in their order."""

    sandbox: Sandbox
    calls: Sequence[Call] = field(default=())


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    count: int
    reason: str


def program_of(body: Mapping[str, Any]) -> Program:
    """Read what a stored input says of its agent."""
    agent = body["agent"]
    program, git = agent["program"], agent.get("git") or {"url": "", "ref": ""}
    return Program(
        command=program if isinstance(program, str) else shlex.join(program),
        repository=git["url"],
        ref=git["ref"],
        files=[(file["path"], len(agents.content_of(file))) for file in agent["files"]],
        variables=sorted(agent["env"]),
        outputs=agent["outputs"],
        # Former agents have none.
        turns_at_most=agent.get("maxTurns"),
        seconds=agent["timeoutSeconds"],
    )


def log_of(run: Run) -> str:
    """Return what the program has written to its standard error so far."""
    chunks = chunks_of(run, RunChunk.Kind.LOG).values_list("data", flat=True)
    return "".join(data.get("text", "") for data in chunks)


def log_is_cut(log: str) -> bool:
    return log.endswith(CUT)


def text_is_cut(run: Run, text: str) -> bool:
    """Whether the program has written more text than is kept of it. A text that just fits may seem cut."""
    return len(text.encode()) + CHARACTER_BYTES > stored_bytes.of_answer_at_most(run)


def left_out_of(result: Mapping[str, Any]) -> list[LeftOut]:
    """Return the files that match the patterns and are not kept, by the reason."""
    return [LeftOut(count=count, reason=LEFT_OUT[reason]) for reason, count in result["leftOut"].items()]


def timeline(
    sandboxes: Iterable[Sandbox], calls: Iterable[Attempt], charges: Iterable[CostEvent], *, now: datetime
) -> list[Box]:
    """Put the calls of a run below the sandboxes from which they were made."""
    lines: dict[str, list[CostEvent]] = defaultdict(list)
    for line in charges:
        lines[line.attempt_id].append(line)
    made: dict[int, list[Attempt]] = defaultdict(list)
    for call in calls:
        made[call.epoch].append(call)
    return [
        Box(
            sandbox=box,
            calls=[
                _call(call, lines[call.id], depth=depth, box=box, now=now) for call, depth in nested(made[box.epoch])
            ],
        )
        for box in sandboxes
    ]


def nested(calls: Sequence[Attempt]) -> list[tuple[Attempt, int]]:
    """
    Put the calls of each subagent below the call after which it was started, with their depths.

    The names are the program's, and not trusted: a subagent whose starter made no call before it stays in the order of
    the calls, at the depth of the main agent.
    """
    of_agent: dict[str, list[Attempt]] = defaultdict(list)
    for call in calls:
        of_agent[call.agent_id].append(call)
    below: dict[str, list[Attempt]] = defaultdict(list)
    flat = list(of_agent.pop("", ()))
    for agent_id, own in of_agent.items():
        first = own[0]
        parent = first.parent_agent_id if first.parent_agent_id != agent_id else ""
        starters = of_agent.get(parent, ()) if parent else [call for call in calls if not call.agent_id]
        before = [call for call in starters if call.number < first.number]
        if before:
            below[before[-1].id] += own
        else:
            flat += own
    ordered: list[tuple[Attempt, int]] = []
    waiting = [(call, 0) for call in sorted(flat, key=lambda call: -call.number)]
    while waiting:
        call, depth = waiting.pop()
        ordered.append((call, depth))
        under = sorted(below[call.id], key=lambda each: -each.number)
        waiting += [(each, min(depth + 1, DEEPEST)) for each in under]
    return ordered


def _call(call: Attempt, lines: Sequence[CostEvent], *, depth: int, box: Sandbox, now: datetime) -> Call:
    begin, whole = box.created_at, ((box.ended_at or now) - box.created_at).total_seconds() or 1.0
    start = _percent((call.started_at - begin).total_seconds() / whole, most=100 - BAR_MIN)
    end = _percent(((call.finished_at or now) - begin).total_seconds() / whole, most=100)
    return Call(
        attempt=call,
        depth=depth,
        models=list(dict.fromkeys(line.served_model_id for line in lines)),
        usage=sum((Usage.of(line) for line in lines), start=Usage()) if lines else None,
        bar_from=start,
        bar_width=max(BAR_MIN, end - start),
    )


def _percent(share: float, *, most: float) -> float:
    return round(min(max(0.0, 100 * share), most), 2)
