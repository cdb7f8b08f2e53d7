"""A dispatch by REST is judged and held as a call at the gateway: the unknown is neither free nor allowed in it."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from billing.models import BudgetHold, Entitlement
from catalog.pricing import UnitPrices, band_for, cost
from integrations.keys import platform
from integrations.providers.anthropic.unknown import unknown_in
from profiles.models import ModelProfile
from rensei.core.errors import FieldError, RenseiError
from rensei.core.secret import Secret
from rensei.core.unknown import take_counts
from rensei.core.usage import Usage
from rensei.dispatch import context, pools
from rensei.dispatch.admission import decide
from rensei.dispatch.admission.requests import DispatchRequest, check_system, messages_from
from rensei.dispatch.context import DispatchContext
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.orgs.models import User
from rensei.policies import services as policies
from rensei.simulator.model_facts import find_model
from rensei.simulator.prompt_cache import cut_prompt
from tests.gateway import bodies as gateway_bodies
from tests.integrations.anthropic import bodies

pytestmark = pytest.mark.django_db(transaction=True)

MODEL, HAIKU = "claude-opus-5-5", "claude-haiku-4-5-20251001"
# The highest factor that a request without a region may be served at.
MOST = Fraction(11, 10)
DOCUMENT = {"type": "document", "future": 1, "source": {"type": "content", "content": [{"type": "made_up"}]}}


@pytest.fixture
def metered(ada_access: Access, make_profile: Any, make_key: Callable[..., str]) -> None:
    """A key of the platform signs for two models."""
    for name, model_id in (("deep", MODEL), ("small", HAIKU)):
        make_profile(name=name, auth_modes=["metered"], model_id=model_id)
    platform.add_platform_key(actor=None, provider="claude", pool="metered", name="one", api_key=Secret(make_key()))
    Entitlement.objects.filter(org=ada_access.org).update(metered_enabled=True)


@pytest.fixture
def api(api_as: Callable[..., APIClient], ada: User, ada_access: Access) -> APIClient:
    return api_as(ada)


def send(api: APIClient, *blocks: dict[str, Any], **fields: Any) -> Any:
    messages = [{"role": "user", "content": list(blocks)}]
    return api.post("/api/v1/runs", {"profileId": "prof_deep", "messages": messages, **fields})


class TestAnUnknownPart:
    def test_is_refused_under_a_key_of_the_platform_and_counted(self, api: APIClient, metered: None) -> None:
        take_counts()

        answer = send(api, DOCUMENT)

        assert (answer.status_code, answer.json()["code"]) == (409, "MODEL_UNPRICED")
        assert "'made_up', which this version of Rensei does not know," in answer.json()["detail"]
        assert not Run.objects.exists()
        assert not BudgetHold.objects.exists()
        assert take_counts() == {("block_type", "made_up"): 1, ("member", "document.future"): 1}

    def test_is_counted_where_the_organization_signs(
        self, api: APIClient, connect: Any, make_profile: Any, simulator: Any
    ) -> None:
        connect()
        make_profile()
        take_counts()

        assert send(api, DOCUMENT).status_code == 202
        assert ("block_type", "made_up") in take_counts()

    def test_reaches_no_model_where_a_policy_denies_some(
        self, api: APIClient, connect: Any, make_profile: Any, simulator: Any, ada_access: Access
    ) -> None:
        connect()
        make_profile()
        policies.set_policy(ada_access, matrix={HAIKU: {"byok": {"allowed": False}}})

        answer = send(api, {"type": "text", "text": "Hi.", "answered_by": HAIKU})

        assert (answer.status_code, answer.json()["code"]) == (403, "MODEL_NOT_ALLOWED_BY_POLICY")


class TestTheHold:
    def test_is_never_below_the_price_of_what_is_sent(self, metered: None, ada_access: Access) -> None:
        profiles = {model_id: _load(ada_access, model_id) for model_id in (MODEL, HAIKU)}
        anything = st.one_of(
            st.sampled_from([MODEL, HAIKU]).flatmap(gateway_bodies.requests), bodies.any_bodies, bodies.known_bodies
        )

        @settings(max_examples=bodies.NUMBER, deadline=None, suppress_health_check=list(HealthCheck))
        @given(
            body=anything,
            model_id=st.sampled_from([MODEL, HAIKU]),
            caching=st.sampled_from(["off", "ephemeral", "static"]),
            effort=st.sampled_from([None, "low", "high"]),
            max_tokens=st.sampled_from([None, 0, 1, 2000, 60_000]),
        )
        def check(
            body: dict[str, Any], model_id: str, caching: str, effort: str | None, max_tokens: int | None
        ) -> None:
            found = profiles[model_id]
            try:
                request = DispatchRequest(
                    system=check_system(body.get("system") or None),
                    messages=messages_from(text=None, messages=body["messages"]),
                    effort=effort,
                    max_tokens=max_tokens,
                    prompt_caching=caching,
                )
                judged = decide.decide(found, request)
            except FieldError:
                assume(False)
            if judged.refusal is not None:
                is_unknown = judged.built is not None and bool(judged.built.unknown)
                event(f"refused {judged.refusal.code}, unknown {is_unknown}")
                return
            assert judged.built is not None
            assert judged.decision.mode is not None
            assert not unknown_in(judged.built.params).names

            held = decide.max_cost(found, judged.decision.mode, judged.built)

            assert held is not None
            assert held >= _price(judged.built.params, found.prices_of(judged.entry), model_id=model_id)
            event("held")

        check()


def _load(access: Access, model_id: str) -> DispatchContext:
    profile = ModelProfile.objects.get(model_id=model_id)
    (found,) = context.load(access, [profile], project=None, pool=pools.find_pool(access.org, "local"))
    assert not isinstance(found, RenseiError)
    return found


def _price(params: dict[str, Any], bands: list[UnitPrices], *, model_id: str) -> int:
    """The price of what the simulator counts, written to the cache by its breakpoints, and of the longest answer."""
    model = find_model(model_id)
    assert model is not None
    read, written = 0, {"5m": 0, "1h": 0}
    waiting = 0
    for segment in cut_prompt(params, model=model, key_sha256=""):
        waiting = segment.tokens_up_to_here - read
        if segment.ttl is not None:
            written[segment.ttl] += waiting
            read, waiting = segment.tokens_up_to_here, 0
    if read + waiting > model.context_window:
        # The provider refuses it, and bills nothing.
        return 0
    usage = Usage(
        input_tokens=waiting,
        cache_write_5m_tokens=written["5m"],
        cache_write_1h_tokens=written["1h"],
        output_tokens=params["max_tokens"],
    )
    return cost(usage, band_for(bands, prompt_tokens=usage.prompt_tokens).times(MOST))
