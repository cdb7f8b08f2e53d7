"""An opened key is dropped from memory within a second of its removal, asked for again or not."""

import asyncio
import gc
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connections

from integrations.keys import platform
from integrations.keys import services as integrations
from integrations.models import Integration, KeyOpening, PlatformKey
from integrations.providers.anthropic.federation import tokens
from integrations.vault import openings
from rensei.core.errors import RenseiError
from rensei.core.secret import Secret
from rensei.gateway import app, routing, short_cache
from rensei.gateway.short_cache import ShortLivedCache
from rensei.orgs.access import Access
from rensei.tokens.services import create_token
from tests.gateway.line import STANDARD_HEADERS, as_bytes, message
from tests.integrations.federating import make_federation, trust
from tests.waiting import wait_until


@pytest.fixture
def _interpreter_as_before() -> Iterator[None]:
    """The gateway tunes the interpreter of the process that it serves in."""
    turn, thresholds = sys.getswitchinterval(), gc.get_threshold()
    yield
    sys.setswitchinterval(turn)
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def holders_of(canary: str) -> int:
    """Count the secrets in this process that reveal a canary."""
    gc.collect()
    return sum(canary in found.reveal() for found in gc.get_objects() if type(found) is Secret)


async def until(condition: Callable[[], bool]) -> None:
    """Wait in a thread, while the loop drops what is due."""
    await asyncio.to_thread(wait_until, condition, what="the end of a value")


