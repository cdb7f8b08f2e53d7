"""`python -m tests.core.json_memory READER SIZE KIND…`: what reading hostile bodies takes of the machine's memory."""

import gc
import json
import os
import re
import sys
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()

from tests.hostile_json import READERS, WORST, hostile_body  # noqa: E402


def resident(name: str) -> int:
    """Read one of the figures that Linux has of this process: `VmRSS` now, `VmHWM` at its highest."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    reader, size, *kinds = sys.argv[1:]
    gc.freeze()
    for number, kind in enumerate(kinds):
        sys.stdout.write(",["[number == 0])
        sys.stdout.flush()
        # Each in a process of its own, in which no memory is free that another one has left.
        child = os.fork()
        if child == 0:
            body = (hostile_body(int(kind)) if kind.isdecimal() else WORST[kind])(int(size))
            # The highest figure so far is forgotten.
            Path("/proc/self/clear_refs").write_text("5")
            before = resident("VmRSS")
            READERS[reader](body)
            json.dump({"kind": kind, "size": len(body), "peak": resident("VmHWM") - before}, sys.stdout)
            sys.stdout.flush()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    sys.stdout.write("]")


if __name__ == "__main__":
    main()
