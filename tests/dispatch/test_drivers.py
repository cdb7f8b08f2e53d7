"""What every driver of a capacity provider does, each with sandboxes in which programs really run."""

import asyncio
import os
import re
import secrets
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from integrations.capacity import modal as account_api
from integrations.capacity.prices import Size
from rensei.core.errors import FieldError
from rensei.core.secret import Secret
from rensei.dispatch.pools import driver as driver_module
from rensei.dispatch.pools import vercel as vercel_driver
from rensei.dispatch.pools.accounts import DRIVERS
from rensei.dispatch.pools.bubblewrap import Bubblewrap
from rensei.dispatch.pools.cloud import Account, CloudBox, open_session
from rensei.dispatch.pools.driver import Box, Driver, Made, SandboxFault
from rensei.dispatch.pools.modal import Modal
from tests import e2b_stand_in
from tests.cloud_stand_in import Fault, StandIn
from tests.dispatch.test_bubblewrap import probe
from tests.e2b_stand_in import E2BStandIn
from tests.modal_stand_in import ModalStandIn
from tests.servers import LOOPBACK
from tests.vercel_stand_in import VercelStandIn
from tests.waiting import wait_until

PROVIDERS = ["sandbox", "e2b", "vercel", "modal"]
LINES_BYTES_MAX = 100_000
ENDLESS = "import time; print('begun', flush=True); time.sleep(600)"


@pytest.fixture(scope="module", autouse=True)
def _can_isolate() -> None:
    if refusal := probe():
        pytest.skip(f"No sandboxes here: {refusal}")


