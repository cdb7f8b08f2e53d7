"""Nothing that would be refused again is tried again by any client, and a run that was cancelled is run once."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from billing.models import Entitlement
from rensei.dispatch.models import Run
from rensei.orgs.models import Org, User
from tests.dispatch.reconcile import assert_explained
from tests.gateway.line import MODEL, settled
from tests.gateway.programs import LineProgram, claude_code, run_program
from tests.gateway.server import Server
from tests.gateway.wire import Wire, stretch
from tests.waiting import wait_until

pytestmark = [pytest.mark.outside, pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]

QUESTION = "What is a vault?"
SLOW_STREAM, SLOW_WHOLE = "[[reply 300 words]] [[slow 0.2]]", "[[slow 30]]"
CLIENTS = [
    ("once.mjs", "sdk-whole"),
    ("once.mjs", "sdk-stream"),
    ("once.mjs", "vercel-whole"),
    ("once.mjs", "vercel-stream"),
    ("once.py", "sdk-whole"),
    ("once.py", "sdk-stream"),
    ("once.py", "litellm-whole"),
    ("once.py", "litellm-stream"),
    ("claude", ""),
]
Call = Callable[[str], str]


@pytest.fixture
def front(server: Server) -> Iterator[Wire]:
    """What comes to the gateway from its caller."""
    with stretch(server.url) as wire:
        yield wire


@pytest.fixture(params=CLIENTS, ids=lambda client: "-".join(client).rstrip("-"))
def client(request: Any) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


@pytest.fixture(scope="module")
def in_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LineProgram]:
    program = LineProgram("once.py", home=tmp_path_factory.mktemp("home"))
    yield program
    program.stop()


@pytest.fixture
def call(client: tuple[str, str], front: Wire, token: str, tmp_path: Path, in_python: LineProgram) -> Call:
    """Send a prompt by one of the clients, as often as it likes, and give what it says came of it."""
    program, kind = client

    def send(prompt: str, model: str = MODEL) -> str:
        home = tmp_path / "home"
        if program == "claude":
            return claude_code(prompt, home=home, url=front.url, token=token, model=model, check=False)
        given = {"GATEWAY": front.url, "TOKEN": token, "MODEL": model, "PROMPT": prompt, "CALL": kind}
        said = in_python.ask(**given) if program == "once.py" else run_program(program, home=home, **given)
        return str(said["error"])

    return send


def asked(front: Wire, marker: str) -> int:
    """Count the requests of a prompt: some clients make calls of their own beside it."""
    return len([passed for passed in front.messages() if marker.encode() in passed.body])


def begun(front: Wire, marker: str) -> bool:
    """Tell whether words of the answer to a prompt have come."""
    return any(b"text_delta" in passed.answer for passed in front.messages() if marker.encode() in passed.body)


class TestACancelledCall:
    def test_is_run_exactly_once(
        self, call: Call, client: tuple[str, str], front: Wire, byok: Any, ada: User, api_as: Any, simulator: Any
    ) -> None:
        api = api_as(ada)
        slow = SLOW_WHOLE if client[1].endswith("whole") else SLOW_STREAM
        with ThreadPoolExecutor(1) as pool:
            calling = pool.submit(call, slow)
            # Some clients take their time to start on a busy machine.
            wait_until(lambda: asked(front, slow), seconds=120, what="the call")
            live = Run.objects.exclude(state__in=Run.ENDED)
            wait_until(lambda: live.exists(), seconds=60, what="the run")
            if slow == SLOW_STREAM:
                # A stream that ends before its first words is begun anew by some clients, whatever its error says.
                wait_until(lambda: begun(front, slow), seconds=60, what="the first words")
            for run in live:
                assert api.post(f"/api/v1/runs/{run.id}/cancel", {}).status_code in {200, 202}
            said = calling.result()

        settled()
        answers = [(passed.status, bytes(passed.answer[-300:])) for passed in front.messages()]
        assert asked(front, slow) == 1, answers
        assert "cancelled" in said, answers
        assert_explained(simulator)


class TestARefusal:
    def test_is_met_exactly_once(self, call: Call, front: Wire, make_profile: Any) -> None:
        make_profile(is_default=True)

        said = call(QUESTION)

        assert "No key is connected" in said
        assert asked(front, QUESTION) == 1
        assert not Run.objects.exists()

    def test_for_a_used_up_budget_is_told_in_our_words(
        self, call: Call, client: tuple[str, str], front: Wire, metered: Any, acme: Org
    ) -> None:
        Entitlement.objects.filter(org=acme).update(monthly_budget_picodollars=1000)

        said = call(QUESTION)

        assert "The budget resets at" in said
        assert "claude.ai" not in said
        # These two repeat every 429, whatever its headers say. What is refused again costs nothing.
        repeats = client[1].startswith(("vercel", "litellm"))
        assert asked(front, QUESTION) == (3 if repeats else 1)
        assert not Run.objects.exists()

    def test_by_the_provider_of_our_key_is_met_exactly_once(
        self, call: Call, front: Wire, connect: Any, make_profile: Any
    ) -> None:
        connect("revoked")
        make_profile(is_default=True)

        said = call(QUESTION)

        assert "rejected this key" in said
        assert "/login" not in said
        assert asked(front, QUESTION) == 1
