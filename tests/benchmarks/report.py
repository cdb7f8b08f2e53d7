"""The report of a benchmark, as a document."""

import os
import platform
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.contenders import LITELLM, PORTKEY
from tests.benchmarks.loads import Load
from tests.benchmarks.measures import cpu_ms_per_answer, middle

NAMES = {
    "direct": "the stand-in itself",
    "rensei": "**Rensei**",
    "bare": "bare pass-through",
    "portkey": "Portkey's gateway",
    "litellm": "LiteLLM's proxy",
}
MIB = 2**20
NOTHING = "—"

Rows = Iterable[list[str]]


def render(results: dict[str, Any]) -> str:
    """Write everything that was measured. What was left out is left out."""
    sections: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("plain", _throughput),
        ("latency", _latency),
        ("memory", _memory),
        ("modes", _modes),
        ("rooms", _rooms),
    ]
    parts = [_introduction(results), _aims(results)]
    parts += [write(results) for name, write in sections if name in results]
    return "\n\n".join(filter(None, parts)) + "\n"


def _introduction(results: dict[str, Any]) -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    worker = "A `manage.py worker` ran beside it, sealing the ledger." if results["worker"] else "No worker ran."
    missing = "".join(f"\n- Not measured: {NAMES[name]}. {why}" for name, why in results["missing"].items())
    return f"""# Benchmarks

Written by `make bench`, which measures Rensei beside others on one machine, in one run, against the same stand-in for
the provider. Only the ratios carry over to another machine. `make bench QUICK=1` has a short look and writes nothing.

- {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit `{results["commit"]}`, seed {results["seed"]}, \
{results["took_seconds"]:.0f} s in all.
- {_processor()}, {os.cpu_count()} cores for everything: load generator, stand-in, servers and database. \
{memory:.0f} GiB, {platform.system()} {platform.release().split("-")[0]}, Python {platform.python_version()}, \
PostgreSQL {results["database_version"]}. Load average before: {results["load_average"]:.1f}.{_busy(results)}
- Rensei: granian with one worker process, asking for a token, three access policies, the shared quota, and durable \
rows of run, attempt, charge and sums. {worker}
- Durable: a commit is answered when it survives the death of every process. Nothing is forced to the disk \
(`fsync=off`), so a power cut is not covered. One row committed alone took \
{_ms(results["commits"].p50_ms)} (p50), {_ms(results["commits"].p99_ms)} (p99).
- The others: a bare pass-through on granian with aiohttp, which knows no caller and no ledger; `{LITELLM}` with one \
worker, a master key and no database; `{PORTKEY}` without any key of its own.
- Plain load by {"wrk" if results["wrk"] else "the client of the benchmark"}, streams by the client of the benchmark, \
which counts the events of each. {results["seconds"]:.0f} s a load, {results["rounds"]} rounds in turn where rates are \
compared, of which the median counts.
- After each load, the stand-in's own log was compared with the ledger: every call exactly one attempt and one charge, \
and the same tokens. All {results["agreement"].calls:,} calls and {results["agreement"].charges:,} charges agree; a \
difference would have ended the run without a report.{missing}"""


def _aims(results: dict[str, Any]) -> str:
    rows = []
    if "plain" in results:
        rates = {name: middle(found).rate for name, found in results["plain"].items()}
        rows += [_at_least("requests/s", rates["rensei"], 2000)]
        for name, factor in (("litellm", 15.0), ("portkey", 1.2), ("bare", 0.2)):
            if rates.get(name):
                rows.append(_at_least(f"requests/s, times {NAMES[name]}", rates["rensei"] / rates[name], factor))
    if "streams" in results:
        rows.append(_at_least("streams/s of 60 events", middle(results["streams"]["rensei"]).rate, 300))
    if "latency" in results:
        alone, commit = results["latency"][1], results["commits"].p50_ms
        for percent, most in ((50, 2.0), (99, 6.0)):
            added = getattr(alone["rensei"], f"p{percent}_ms") - getattr(alone["direct"], f"p{percent}_ms") - commit
            rows.append(_at_most(f"added p{percent} at one connection, less one commit", added, most, " ms"))
    if "memory" in results:
        opened = results["memory"]["rensei"]
        rows.append(_at_most(f"memory with {opened.opened} open streams", opened.memory_bytes_max / MIB, 300, " MiB"))
    return "## Aims\n\n" + _table(["measure", "aim", "measured", "met"], rows) if rows else ""


def _throughput(results: dict[str, Any]) -> str:
    plain, streams = results["plain"], results.get("streams", {})
    rensei, rensei_streams = middle(plain["rensei"]).rate, middle(streams["rensei"]).rate if streams else 0.0
    rows = []
    for name, found in plain.items():
        streamed = streams.get(name, [])
        rate = middle(found).rate
        stream_rate = middle(streamed).rate if streamed else 0.0
        rows.append(
            [
                NAMES[name],
                _count(rate),
                _ratio(rensei, rate),
                _ms(cpu_ms_per_answer(found)),
                _count(stream_rate) if stream_rate else _failure(streamed),
                _ratio(rensei_streams, stream_rate),
                _ms(cpu_ms_per_answer(streamed)),
            ]
        )
    database = cpu_ms_per_answer(plain["rensei"], of="database")
    head = ["", "requests/s", "Rensei's", "CPU each", "streams/s", "Rensei's", "CPU each"]
    return f"""## Throughput at {results["connections"]} connections

{_table(head, rows)}

The CPU time is that of the server's processes. Rensei's database used {_ms(database)} more for each plain request."""