@pytest.fixture(params=PROVIDERS)
def with_driver(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Do something with a driver, in an event loop."""
    stand_in = None if request.param == "sandbox" else request.getfixturevalue(f"{request.param}_for_all")

    def carry(work: Callable[[Driver], Awaitable[Any]]) -> Any:
        async def inside() -> Any:
            async with drivers(stand_in) if stand_in else local() as driver:
                return await work(driver)

        return asyncio.run(inside())

    yield carry
    if stand_in:
        stand_in.reset()


@asynccontextmanager
async def local() -> AsyncIterator[Driver]:
    driver = Bubblewrap()
    yield driver
    await driver.close()


@asynccontextmanager
async def drivers(stand_in: StandIn, *, config: dict[str, Any] | None = None, **account: Any) -> AsyncIterator[Driver]:
    """A driver of a cloud."""
    driver = DRIVERS[stand_in.provider]
    given = {
        "api_url": stand_in.url,
        "key": Secret(stand_in.key),
        "workspace_id": stand_in.workspace_id,
        "server_url": "https://rensei.example.com",
        "tags": {"of": "test"},
        "config": driver.complete(config or {}),
    }
    async with open_session() as session:
        yield driver(session, Account(**{**given, **account}), seconds=60)


async def begun(driver: Driver, program: str, *, files: dict[str, bytes] | None = None, **options: Any) -> Box:
    box = await driver.create(
        f"box_{secrets.token_hex(8)}",
        token=Secret("rsr_canary"),
        request_bytes_max=1,
        lines_bytes_max=LINES_BYTES_MAX,
        **options,
    )
    await box.start(driver.program_of("program.py"), files={"program.py": program.encode(), **(files or {})})
    return box


async def left(driver: Driver) -> None:
    """Leave a sandbox as a worker that was killed."""
    box = await begun(driver, "import time; time.sleep(600)")
    assert isinstance(box, CloudBox)
    if box._stream is not None:
        box._stream.close()


async def written(box: Box) -> list[str]:
    return [line.decode() async for line in box.follow()]


class TestADriver:
    def test_runs_a_program_with_its_files(self, with_driver: Any) -> None:
        async def work(driver: Driver) -> list[str]:
            program = "import pathlib\nprint(pathlib.Path(__file__).with_name('given').read_text())\nprint('second')"
            box = await begun(driver, program, files={"given": b"What was given."})
            lines = await written(box)
            # Its output ends a moment before it does.
            await asyncio.to_thread(wait_until, lambda: box.exit_code is not None, what="its end")
            assert box.exit_code == 0
            assert await box.destroy()
            return lines

        assert with_driver(work) == ["What was given.\n", "second\n"]

    def test_yields_lines_while_the_program_goes_on(self, with_driver: Any) -> None:
        async def work(driver: Driver) -> bytes:
            box = await begun(driver, "import time\nprint('first', flush=True)\ntime.sleep(600)")
            lines = box.follow()
            first = await anext(lines)
            await box.destroy()
            return first

        assert with_driver(work) == b"first\n"

    def test_yields_long_lines_whole(self, with_driver: Any) -> None:
        async def work(driver: Driver) -> list[str]:
            box = await begun(driver, f"print('x' * {LINES_BYTES_MAX - 2})")
            lines = await written(box)
            await box.destroy()
            return lines

        assert list(map(len, with_driver(work))) == [LINES_BYTES_MAX - 1]

    @pytest.mark.parametrize(
        "program",
        [
            "print('x' * 200_000)",
            "for _ in range(200_000): print('x')",
            "for _ in range(2_000): print()",
            "import sys; sys.stderr.write('x' * 200_000)",
        ],
    )
    def test_stops_reading_a_flood(self, with_driver: Any, program: str) -> None:
        async def work(driver: Driver) -> None:
            box = await begun(driver, program)
            with pytest.raises(SandboxFault, match="wrote too"):
                await written(box)
            assert await box.destroy()

        with_driver(work)

    def test_lists_those_that_exist_and_destroys_them_by_their_ids(self, with_driver: Any) -> None:
        async def work(driver: Driver) -> None:
            before = set(await driver.list())
            boxes = [await begun(driver, "import time; time.sleep(600)") for _ in range(2)]
            there = set(await driver.list()) - before
            assert len(there) == 2
            for box in boxes:
                await box.destroy()
            for box_id in there:
                # It may be gone, or another worker may be at it.
                await driver.destroy(box_id)
            assert not there & set(await driver.list())

        with_driver(work)

    def test_destroys_what_was_never_started(self, with_driver: Any) -> None:
        async def work(driver: Driver) -> bool:
            box = await driver.create("box_none", token=Secret(""), request_bytes_max=1, lines_bytes_max=1)
            return await box.destroy()

        assert with_driver(work) is True

    def test_gives_the_program_no_token_where_its_provider_adds_it(self, with_driver: Any) -> None:
        """Elsewhere it is one file, which its owner alone may read."""
        program = """
import os, pathlib, sys
found = repr(dict(os.environ)) + " ".join(sys.argv)
token = pathlib.Path(__file__).with_name("token")
if token.exists():
    print(oct(token.stat().st_mode & 0o777), token.read_text() == "rsr_" + "canary")
    token.unlink()
for folder in ("/run", "/workspace", "/tmp", "/home", "/vercel"):
    for path in pathlib.Path(folder).rglob("*"):
        if path.is_file() and path.name != "program.py":
            found += path.read_text(errors="replace")
for path in pathlib.Path("/proc").glob("[0-9]*/[ce][mn][dv]*"):
    found += path.read_text(errors="replace")
print("rsr_" + "canary" in found)
"""

        async def work(driver: Driver) -> tuple[list[str], bool]:
            box = await begun(driver, program)
            lines = await written(box)
            await box.destroy()
            return lines, isinstance(driver, Modal)

        lines, is_file = with_driver(work)

        assert lines == [*(["0o600 True\n"] if is_file else []), "False\n"]


class TestACloud:
    """What only a driver of a cloud has to do."""

    def test_keeps_no_cookies(self) -> None:
        """Organizations share the connections."""

        async def work() -> int:
            async with open_session() as session:
                session.cookie_jar.update_cookies({"session": "of one organization"})
                return len(session.cookie_jar)

        assert asyncio.run(work()) == 0

    def test_lists_all_pages(self, stand_in: StandIn) -> None:
        stand_in.page_size = 2

        async def work() -> int:
            async with drivers(stand_in) as driver:
                for _ in range(5):
                    await left(driver)
                return len(await driver.list())

        assert asyncio.run(work()) == 5

    def test_takes_no_list_for_whole_that_it_reads_in_part(
        self, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The rows of sandboxes that are not listed are ended."""
        limit = "LISTED_MAX" if stand_in.provider == "modal" else "LIST_PAGES_MAX"
        monkeypatch.setattr(f"rensei.dispatch.pools.{stand_in.provider}.{limit}", 1)
        stand_in.page_size = 1

        async def work() -> None:
            async with drivers(stand_in) as driver:
                await left(driver)
                stand_in.copy(stand_in.live()[0], row_id="box_other")
                with pytest.raises(SandboxFault, match="more sandboxes than are read"):
                    await driver.list()

        asyncio.run(work())

    def test_destroys_the_one_of_the_row_only(self, stand_in: StandIn) -> None:
        """The list of its provider may hold more."""

        async def work() -> None:
            async with drivers(stand_in) as driver:
                await left(driver)
                stand_in.copy(stand_in.live()[0], row_id="box_other")
                stand_in.filters = False
                await driver.destroy("box_other")

        asyncio.run(work())
        assert [box.tags["rensei-sandbox"] == "box_other" for box in stand_in.live()] == [False]

    def test_puts_no_foreign_id_into_an_address(self, stand_in: StandIn) -> None:
        async def work() -> None:
            async with drivers(stand_in) as driver:
                await left(driver)
                (made,) = stand_in.live()
                made.id = "../sandboxes"
                made.tags = {**made.tags, "rensei-sandbox": "../sandboxes"}
                if stand_in.provider == "modal":
                    # Its library refuses such an id.
                    with pytest.raises(SandboxFault, match="does not start with"):
                        await driver.list()
                else:
                    assert await driver.list() == {}

        asyncio.run(work())

    def test_may_have_one_where_none_is_certain(self, stand_in: StandIn) -> None:
        """A proxy may say that there is no room after the provider has created it."""

        async def work() -> None:
            async with drivers(stand_in) as driver:
                stand_in.faults.append(Fault(on="create", does=503, times=2))
                box = await driver.create("box_1", token=Secret("rsr_"), request_bytes_max=1, lines_bytes_max=1)
                with pytest.raises(SandboxFault, match="has no room") as fault:
                    await box.start(driver.program_of("program.py"), files={})
                assert fault.value.fault is driver_module.Fault.FULL
                assert await box.destroy() is False

        asyncio.run(work())

    def test_takes_403_as_its_provider_means_it(self, stand_in: StandIn) -> None:
        """E2B says it of a template of another team, the others of a token of another."""

        async def work() -> None:
            async with drivers(stand_in) as driver:
                stand_in.faults.append(Fault(on="create", does=403))
                await begun(driver, "pass")

        with pytest.raises(SandboxFault) as fault:
            asyncio.run(work())

        kind, said = {
            "e2b": (driver_module.Fault.NOT_CREATED, "E2B does not create it: A fault was set: 403"),
            "vercel": (driver_module.Fault.REFUSED, "Vercel does not accept the key of the organization."),
            "modal": (driver_module.Fault.REFUSED, "Modal does not accept the key of the organization."),
        }[stand_in.provider]
        assert (fault.value.fault, fault.value.reason) == (kind, said)

    def test_names_the_image_in_no_other_404(self, stand_in: StandIn) -> None:
        async def work() -> None:
            async with drivers(stand_in) as driver:
                stand_in.faults.append(Fault(on="list", does=404))
                await driver.list()

        with pytest.raises(SandboxFault, match="refuses a request about it: A fault was set"):
            asyncio.run(work())

    def test_sees_no_sandboxes_of_other_tags_and_keys(self, stand_in: StandIn) -> None:
        async def work() -> list[int]:
            async with drivers(stand_in) as driver:
                await left(driver)
            counts = []
            for other in ({"tags": {"of": "other"}}, {"key": Secret(stand_in.keys[1])}):
                async with drivers(stand_in, **other) as driver:
                    counts.append(len(await driver.list()))
            return counts

        assert asyncio.run(work()) == [0, 0]

    def test_tells_apart_how_a_program_and_how_its_sandbox_ended(self, stand_in: StandIn) -> None:
        async def work(program: str, *, is_killed: bool = False) -> int | None:
            async with drivers(stand_in) as driver:
                box = await begun(driver, program)
                lines = box.follow()
                assert await anext(lines) == b"begun\n"
                if is_killed:
                    await asyncio.to_thread(stand_in.kill, stand_in.live()[-1])
                async for _ in lines:
                    pass
                return box.exit_code

        assert asyncio.run(work("print('begun'); raise SystemExit(3)")) == 3
        with pytest.raises(SandboxFault, match="ended it"):
            asyncio.run(work(ENDLESS, is_killed=True))

    def test_ends_at_its_lifetime(self, stand_in: StandIn) -> None:
        async def work() -> None:
            async with drivers(stand_in, config={"lifetimeSeconds": 90}) as driver:
                lines = (await begun(driver, ENDLESS)).follow()
                await anext(lines)
                (made,) = stand_in.live()
                assert made.seconds == 90
                made.ends_at = 0
                await anext(lines)

        with pytest.raises(SandboxFault, match="ended it"):
            asyncio.run(work())

    def test_says_that_it_may_be_left(self, stand_in: StandIn) -> None:
        async def work() -> list[bool]:
            async with drivers(stand_in) as driver:
                box = await begun(driver, "pass")
                stand_in.faults.append(Fault(on="delete", does=500))
                return [await box.destroy(), await box.destroy()]

        assert asyncio.run(work()) == [False, True]

    @pytest.mark.parametrize("status", [302, 500])
    def test_takes_no_other_answer_for_an_empty_list(self, stand_in: StandIn, status: int) -> None:
        """The rows of sandboxes that are not listed are ended."""

        async def work() -> None:
            async with drivers(stand_in) as driver:
                stand_in.faults.append(Fault(on="list", does=status))
                with pytest.raises(SandboxFault, match=DRIVERS[stand_in.provider].name):
                    await driver.list()

        asyncio.run(work())

    def test_keeps_its_key_out_of_errors(self, stand_in: StandIn) -> None:
        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"This is not HTTP.\r\n\r\n")
            writer.close()

        async def work() -> None:
            # The error of an answer that cannot be read holds the request.
            async with await asyncio.start_server(answer, LOOPBACK, 0) as server:
                port = server.sockets[0].getsockname()[1]
                async with drivers(stand_in, api_url=f"http://{LOOPBACK}:{port}") as driver:
                    await begun(driver, "pass")

        with pytest.raises(SandboxFault, match="does not answer") as fault:
            asyncio.run(work())

        shown, each = "", fault.value
        while each is not None:
            shown += repr(each) + repr(vars(each))
            each = each.__cause__ or each.__context__
        assert stand_in.key not in shown
        assert "rsr_canary" not in shown

    def test_lets_a_sandbox_reach_the_hosts_of_its_pool_without_the_token(self, stand_in: StandIn) -> None:
        async def work() -> None:
            async with drivers(stand_in, config={"egress": ["pypi.org", "rensei.example.com"]}) as driver:
                box = await begun(driver, "pass")
                await box.destroy()

        asyncio.run(work())

        (made,) = stand_in.boxes.values()
        added = {"Authorization": "Bearer rsr_canary"} if stand_in.adds_token else {}
        assert made.rules == {"rensei.example.com": added, "pypi.org": {}}

    @pytest.mark.parametrize(
        "egress",
        [
            "pypi.org",
            ["*.pypi.org"],
            ["pypi"],
            ["203.0.113.9"],
            ["2606:4700::1"],
            ["0.0.0.0/0"],
            ["pypi.org:443"],
            ["https://pypi.org"],
            ["PyPI.org"],
            ["pypi.org\n"],
            [1],
            ["a" * 64 + ".org"],
            ["pypi.org"] * 21,
        ],
        ids=str,
    )
    def test_takes_public_names_of_hosts_only(self, egress: Any) -> None:
        with pytest.raises(FieldError) as refusal:
            DRIVERS["e2b"].check_config({"egress": egress}, pointer="/config")

        assert refusal.value.errors[0]["pointer"] == "/config/egress"


