"""Vercel's own library, unchanged, against the stand-in on which the driver is tested: both speak the same API."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
from vercel import sandbox as library

from tests.cloud_stand_in import Fault
from tests.vercel_stand_in import VercelStandIn


async def with_client(
    stand_in: VercelStandIn, work: Callable[[library.SandboxClient], Awaitable[Any]], *, key: str = ""
) -> Any:
    team, _, project = stand_in.workspace_id.partition("/")

    async def credentials() -> library.SandboxCredentials:
        return library.SandboxCredentials(token=key or stand_in.key, team_id=team, project_id=project)

    options = library.SandboxServiceOptions(base_url=stand_in.url, credentials_factory=credentials)
    async with aclosing(library.SandboxClient.create(options=options)) as client:
        return await work(client)


class TestTheLibrary:
    def test_does_what_the_driver_does(self, vercel: VercelStandIn) -> None:
        async def work(client: library.SandboxClient) -> None:
            allowed = library.NetworkPolicyRule(transform=[library.NetworkPolicyTransform(headers={"X-Added": "yes"})])
            box = await client.create_sandbox(
                name="box-1",
                execution_time_limit=60,
                persistent=False,
                tags={"of": "test"},
                network_policy=library.NetworkPolicy.custom(allow={"rensei.example.com": [allowed], "pypi.org": []}),
                resources=library.SandboxResources(vcpus=4),
                destroy=False,
            )
            session = box.current_session
            await session.fs.write_bytes("/vercel/sandbox/rensei/given", b"What was given.")
            process = await session.create_process("/bin/sh", ["-c", "cat rensei/given; echo said >&2; exit 3"])
            told = "".join([line async for line in process.stdout])
            ended = await process.wait()
            assert (told, await process.stderr.read(), ended) == ("What was given.", "said\n", 3)
            run = await session.run_process("/bin/sh", ["-c", "echo $PWD > made; cat made"], capture_output=True)
            assert (run.stdout, run.returncode) == ("/vercel/sandbox\n", 0)
            assert await session.fs.read_bytes("/vercel/sandbox/made") == b"/vercel/sandbox\n"
            sleeping = await session.create_process("/bin/sh", ["-c", "echo begun; exec sleep 600"])
            assert await anext(aiter(sleeping.stdout)) == "begun\n"
            await sleeping.terminate()
            assert await sleeping.wait() == 128 + signal.SIGTERM
            await session.extend_execution_time_limit(60)
            query = library.SandboxQueryByCreatedAt(tag=library.TagFilter(key="of", value="test"))
            assert [found.name async for found in client.query_sandboxes(query=query)] == ["box-1"]
            (held,) = vercel.live()
            assert (held.rules, held.seconds) == ({"rensei.example.com": {"X-Added": "yes"}, "pypi.org": {}}, 60)
            await box.destroy()
            with pytest.raises(library.SandboxApiError) as gone:
                await client.get_sandbox(name="box-2")
            assert gone.value.status_code == 404

        asyncio.run(with_client(vercel, work))
        assert vercel.live() == []

    def test_is_refused_as_the_driver_is(self, vercel: VercelStandIn) -> None:
        async def work(client: library.SandboxClient) -> int:
            with pytest.raises(library.SandboxApiError) as refusal:
                await client.create_sandbox(image="none-such", destroy=False)
            return refusal.value.status_code

        assert asyncio.run(with_client(vercel, work, key="c" * 24)) == 403
        assert asyncio.run(with_client(vercel, work)) == 404
        vercel.faults.append(Fault(on="create", does=429))
        assert asyncio.run(with_client(vercel, work)) == 429
