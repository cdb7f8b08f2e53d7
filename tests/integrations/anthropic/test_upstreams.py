"""Organizations choose addresses that answer as they like, and as many as they like."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from integrations.providers.anthropic import upstreams
from integrations.providers.anthropic.relay import Relay
from integrations.providers.base import Credential, ProviderFailure
from rensei.core.secret import Secret

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@asynccontextmanager
async def provider() -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Serve answers of two pieces. The second comes when the event is set."""
    may_end = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"5\r\nfirst\r\n")
        await writer.drain()
        await may_end.wait()
        writer.write(b"4\r\nlast\r\n0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", may_end
    finally:
        may_end.set()
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def relay() -> AsyncIterator[Relay]:
    made = Relay(idle_seconds=20)
    try:
        yield made
    finally:
        await made.close()


def credential(base_url: str, org: str) -> Credential:
    return Credential(id="cred", version=1, secret=Secret("k"), base_url=base_url, org_slug=org)


async def send(to: Relay, base_url: str, org: str) -> Any:
    return await to.send("/v1/messages", credential=credential(base_url, org), headers={}, body=b"{}")


class TestACallUnderWay:
    def test_is_not_ended_by_other_addresses_of_its_organization(
        self, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(upstreams, "ADDRESSES_OF_ORG_MAX", 2)

        async def play() -> tuple[bytes, str]:
            async with (
                provider() as (slow, may_end),
                provider() as (second, end),
                provider() as (third, _),
                relay() as to,
            ):
                settings.RENSEI_OUTBOUND_ALLOWLIST = [slow, second, third]
                answer, other = await send(to, slow, "acme"), await send(to, second, "acme")
                with pytest.raises(ProviderFailure) as caught:
                    await send(to, third, "acme")
                end.set()
                await other.read()
                # Of the two, the second is free now, and its place is taken.
                (await send(to, third, "acme")).close()
                may_end.set()
                return await answer.read(), caught.value.diagnosis

        assert asyncio.run(play()) == (b"firstlast", "TOO_MANY_ADDRESSES")

    @pytest.mark.parametrize("org", ["acme", ""])
    def test_is_not_ended_by_those_of_others(self, settings: Any, monkeypatch: pytest.MonkeyPatch, org: str) -> None:
        monkeypatch.setattr(upstreams, "ADDRESSES_OF_ORG_MAX", 1)
        monkeypatch.setattr(upstreams, "ADDRESSES_MAX", 1)

        async def play() -> bytes:
            async with (
                provider() as (slow, may_end),
                provider() as (second, _),
                provider() as (third, _),
                relay() as to,
            ):
                settings.RENSEI_OUTBOUND_ALLOWLIST = [second, third, *([slow] if org else [])]
                if not org:
                    settings.RENSEI_ANTHROPIC_BASE_URL = slow
                answer = await send(to, slow if org else "", org)
                for base_url in (second, third, second):
                    (await send(to, base_url, "evil")).close()
                may_end.set()
                body: bytes = await answer.read()
                return body

        assert asyncio.run(play()) == b"firstlast"
