"""`python -m tests.run`: the whole suite on every database that this machine has, and what was left out."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import machine, servers

# Tests wait for processes more than they compute. In their order they share a server or a browser, which takes seconds
# to start; `pytest` alone shuffles them.
SIDE_BY_SIDE = ["-n", str(min(8, 2 * (os.cpu_count() or 1))), "--dist=worksteal", "--randomly-dont-reorganize"]


def main() -> int:
    arguments = sys.argv[1:]
    missing = machine.missing_packages()
    strict = os.environ.get("RENSEI_REQUIRE_ALL") == "1"
    if strict and missing:
        print(f"Every test has to run here, and this machine lacks {', '.join(missing.values())}.")
        return 1

    with tempfile.TemporaryDirectory(prefix="rensei-sqlite-") as folder:
        failed = _run_suite("SQLite", f"sqlite:///{folder}/rensei.sqlite3", arguments)
    if "postgres" not in missing:
        with servers.start_postgres() as url:
            # How a page looks, what a browser does and what the command prints is the same on both, and takes its time.
            failed += _run_suite("PostgreSQL", url, [*arguments, "-m", "not outside"])

    if missing:
        print(f"\nLeft out, because this machine lacks it: {', '.join(missing)}.")
        print(f"To add it: apt-get install {' '.join(missing.values())}")
    return 1 if failed else 0


def _run_suite(database: str, url: str, arguments: list[str]) -> int:
    print(f"\nThe tests on {database}", flush=True)
    began, computed_before = time.monotonic(), _computed_seconds()
    command = [sys.executable, "-m", "pytest", "-rs", "--durations=20", *SIDE_BY_SIDE, *arguments]
    # RENSEI_DATA_DIR belongs to an installation, and the tests must never touch one.
    # Hundreds of processes are started, so what Python compiles is kept.
    left_out = {"RENSEI_DATA_DIR", "PYTHONDONTWRITEBYTECODE"}
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    code = subprocess.run(command, env={**environment, "DATABASE_URL": url}, check=False).returncode
    seconds, computed = time.monotonic() - began, _computed_seconds() - computed_before
    result = "passed" if code == 0 else "FAILED"
    told = f", in which the cores computed for {computed:.0f} s" if computed else ""
    print(f"{database}: {result} in {seconds:.0f} s{told}", flush=True)
    return code


def _computed_seconds() -> float:
    """Read how long the cores have been busy with all processes: a test's servers are not all children of this one."""
    try:
        user, nice, system, _idle, _waiting, *interrupts = Path("/proc/stat").read_text().splitlines()[0].split()[1:8]
    except FileNotFoundError:
        return 0.0
    return sum(map(int, (user, nice, system, *interrupts))) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