class TestE2B:
    """What the protocol of envd needs beside that."""

    @pytest.mark.parametrize(
        "event",
        [b'{"event": {"end": {"exitCode": null}}}', b"[" * 100_000, b"[]", b'{"event": {"data": {"stdout": 1}}}'],
        ids=["no exit code", "deep", "a list", "no text"],
    )
    def test_takes_an_event_of_another_form_for_the_end_of_the_connection(
        self, e2b: E2BStandIn, monkeypatch: pytest.MonkeyPatch, event: bytes
    ) -> None:
        monkeypatch.setattr(e2b_stand_in, "_frame", lambda *_, **__: struct.pack(">BI", 0, len(event)) + event)

        async def work() -> None:
            async with drivers(e2b) as driver:
                await written(await begun(driver, "pass"))

        with pytest.raises(SandboxFault, match="or the connection to it was lost"):
            asyncio.run(work())

    def test_takes_no_redirection_for_success(self, e2b: E2BStandIn) -> None:
        async def work() -> None:
            async with drivers(e2b) as driver:
                e2b.faults.append(Fault(on="write", does=302))
                await begun(driver, "pass")

        with pytest.raises(SandboxFault, match="It answers with status 302"):
            asyncio.run(work())


class TestVercel:
    """What the interface of Vercel needs beside that."""

    def test_reads_on_after_a_connection_broke(self, vercel: VercelStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(vercel_driver, "_AGAIN_SECONDS", 0.01)
        vercel.cuts_output = 3

        async def work() -> list[str]:
            async with drivers(vercel) as driver:
                program = "import time\nfor number in range(5): print(number, flush=True); time.sleep(0.05)"
                box = await begun(driver, program)
                return await written(box)

        assert asyncio.run(work()) == ["0\n", "1\n", "2\n", "3\n", "4\n"]
        assert vercel.requests.count("start") == 1
        assert vercel.requests.count("output") == 4

    def test_gives_up_a_connection_that_breaks_again_and_again(
        self, vercel: VercelStandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(vercel_driver, "_AGAIN_SECONDS", 0.01)
        vercel.cuts_output = 100

        async def work() -> None:
            async with drivers(vercel) as driver:
                box = await begun(driver, "import time; print('begun', flush=True); time.sleep(600)")
                with pytest.raises(SandboxFault, match="ended it, or the connection"):
                    await written(box)
                assert await box.destroy()

        asyncio.run(work())
        assert vercel.live() == []

    def test_starts_no_stopped_sandbox_anew(self, vercel: VercelStandIn) -> None:
        async def work() -> None:
            async with drivers(vercel) as driver:
                # So it asks again how large it was.
                vercel.faults.append(Fault(on="show", does=500))
                box = await begun(driver, ENDLESS, for_agent=True)
                await anext(aiter(box.follow()))
                vercel.kill(vercel.live()[0])
                await box.order_stop()
                assert await box.destroy()

        asyncio.run(work())
        assert (vercel.live(), vercel.requests.count("create")) == ([], 1)
        assert (vercel.requests.count("show"), "revive" in vercel.requests) == (2, False)

    def test_may_have_one_whose_name_exists(self, vercel: VercelStandIn) -> None:
        async def work() -> None:
            async with drivers(vercel) as driver:
                vercel.faults += [Fault(on="create", does="lost"), Fault(on="show", does=404)]
                box = await driver.create("box_1", token=Secret("rsr_"), request_bytes_max=1, lines_bytes_max=1)
                with pytest.raises(SandboxFault):
                    await box.start(driver.program_of("program.py"), files={})
                vercel.faults += [Fault(on="show", does=404)] * 2
                again = await driver.create("box_1", token=Secret("rsr_"), request_bytes_max=1, lines_bytes_max=1)
                with pytest.raises(SandboxFault, match="refuses a request about it"):
                    await again.start(driver.program_of("program.py"), files={})
                await again.destroy()

        asyncio.run(work())
        assert (vercel.live(), len(vercel.boxes)) == ([], 1)

    def test_tells_why_it_does_not_read_the_output(self, vercel: VercelStandIn) -> None:
        async def work() -> None:
            async with drivers(vercel) as driver:
                box = await begun(driver, ENDLESS)
                vercel.faults.append(Fault(on="output", does=403))
                await written(box)

        with pytest.raises(SandboxFault, match="Vercel does not accept the key"):
            asyncio.run(work())

    def test_tells_what_its_plan_does_not_allow(self, vercel: VercelStandIn) -> None:
        async def work() -> None:
            async with drivers(vercel, config={"vcpus": 16}) as driver:
                await begun(driver, "pass")

        with pytest.raises(SandboxFault, match="Vercel does not create it: vcpus is above the limit of the plan"):
            asyncio.run(work())


class TestModal:
    """What the interface of Modal needs beside that."""

    def test_takes_nothing_from_the_environment(self, modal: ModalStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODAL_TOKEN_ID", "ak-other")
        monkeypatch.setenv("MODAL_SERVER_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("MODAL_ENVIRONMENT", "other")
        # As at the start of a process.
        account_api._import.cache_clear()

        async def work() -> list[str]:
            async with drivers(modal) as driver:
                box = await begun(driver, "import os; print([name for name in os.environ if 'MODAL' in name])")
                lines = await written(box)
                await box.destroy()
                return lines

        assert asyncio.run(work()) == ["[]\n"]
        assert "MODAL_TOKEN_ID" not in os.environ

    def test_gives_up_a_server_that_does_not_answer(self, modal: ModalStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its library tries for a minute."""
        monkeypatch.setattr(Modal.call, "__kwdefaults__", {**Modal.call.__kwdefaults__, "seconds": 0.2})

        async def work() -> None:
            async with drivers(modal, api_url="http://127.0.0.1:9") as driver:
                await driver.list()

        begun_at = time.monotonic()
        with pytest.raises(SandboxFault, match="Modal does not answer"):
            asyncio.run(work())
        assert time.monotonic() - begun_at < 20

    def test_closes_its_clients(self, modal: ModalStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[Any] = []
        make = account_api.new_client
        monkeypatch.setattr(account_api, "new_client", lambda *of: made.append(make(*of)) or made[-1])

        async def work() -> None:
            async with drivers(modal) as driver:
                box = await begun(driver, ENDLESS)
                await anext(aiter(box.follow()))
                await driver.list()
                await box.destroy()
                modal.faults.append(Fault(on="list", does=401))
                with pytest.raises(SandboxFault, match="does not accept the key"):
                    await driver.list()

        asyncio.run(work())
        assert len(made) == 4
        assert all(client.is_closed() for client in made)

    def test_has_one_sandbox_of_a_name_that_was_made_without_an_answer(self, modal: ModalStandIn) -> None:
        async def work() -> list[str]:
            async with drivers(modal) as driver:
                modal.faults.append(Fault(on="create", does="lost"))
                box = await begun(driver, "print('here')")
                lines = await written(box)
                await box.destroy()
                return lines

        assert asyncio.run(work()) == ["here\n"]
        assert (len(modal.boxes), modal.live()) == (1, [])

    def test_asks_for_what_its_pool_is_set_to(self, modal: ModalStandIn) -> None:
        config = {"image": "im-slim", "vcpus": 3, "memoryMib": 1024, "region": "us-east"}

        async def work() -> None:
            async with drivers(modal, config=config) as driver:
                box = await begun(driver, "pass")
                assert box.made == Made(size=Size(vcpus=3, memory_mib=1024))
                await box.destroy()

        asyncio.run(work())
        (made,) = modal.boxes.values()
        assert made.new == {"resources": {"vcpus": 3, "memoryMib": 1024}, "regions": ["us-east"]}
        assert "build" not in modal.requests

    def test_stops_an_agent_by_a_file(self, modal: ModalStandIn) -> None:
        program = """
import pathlib, time
print("begun", flush=True)
while not pathlib.Path(__file__).with_name("stop").exists():
    time.sleep(0.02)
print("stopped")
"""

        async def work() -> list[bytes]:
            async with drivers(modal) as driver:
                box = await begun(driver, program, for_agent=True)
                lines = box.follow()
                seen = [await anext(lines)]
                await box.order_stop()
                seen += [line async for line in lines]
                await box.destroy()
                return seen

        assert asyncio.run(work()) == [b"begun\n", b"stopped\n"]

    def test_is_refused_without_its_library(self, modal: ModalStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(account_api, "is_installed", lambda: False)

        async def work() -> None:
            async with drivers(modal) as driver:
                await begun(driver, "pass")

        with pytest.raises(SandboxFault, match=re.escape("pip install 'rensei[modal]'")):
            asyncio.run(work())
