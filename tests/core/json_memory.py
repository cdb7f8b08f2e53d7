"""`python -m tests.core.json_memory READER SIZE KIND…`: what reading hostile bodies takes of the machine's memory."""

import gc
import json
import os
import sys
from functools import partial

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()

from tests.attacks import resident_peak  # noqa: E402
from tests.core.json_readers import READERS  # noqa: E402
from tests.hostile_json import WORST, hostile_body  # noqa: E402


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
            peak = resident_peak(partial(READERS[reader], body))
            json.dump({"kind": kind, "size": len(body), "peak": peak}, sys.stdout)
            sys.stdout.flush()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    sys.stdout.write("]")


if __name__ == "__main__":
    main()