async def status_of(gateway: app.Gateway, token: str, model: str = "prof_deep") -> int:
    """Have a prompt counted by a gateway of this process, and tell the status."""
    body = as_bytes({"model": model, "messages": message()["messages"]})
    headers = {**STANDARD_HEADERS, "host": "localhost", "x-api-key": token}
    said: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(part: Any) -> None:
        said.append(part)

    scope: dict[str, Any] = {
        "type": "http", "method": "POST", "path": "/v1/messages/count_tokens", "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    await gateway.answer(scope, receive, send)
    status: int = said[0]["status"]
    return status


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_interpreter_as_before", "simulator", "catalog")
class TestAKey:
    @pytest.fixture(autouse=True)
    def _one_loader(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(app, "LOADERS", 1)

    def forgets(self, token: str, canary: str, remove: Callable[[], object], *, told: Callable[[], str] = str) -> None:
        """
        Use a key, remove it, and wait until nothing holds it although nothing asks any more.

        :param told: returns the canary after the call, where it is not known before
        """

        async def play() -> tuple[int, int]:
            gateway = app.Gateway()
            loop = asyncio.get_running_loop()
            try:
                status = await status_of(gateway, token)
                secret = canary or told()
                held = holders_of(secret)
                await asyncio.to_thread(_then_disconnect, remove)
                await until(lambda: holders_of(secret) == 0)
            finally:
                await loop.run_in_executor(gateway._executor, connections.close_all)
                await gateway.close()
            return status, held

        assert asyncio.run(play()) == (200, 1)

    def test_of_an_organization_is_dropped(
        self, ada_access: Access, make_profile: Any, make_key: Any, token: str
    ) -> None:
        canary = make_key(f"canary{secrets.token_hex(4)}")
        added = integrations.add_integration(ada_access, provider="claude", api_key=Secret(canary))
        make_profile(is_default=True)

        self.forgets(
            token, canary, lambda: integrations.remove_integration(ada_access, Integration.objects.get(pk=added.pk))
        )

    def test_the_access_token_of_an_identity_is_dropped(
        self, ada_access: Access, make_profile: Any, token: str, simulator: Any
    ) -> None:
        federation = make_federation()
        trust(simulator, ada_access.org, federation)
        tokens.clear()
        added = integrations.add_integration(ada_access, provider="claude", federation=federation)
        make_profile(is_default=True)

        def access_token() -> str:
            (held,) = tokens._tokens.values()
            return held.secret.reveal()

        self.forgets(
            token,
            "",
            lambda: integrations.remove_integration(ada_access, Integration.objects.get(pk=added.pk)),
            told=access_token,
        )

    def test_of_a_pool_is_dropped(self, metered: Any, token: str, make_key: Any) -> None:
        canary = make_key(f"canary{secrets.token_hex(4)}")
        key = platform.replace_key(PlatformKey.objects.get(), actor=None, api_key=Secret(canary))

        self.forgets(token, canary, lambda: PlatformKey.objects.filter(pk=key.pk).delete())


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_interpreter_as_before", "catalog")
class TestAPool:
    @pytest.fixture(autouse=True)
    def _one_loader(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(app, "LOADERS", 1)

    def test_has_only_the_key_that_signs_opened_and_once_for_all_callers(
        self,
        metered: Any,
        token: str,
        token_access: Access,
        simulator: Any,
        make_key: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Nor is the token of an identity waited for that does not sign."""
        signs = PlatformKey.objects.get()
        for number in range(4):
            given: Any = {"federation": make_federation()} if number % 2 else {"api_key": Secret(make_key())}
            fields = {"pool": signs.pool, "name": f"key {number}", "model_ids": signs.model_ids}
            platform.add_platform_key(actor=None, provider=signs.provider, **fields, **given)
        monkeypatch.setattr(
            routing, "choose", lambda signers, **_: next(one for one in signers if one.key.id == signs.id)
        )
        other = create_token(token_access, name="other")[1].reveal()
        openings.forget_all()

        async def play() -> list[int]:
            gateway = app.Gateway()
            try:
                return [await status_of(gateway, each) for each in (token, other)]
            finally:
                await asyncio.get_running_loop().run_in_executor(gateway._executor, connections.close_all)
                await gateway.close()

        assert asyncio.run(play()) == [200, 200]
        assert [one.record_id for one in KeyOpening.objects.exclude(reason="publishing")] == [signs.id]
        assert not [one for one in simulator.requests() if one["path"] == "/v1/oauth/token"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_interpreter_as_before", "simulator", "catalog")
def test_a_refusal_that_is_cached_keeps_no_request(
    ada_access: Access, make_profile: Any, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_profile(is_default=True)
    monkeypatch.setattr(app, "LOADERS", 1)

    async def play() -> tuple[list[int], list[Any]]:
        gateway = app.Gateway()
        try:
            statuses = [await status_of(gateway, token, model="made-up") for _ in range(2)]
            kept = [entry.value for entry in gateway._routes._entries.values()]
        finally:
            await asyncio.get_running_loop().run_in_executor(gateway._executor, connections.close_all)
            await gateway.close()
        return statuses, kept

    statuses, kept = asyncio.run(play())

    assert statuses == [404, 404]
    assert [isinstance(each, RenseiError) and each.__traceback__ is None for each in kept] == [True]


def _then_disconnect(act: Callable[[], object]) -> None:
    try:
        act()
    finally:
        connections.close_all()


class TestFresh:
    """Whatever the gateway keeps follows one rule."""

    def play(self, story: Callable[[ShortLivedCache[Any]], Awaitable[Any]]) -> Any:
        async def with_threads() -> Any:
            with ThreadPoolExecutor(4) as executor:
                return await story(ShortLivedCache(executor, holds_secrets=True))

        return asyncio.run(with_threads())

    def test_drops_every_value_without_being_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(short_cache, "LIFETIME_SECONDS", 0.05)
        canary = secrets.token_hex(16)

        async def story(values: ShortLivedCache[Any]) -> tuple[int, int]:
            for number in range(200):
                await values.get(number, lambda: Secret(canary))
            at_most = holders_of(canary)
            await until(lambda: holders_of(canary) == 0)
            return at_most, len(values._entries)

        at_most, left = self.play(story)

        assert at_most > 0
        assert left == 0

    def test_drops_a_value_whose_load_took_longer_than_it_may_live(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(short_cache, "LIFETIME_SECONDS", 0.05)
        canary = secrets.token_hex(16)

        def slowly() -> Secret:
            time.sleep(0.1)
            return Secret(canary)

        async def story(values: ShortLivedCache[Any]) -> bool:
            given = (await values.get("a", slowly)).reveal() == canary
            await until(lambda: holders_of(canary) == 0)
            return given

        assert self.play(story)

    def test_keeps_the_newer_value_when_the_older_is_due(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(short_cache, "LIFETIME_SECONDS", 30)
        monkeypatch.setattr(short_cache, "RENEW_AFTER_SECONDS", -1)
        loads = iter(range(100))

        async def story(values: ShortLivedCache[Any]) -> Any:
            await values.get("a", lambda: next(loads))
            older = values._entries["a"]
            await values.get("a", lambda: next(loads))
            await until(lambda: values._entries["a"] is not older)
            values._drop_when_expired("a", older)
            return values._entries["a"].value

        assert self.play(story) >= 1

    def test_lives_for_less_than_a_second(self) -> None:
        assert short_cache.RENEW_AFTER_SECONDS < short_cache.LIFETIME_SECONDS < 1