def _latency(results: dict[str, Any]) -> str:
    rows = []
    for connections, found in results["latency"].items():
        direct = found["direct"]
        for name, load in found.items():
            rows.append(
                [
                    str(connections),
                    NAMES[name],
                    _ms(load.p50_ms),
                    _ms(load.p99_ms),
                    *(
                        ["", ""]
                        if name == "direct"
                        else [_added(load, direct, "p50_ms"), _added(load, direct, "p99_ms")]
                    ),
                ]
            )
    direct = results["first_events"]["direct"]
    first = [
        [
            NAMES[name],
            _ms(load.first_p50_ms),
            _ms(load.first_p99_ms),
            *(
                ["", ""]
                if name == "direct"
                else [_added(load, direct, "first_p50_ms"), _added(load, direct, "first_p99_ms")]
            ),
        ]
        for name, load in results["first_events"].items()
    ]
    return f"""## Time of a plain request

{_table(["connections", "", "p50", "p99", "added p50", "added p99"], rows)}

## Time to the first event of a stream, at one connection

{_table(["", "p50", "p99", "added p50", "added p99"], first)}"""


def _memory(results: dict[str, Any]) -> str:
    rows = [
        [
            NAMES[name],
            f"{results['idle_memory_bytes'][name] / MIB:.0f} MiB",
            f"{opened.memory_bytes_before / MIB:.0f} MiB",
            f"{opened.memory_bytes_max / MIB:.0f} MiB",
            str(opened.ended_well),
        ]
        for name, opened in results["memory"].items()
    ]
    return f"""## Memory

Resident memory of all processes of the server, shared pages once: just started, after the loads above, and the most \
while {results["open_streams"]} streams were open, each of which took 15 s.

{_table(["", "started", "after load", "with open streams", "ended well"], rows)}"""


def _modes(results: dict[str, Any]) -> str:
    rows = [
        [f"`{mode}`", _count(load.rate), _ms(load.p50_ms), _ms(load.p99_ms), _ms(cpu_ms_per_answer([load]))]
        for mode, load in results["modes"].items()
    ]
    return f"""## Auth modes

Plain requests at {results["connections"]} connections, each naming a profile of one mode: the shared quota, a metered \
budget, and the organization's own key.

{_table(["mode", "requests/s", "p50", "p99", "CPU each"], rows)}"""


def _rooms(results: dict[str, Any]) -> str:
    rooms = results["rooms"]
    names = {
        "resolve": "resolve, from loaded values",
        "seal": "seal a key",
        "open": "open a sealed key",
        "admit": "admit a run, by one caller",
        "execute": "a whole run by a worker with 8 threads, from its claim",
        "alone": "a whole run alone, from its dispatch",
    }
    rows = [
        [what, _count(rooms[name].rate), _ms(rooms[name].p50_ms), _ms(rooms[name].p99_ms)]
        for name, what in names.items()
    ]
    pages = [[f"`{path}`", _ms(times.p50_ms), _ms(times.p99_ms)] for path, times in rooms["pages"].items()]
    return f"""## Single steps

{_table(["", "per second", "p50", "p99"], rows)}

The audit of all {rooms["audited_runs"]} runs found no difference, in {rooms["audit_seconds"]:.1f} s.

## Pages over a ledger of {results["ledger_lines"]:,} lines

{_table(["", "p50", "p99"], pages)}"""


def _busy(results: dict[str, Any]) -> str:
    """Say so if the machine had other work, because then only ratios mean anything."""
    if results["load_average"] <= (os.cpu_count() or 1) / 2:
        return ""
    return " **The machine had other work meanwhile**, so all rates are too low and all times too high."


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _table(head: list[str], rows: Rows) -> str:
    lines = [head, ["---" if number == 0 else "---:" for number in range(len(head))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _at_least(what: str, value: float, aim: float) -> list[str]:
    return [what, f"≥ {aim:,g}", _count(value), "yes" if value >= aim else "**no**"]


def _at_most(what: str, value: float, aim: float, unit: str) -> list[str]:
    return [what, f"≤ {aim:,g}{unit}", f"{value:,.1f}{unit}", "yes" if value <= aim else "**no**"]


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}".rstrip("0").rstrip(".")


def _ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f} ×" if theirs else NOTHING


def _ms(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.3f} ms" if value < 1 else f"{value:,.1f} ms"


def _added(load: Load, direct: Load, name: str) -> str:
    late, early = getattr(load, name), getattr(direct, name)
    return NOTHING if late is None or early is None else _ms(late - early)


def _failure(found: list[Load]) -> str:
    reasons = {reason for load in found for reason in load.failed}
    return f"none: {', '.join(sorted(reasons))}" if reasons else NOTHING
