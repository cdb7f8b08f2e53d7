"""Calls that are signed by a token which the gateway obtains itself, from the keys that it publishes."""

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from billing.models import CostEvent, Entitlement
from integrations.keys import credentials, platform
from integrations.keys import services as integrations
from integrations.models import Integration, KeyOpening
from integrations.providers.base import Federation
from rensei.dispatch.models import Attempt
from rensei.orgs.access import Access
from tests.dispatch.reconcile import assert_explained
from tests.gateway.line import MODEL, message, settled
from tests.gateway.server import Server
from tests.integrations.federating import make_federation, rule_for
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
EXCHANGE = "/v1/oauth/token"


@pytest.fixture
def federated(ada_access: Access, server: Server, simulator: Any, make_profile: Any) -> Integration:
    """Acme has no stored key: the stand-in fetches the keys of the running server, as Anthropic does."""
    federation = make_federation()
    found = integrations.add_integration(ada_access, provider="claude", federation=federation, name="Main")
    rule = rule_for(federation, subject=credentials.subject_of(ada_access.org))
    simulator.trust(issuer=server.url, rules=[rule], cached=0)
    make_profile(is_default=True)
    return found


def exchanged(simulator: Any) -> list[Any]:
    return [request for request in simulator.requests() if request["path"] == EXCHANGE]


def test_a_call_is_signed_by_a_token_and_accounted_as_any_other(
    ask: Any, federated: Integration, simulator: Any
) -> None:
    answer = ask(message(), anthropic_beta="context-1m-2025-08-07")

    assert answer.status == 200
    settled()
    call = next(request for request in simulator.requests() if request["path"] == "/v1/messages")
    assert call["anthropic_beta"] == "context-1m-2025-08-07,oauth-2025-04-20"
    assert call["workspace_id"] is None
    assert CostEvent.objects.get().payer == "organization"
    attempt = Attempt.objects.get()
    assert attempt.credential_id == federated.id
    assert_explained(simulator)
    # Its opening names the call, whose token was waited for before it was admitted.
    named = KeyOpening.objects.filter(record_id=federated.id, reason="gateway", run_id=attempt.run_id)
    wait_until(named.exists)


def test_all_calls_share_one_exchange(ask: Any, federated: Integration, simulator: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(message()).status, range(16)))

    assert answers == [200] * 16
    assert len(exchanged(simulator)) == 1
    settled()


def test_a_token_that_ended_early_costs_one_call(ask: Any, federated: Integration, simulator: Any) -> None:
    assert ask(message()).status == 200
    simulator.revoke_tokens()

    refused = ask(message())
    assert refused.status >= 400
    assert "sk-ant" not in refused.body.decode()
    assert ask(message()).status == 200
    settled()
    federated.refresh_from_db()
    assert federated.status != Integration.Status.FAILING
    assert min(CostEvent.objects.values_list("output_tokens", flat=True)) == 0
    assert CostEvent.objects.filter(output_tokens__gt=0).count() == 2


def test_a_refused_exchange_costs_nothing_and_is_explained(
    ask: Any, federated: Integration, simulator: Any, server: Server
) -> None:
    simulator.trust(issuer=server.url, rules=[])
    refused = ask(message())

    assert refused.status >= 400
    assert refused.code == "PROVIDER_AUTH_FAILED"
    settled()
    assert not CostEvent.objects.exists()
    federated.refresh_from_db()
    assert federated.last_error is not None
    assert federated.last_error["code"] == "FEDERATION_REFUSED"
    assert server.url in federated.last_error["fix"]


def test_a_call_that_waited_for_a_token_is_decided_again(
    ask: Any, federated: Integration, simulator: Any, server: Server, ada_access: Access
) -> None:
    """Its integration is removed while the exchange takes longer than a second."""
    rule = rule_for(
        Federation.of_wire(federated.federation or {}),
        subject=credentials.subject_of(ada_access.org),
        delay_seconds=1.5,
    )
    simulator.trust(issuer=server.url, rules=[rule], cached=0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, message())
        wait_until(lambda: exchanged(simulator))
        integrations.remove_integration(ada_access, federated)
        answer = waiting.result()

    assert (answer.status, answer.code) == (403, "BYOK_NOT_CONFIGURED")
    assert not [request for request in simulator.requests() if request["path"] == "/v1/messages"]
    assert not Attempt.objects.exists()


def test_the_prompts_are_counted_with_the_token(ask: Any, federated: Integration) -> None:
    body = {"model": MODEL, "messages": message()["messages"]}
    assert ask(body, path="/v1/messages/count_tokens").json()["input_tokens"] > 0


@pytest.mark.parametrize("pool", ["metered", "shared"])
def test_a_pool_needs_no_key_either(
    ask: Any, ada_access: Access, make_profile: Any, server: Server, simulator: Any, pool: str
) -> None:
    federation = make_federation()
    platform.add_platform_key(
        actor=None,
        provider="claude",
        pool=pool,
        name="pool",
        federation=federation,
        workspace_id="wrkspc_1",
        model_ids=[MODEL],
        max_tokens_cap=2000,
    )
    rule = rule_for(federation, subject=f"rensei:platform:{pool}", workspaces=["default", "wrkspc_1"])
    simulator.trust(issuer=server.url, rules=[rule], cached=0)
    Entitlement.objects.filter(org=ada_access.org).update(metered_enabled=True, shared_runs_per_day=5)
    make_profile(auth_modes=[pool], is_default=True)

    assert ask(message()).status == 200
    settled()
    assert CostEvent.objects.get().pool_id == f"{pool}_pool_claude"
    assert exchanged(simulator)[0]["body"]["workspace_id"] == "wrkspc_1"
    assert_explained(simulator)


def test_the_documents_of_the_issuer_are_public(federated: Integration, server: Server, ask: Any) -> None:
    ask(message())
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
    connection.request("GET", "/.well-known/openid-configuration")
    answer = connection.getresponse()
    document = json.loads(answer.read())
    assert document["issuer"] == server.url
    assert answer.getheader("set-cookie") is None
    assert answer.getheader("cache-control") == "public, max-age=60"
    connection.close()
    settled()
