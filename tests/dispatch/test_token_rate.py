"""Tokens of an organization by the minute, whoever made the call: dispatches are refused above them."""

from typing import Any

import pytest

from billing.models import Entitlement
from integrations.keys import platform
from rensei.core.errors import RateLimited
from rensei.core.rates import rates
from rensei.core.secret import Secret
from rensei.core.usage import Usage
from rensei.dispatch import token_rate
from rensei.dispatch.admission import admit, explain, repeating, test_message
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Run

RUNS = "/api/v1/runs"


@pytest.mark.usefixtures("simulator")
class TestDispatches:
    def test_are_refused_when_the_tokens_are_used_up(
        self, ada: Any, acme: Any, api_as: Any, connect: Any, make_profile: Any, work: Any, settings: Any
    ) -> None:
        settings.RENSEI_GATEWAY_TOKENS = {**settings.RENSEI_GATEWAY_TOKENS, "org": "5/hour"}
        connect()
        make_profile()
        body = {"profileId": "prof_deep", "input": "Hello."}
        api = api_as(ada)

        first = api.post(RUNS, body)
        (run,) = work()
        refused = api.post(RUNS, body)

        used = token_rate.tokens_of(Usage.from_dict(run.usage))
        assert (first.status_code, first.headers["rensei-ratelimit-tokens-remaining"]) == (202, "5")
        assert rates.known(token_rate.key_of(acme.id)).total == used > 5
        assert (refused.status_code, refused.json()["code"]) == (429, "RATE_LIMITED")
        assert 1 <= int(refused.headers["Retry-After"]) <= 3600
        assert Run.objects.count() == 1

    def test_are_refused_wherever_they_come_from(
        self, ada_access: Any, connect: Any, make_profile: Any, work: Any, settings: Any
    ) -> None:
        integration = connect()
        make_profile()
        request = DispatchRequest(messages=messages_from(text="Hello.", messages=None), profile_id="prof_deep")
        admit.dispatch(ada_access, request)
        (run,) = work()
        settings.RENSEI_GATEWAY_TOKENS = {**settings.RENSEI_GATEWAY_TOKENS, "org": "1/hour"}

        for dispatch in (
            lambda: admit.dispatch(ada_access, request),
            lambda: repeating.repeat(ada_access, Run.objects.select_related("input").get(id=run.id)),
            lambda: test_message.send(ada_access, integration),
        ):
            with pytest.raises(RateLimited):
                dispatch()
        assert Run.objects.count() == 1

    def test_tell_how_the_caller_stands(self, ada: Any, acme: Any, api_as: Any) -> None:
        api = api_as(ada)
        answers = [api.get("/api/v1/me") for _ in range(2)]

        remaining = [int(answer.headers["rensei-ratelimit-requests-remaining"]) for answer in answers]
        assert remaining[0] - remaining[1] == 1
        assert int(answers[0].headers["rensei-ratelimit-requests-limit"]) == remaining[0] + 1


class TestTokensUnderThePlatformsKeys:
    """All organizations share the limits that the provider sets for these keys, so each has a rate of its own."""

    def test_stop_what_the_platforms_keys_sign_and_nothing_else(
        self, ada_access: Any, connect: Any, make_profile: Any, make_key: Any, settings: Any
    ) -> None:
        connect()
        platform.add_platform_key(actor=None, provider="claude", pool="metered", name="one", api_key=Secret(make_key()))
        Entitlement.objects.filter(org=ada_access.org).update(metered_enabled=True)
        settings.RENSEI_PLATFORM_TOKENS_ORG = "5/hour"
        metered, byok = (
            DispatchRequest(
                messages=messages_from(text="Hello.", messages=None),
                profile_id=make_profile(name=mode, auth_modes=[mode]).public_id,
            )
            for mode in ("metered", "byok")
        )
        usage = Usage(input_tokens=5)

        admit.dispatch(ada_access, metered)
        token_rate.note([("org_other", "metered", usage), (ada_access.org.id, "byok", usage)])
        admit.dispatch(ada_access, metered)
        token_rate.note([(ada_access.org.id, "metered", usage)])
        with pytest.raises(RateLimited) as refused:
            admit.dispatch(ada_access, metered)
        explained = explain.explain(ada_access, metered)
        admit.dispatch(ada_access, byok)

        assert type(explained.refusal) is type(refused.value)
        assert {each.mode.value: each.refusal for each in explained.alternatives}["byok"] is None
        assert Run.objects.count() == 3
