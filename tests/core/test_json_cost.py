"""What a hostile body costs: time that grows no faster than the bytes, and memory within what is stated."""

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import pytest

from rensei.core.json_body import MEMORY_BYTES, MEMORY_PER_BYTE, VALUES_MAX, TooManyValues, check_values
from rensei.workflows.documents import read_document
from rensei.workflows.reading import BYTES_MAX, WorkflowInvalid
from tests.architecture.modules import ROOT
from tests.attacks import cpu_seconds, grows_linearly, peak_bytes, sized
from tests.core.json_readers import READERS
from tests.hostile_json import WORST, hostile_body

pytestmark = pytest.mark.attack
MEGABYTE = 1024 * 1024


def is_linear(read, make):
    """Compare 4 kB with 64 kB. A quadratic cost is 256 times as high then, and a linear one 16 times."""

    def cost(size):
        body = make(size)
        return cpu_seconds(lambda: read(body))

    return grows_linearly(cost, size=4096, factor=16, ignored=0.005)


def resident_peaks(reader, size, *kinds):
    """Measure in a process of its own what reading a body of each kind takes, in bytes, beside the body's size."""
    command = [sys.executable, "-m", "tests.core.json_memory", reader, str(size), *map(str, kinds)]
    done = subprocess.run(command, capture_output=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)


@pytest.mark.parametrize("reader", READERS)
class TestAGeneratedBody:
    """1,000 kinds of body with `make attack`, and the first of them in the suite."""

    def test_takes_time_that_grows_with_its_bytes(self, reader):
        # A machine that is busy for a moment is asked again.
        grown = [
            (seed, hostile_body(seed)(60))
            for seed in range(sized(100, 1000))
            if not any(is_linear(READERS[reader], hostile_body(seed)) for _ in range(3))
        ]

        assert grown == []

    def test_takes_memory_within_what_is_stated(self, reader):
        size = BYTES_MAX - 1000 if reader == "workflow" else MEGABYTE
        peaks = resident_peaks(reader, size, *range(sized(20, 1000)))

        assert len(peaks) == sized(20, 1000)
        assert [row for row in peaks if row["peak"] > MEMORY_PER_BYTE * row["size"] + MEMORY_BYTES] == []


@pytest.mark.parametrize("reader", ["gateway", "REST", "provider"])
# What is just small enough to be read whatever it holds, and as much as an address takes.
@pytest.mark.parametrize("size", [2 * VALUES_MAX - 1000, sized(2 * MEGABYTE, 32 * MEGABYTE)])
class TestTheWorstBody:
    def test_takes_memory_within_what_is_stated(self, reader, size):
        peaks = resident_peaks(reader, size, *WORST)

        assert {row["kind"] for row in peaks} == set(WORST)
        assert [row for row in peaks if row["peak"] > MEMORY_PER_BYTE * row["size"] + MEMORY_BYTES] == []


@contextmanager
def collections() -> Iterator[list[int]]:
    """Note the generation of each run of the garbage collector, which stops every thread."""
    found: list[int] = []

    def note(phase: str, information: dict[str, int]) -> None:
        if phase == "start":
            found.append(information["generation"])

    gc.callbacks.append(note)
    try:
        yield found
    finally:
        gc.callbacks.remove(note)


@pytest.mark.parametrize("reader", ["gateway", "REST", "provider"])
@pytest.mark.parametrize("kind", WORST)
class TestTheCollector:
    def test_does_not_look_through_a_body_while_it_is_built(self, reader, kind):
        body = WORST[kind](284_000)

        with collections() as found:
            READERS[reader](body)

        # What comes of the document afterwards may be looked through: a few times, however large it is.
        assert len(found) <= 70
        assert gc.isenabled()


@pytest.mark.parametrize("kind", WORST)
class TestCheckValues:
    def test_builds_no_value(self, kind):
        body = WORST[kind](sized(2, 32) * MEGABYTE)

        def counted():
            with suppress(TooManyValues):
                check_values(body)

        # It looks at the marks of the body, which are no more than its bytes.
        assert peak_bytes(counted) <= len(body) + MEGABYTE


class TestTheCountOfValues:
    def test_looks_at_each_byte_once(self):
        """Of a body that is large enough to be counted, whatever is in it."""

        def count(body):
            with suppress(TooManyValues):
                check_values(body)

        def cost(make, size):
            body = make(size)
            return cpu_seconds(lambda: count(body))

        kinds = [*WORST.values(), *map(hostile_body, range(sized(10, 1000)))]
        # The exact count begins only where the quick one finds too many, and takes 0.06 s. Another look at what follows
        # each byte would take minutes.
        grown = [
            make(60)
            for make in kinds
            if not any(grows_linearly(partial(cost, make), size=600_000, factor=8, ignored=0.5) for _ in range(3))
        ]

        assert grown == []


class TestAWorkflowDocument:
    def test_with_one_long_name_is_refused_before_each_value_has_it(self):
        values = ",".join(["1"] * 5_000)

        for document in (f'{{"{"x" * 100_000}": [{values}]}}', f"{'x' * 1_000}: [{values}]"):
            with pytest.raises(WorkflowInvalid, match="at most 100 characters"):
                read_document(document)

    def test_that_refers_to_many_nodes_that_are_not_there_costs_its_bytes(self):
        def document(size):
            prompt = "".join(f"{{{{nodes.n{place}.output}}}}" for place in range(size // 24))
            return f"nodeId: a\nnodeType: action/llm.inference\nconfig:\n  prompt: '{prompt}'\n".encode()

        assert is_linear(READERS["workflow"], document)

    def test_tells_no_more_faults_than_a_person_reads(self):
        document = "nodeId: a\n" + "".join(f"x{place}: 1\n" for place in range(5_000))

        with pytest.raises(WorkflowInvalid) as refused:
            read_document(document)

        assert len(refused.value.errors) == 100
