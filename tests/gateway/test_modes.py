"""Who signs and who pays: quota, budget, pools and prices hold at the gateway as they do in the queue."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from billing.models import BudgetHold, CostEvent, Entitlement, Hold, SharedUsage
from integrations.keys import platform
from integrations.models import PlatformKey
from integrations.providers.anthropic import features
from rensei.core.secret import Secret
from rensei.core.unknown import take_counts
from rensei.dispatch.models import Attempt, Run
from rensei.gateway import requests as gateway_requests
from rensei.gateway.body import Body
from rensei.orgs.access import Access
from rensei.orgs.models import Org, User
from rensei.policies import services as policies
from tests.dispatch.reconcile import assert_explained
from tests.factories import create_profile
from tests.gateway.line import MODEL, Answer, as_bytes, message, settled
from tests.gateway.wire import Wire
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

CENT = 10**10
WORDS = "word " * 8000
SEARCH_RESULT = {
    "type": "search_result",
    "source": "https://example.com",
    "title": "Found",
    "content": [{"type": "text", "text": WORDS}],
}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}
UNIFIED = "anthropic-ratelimit-unified-"


def assert_used_up(answer: Answer, *, period: str) -> None:
    """Check what makes Claude Code print our sentence alone and stop, and nothing that makes it write its own."""
    resets_at = datetime.fromisoformat(answer.json()["error"]["resets_at"])
    wait = int(answer.headers["retry-after"])
    assert abs((resets_at - datetime.now(UTC)).total_seconds() - wait) < 120
    assert answer.headers["x-should-retry"] == "false"
    assert {name: value for name, value in answer.headers.items() if name.startswith(UNIFIED)} == {
        f"{UNIFIED}status": "rejected",
        f"{UNIFIED}reset": str(int(resets_at.timestamp())),
        f"{UNIFIED}overage-reset": str(int(resets_at.timestamp())),
        f"{UNIFIED}overage-utilization": "1",
        f"{UNIFIED}overage-surpassed-threshold": "1",
        f"{UNIFIED}overage-period": period,
        f"{UNIFIED}overage-disabled-reason": "org_spend_cap_reached",
    }


class TestMetered:
    def test_bills_the_organization(self, ask: Any, metered: Any, simulator: Any) -> None:
        answer = ask(message())

        settled()
        line = CostEvent.objects.get()
        assert answer.headers["x-rensei-auth-mode"] == "metered"
        assert (line.payer, line.billed) == ("organization-via-rensei", True)
        assert line.amount_picodollars
        assert_explained(simulator)

    def test_holds_the_most_that_a_call_may_cost_and_releases_it(self, ask: Any, metered: Any, acme: Org) -> None:
        Entitlement.objects.filter(org=acme).update(monthly_budget_picodollars=100 * CENT)
        with ThreadPoolExecutor(1) as pool:
            calling = pool.submit(ask, message("[[reply 30 words]] [[slow 0.3]]", stream=True))
            wait_until(lambda: BudgetHold.objects.exists(), what="the hold")
            held = BudgetHold.objects.get().picodollars
            calling.result()

        settled()
        line = CostEvent.objects.get()
        assert held > (line.amount_picodollars or 0) > 0
        assert not BudgetHold.objects.exists()

    def test_refuses_what_does_not_fit_into_the_budget_before_any_call(
        self, ask: Any, metered: Any, acme: Org, wire: Wire
    ) -> None:
        Entitlement.objects.filter(org=acme).update(monthly_budget_picodollars=1000)

        answer = ask(message())

        assert (answer.status, answer.code) == (429, "METERED_BUDGET_EXCEEDED")
        assert answer.json()["error"]["type"] == "billing_error"
        assert_used_up(answer, period="monthly")
        assert wire.messages() == []
        assert not Attempt.objects.exists()

    @pytest.mark.parametrize(
        "asked",
        [
            {"content": [{"type": "text", "text": WORDS}]},
            {"content": [SEARCH_RESULT]},
            {"output_config": {"format": {"type": "json_schema", "schema": {"description": WORDS}}}},
            {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 1}]},
            {"content": [{"type": "document", "source": {"type": "url", "url": "https://example.com/a.pdf"}}]},
        ],
        ids=["text", "search result", "schema", "server tool", "url"],
    )
    def test_holds_for_whatever_a_prompt_is_made_of(
        self, ask: Any, metered: Any, acme: Org, wire: Wire, asked: dict[str, Any]
    ) -> None:
        Entitlement.objects.filter(org=acme).update(monthly_budget_picodollars=5 * CENT)
        content = asked.pop("content", "Hello.")

        answers = [
            ask({**message(**asked), "max_tokens": 16, "messages": [{"role": "user", "content": content}]})
            for _ in range(2)
        ]

        assert [answer.code for answer in answers] == ["METERED_BUDGET_EXCEEDED"] * 2
        assert wire.messages() == []

    def test_never_spends_more_than_the_budget_in_parallel(
        self, ask: Any, metered: Any, acme: Org, simulator: Any
    ) -> None:
        ask(message())
        settled()
        most = CostEvent.objects.get().amount_picodollars or 0
        Entitlement.objects.filter(org=acme).update(monthly_budget_picodollars=most + 6 * CENT)

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: ask(message()), range(24)))

        settled()
        assert {answer.status for answer in answers} == {200, 429}
        assert sum(line.amount_picodollars or 0 for line in CostEvent.objects.all()) <= most + 6 * CENT
        assert_explained(simulator)

    def test_refuses_who_is_not_entitled(self, ask: Any, metered: Any, acme: Org) -> None:
        Entitlement.objects.filter(org=acme).update(metered_enabled=False)

        assert ask(message()).code == "METERED_NOT_ENTITLED"


class TestShared:
    def test_costs_the_organization_nothing(self, ask: Any, shared: Any, simulator: Any) -> None:
        answer = ask(message())

        settled()
        line = CostEvent.objects.get()
        assert answer.headers["x-rensei-auth-mode"] == "shared"
        assert (line.payer, line.billed) == ("platform", False)
        assert_explained(simulator)

    def test_gives_exactly_the_days_runs_to_fifty_calls_at_once(
        self, ask: Any, shared: Any, acme: Org, simulator: Any
    ) -> None:
        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(lambda _: ask(message()), range(50)))

        settled()
        refused = [answer for answer in answers if answer.status != 200]
        assert len(answers) - len(refused) == 20
        assert {(answer.status, answer.code) for answer in refused} == {(429, "SHARED_QUOTA_EXCEEDED")}
        for answer in refused:
            assert_used_up(answer, period="daily")
        assert [(usage.used, usage.held) for usage in SharedUsage.objects.all()] == [(20, 0)]
        assert not Hold.objects.exists()
        assert_explained(simulator)

    @pytest.mark.parametrize("uses", [None, 0, 10**12, 2**63 - 1])
    @pytest.mark.parametrize("mode", ["shared", "metered"])
    def test_and_metered_ask_for_a_limit_of_searches(
        self, ask: Any, request: Any, wire: Wire, mode: str, uses: int | None
    ) -> None:
        request.getfixturevalue(mode)
        limit = {} if uses is None else {"max_uses": uses}

        answer = ask(message(tools=[{"type": "web_search_20250305", "name": "web_search", **limit}]))

        assert (answer.status, answer.code) == (400, "VALIDATION_FAILED")
        assert "`max_uses` from 1 to 1000" in answer.json()["error"]["message"]
        assert wire.messages() == []

    @pytest.mark.parametrize(
        "asked",
        [
            {"container": "container_1"},
            {"mcp_servers": [{"type": "url", "name": "x", "url": "https://example.com"}]},
            {"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]},
            {"tools": [{"type": "made_up_20990101", "name": "made_up"}]},
            {"tools": [{"type": "memory_20990101", "name": "memory"}]},
            {"made_up": 1},
            {"service_tier": "dearest"},
            {"messages": [{"role": "user", "content": [{"type": "tool_set_2027", "x": {"definition": SEARCH}}]}]},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi.", "file_id": "file_1"}]}]},
            {"messages": [{"role": "user", "content": "Hi.", "attachments": [{"url": "https://example.com"}]}]},
        ],
        ids=["container", "mcp", "code", "unknown", "date", "field", "value", "block", "member", "member of a message"],
    )
    @pytest.mark.parametrize("mode", ["shared", "metered"])
    def test_and_metered_refuse_what_has_no_price(
        self, ask: Any, request: Any, wire: Wire, mode: str, asked: dict[str, Any]
    ) -> None:
        request.getfixturevalue(mode)

        answer = ask(message(**asked))

        assert (answer.status, answer.code) == (403, "MODEL_UNPRICED")
        assert wire.messages() == []

    @pytest.mark.parametrize(
        ("headers", "path", "name"),
        [
            ({"anthropic_version": "2027-01-01"}, "", "anthropic-version: 2027-01-01"),
            ({}, "?beta=true&tier=best", "tier"),
        ],
        ids=["version", "query"],
    )
    @pytest.mark.parametrize("mode", ["shared", "metered"])
    def test_and_metered_refuse_what_is_asked_for_beside_the_body(
        self, ask: Any, request: Any, wire: Wire, mode: str, headers: dict[str, str], path: str, name: str
    ) -> None:
        request.getfixturevalue(mode)

        answer = ask(message(), path=f"/v1/messages{path}", **headers)

        assert (answer.status, answer.code) == (403, "MODEL_UNPRICED")
        assert f"'{name}', which this version of Rensei does not know," in answer.json()["error"]["message"]
        assert wire.messages() == []

    @pytest.mark.parametrize("mode", ["shared", "metered"])
    def test_and_metered_name_a_beta_that_a_client_can_leave_out(
        self, ask: Any, request: Any, wire: Wire, mode: str
    ) -> None:
        request.getfixturevalue(mode)

        answer = ask(message(), anthropic_beta="web-fetch-2025-09-10,giant-window-2027-01-01")

        assert (answer.status, answer.json()["error"]["type"]) == (400, "invalid_request_error")
        assert "capability_rejected: beta_header:giant-window-2027-01-01" in answer.json()["error"]["message"]
        assert wire.messages() == []

    @pytest.mark.parametrize("mode", ["shared", "metered"])
    def test_and_metered_leave_out_a_beta_of_which_nothing_is_documented(
        self, ask: Any, request: Any, wire: Wire, mode: str
    ) -> None:
        request.getfixturevalue(mode)

        both = ask(message(), anthropic_beta="effort-2025-11-24, subagent-review-2026-11-17")
        alone = ask(message(), anthropic_beta="cache-keepalive-2026-09-03")

        assert (both.status, alone.status) == (200, 200)
        first, second = wire.messages()
        assert first.headers["anthropic-beta"] == "effort-2025-11-24"
        assert "anthropic-beta" not in second.headers

    @pytest.mark.parametrize("mode", ["shared", "metered"])
    def test_and_metered_count_no_tokens_with_an_unknown_beta(
        self, ask: Any, request: Any, wire: Wire, mode: str
    ) -> None:
        request.getfixturevalue(mode)
        body = {name: message()[name] for name in ("model", "messages")}

        beta = ask(body, path="/v1/messages/count_tokens", anthropic_beta="giant-window-2027-01-01")
        tier = ask(body, path="/v1/messages/count_tokens?tier=best")

        assert "beta_header:giant-window-2027-01-01" in beta.json()["error"]["message"]
        assert (tier.status, tier.code) == (403, "MODEL_UNPRICED")
        assert wire.passed == []

    @pytest.mark.parametrize("mode", ["shared", "metered"])
    def test_and_metered_do_not_forward_unknown_headers(self, ask: Any, request: Any, wire: Wire, mode: str) -> None:
        request.getfixturevalue(mode)

        profile = {"anthropic_user_profile_id": "someone"}
        answer = ask(message(), anthropic_spend="more", anthropic_client_platform="desktop", **profile)

        assert answer.status == 200
        (sent,) = wire.messages()
        assert "anthropic-spend" not in sent.headers
        assert "anthropic-user-profile-id" not in sent.headers
        assert sent.headers["anthropic-client-platform"] == "desktop"


class TestByok:
    def test_passes_on_and_counts_what_is_not_known(self, way: Any) -> None:
        route = way("plain", model_id=MODEL)
        body = Body.read(as_bytes(message(made_up=1, tools=[{"type": "tool_x"}])) or b"")
        take_counts()

        headers = {"anthropic-beta": "giant-2027"}
        unknown = gateway_requests.unknown_in(body, headers, "tier=best")
        outgoing = gateway_requests.prepare(body, route, headers=headers, unknown=unknown)

        assert outgoing.body.raw == body.raw
        assert take_counts() == {
            ("request_field", "made_up"): 1,
            ("tool_type", "tool_x"): 1,
            ("header", "anthropic-beta: giant-2027"): 1,
            ("query_parameter", "tier"): 1,
        }

    @pytest.mark.parametrize(
        ("fields", "headers", "status", "said"),
        [
            ({"tools": [{"type": "subagent_20270101", "name": "s"}]}, {}, 403, "the provider would choose"),
            ({}, {"anthropic_beta": "review-2027-01-01"}, 400, "capability_rejected: beta_header:review-2027-01-01"),
        ],
        ids=["tool", "beta"],
    )
    def test_refuses_what_may_run_any_model_where_a_policy_denies_some(
        self, ask: Any, byok: Any, wire: Wire, ada_access: Access, fields: Any, headers: Any, status: int, said: str
    ) -> None:
        take_counts()
        policies.set_policy(ada_access, matrix={"claude-haiku-4-5-20251001": {"byok": {"allowed": False}}})

        answer = ask(message(**fields), **headers)

        assert answer.status == status
        assert said in answer.json()["error"]["message"]
        assert wire.messages() == []

    @pytest.mark.parametrize("denies", [True, False], ids=["a policy", "no policy"])
    def test_leaves_out_a_beta_of_which_nothing_is_documented_where_a_policy_denies_a_model(
        self, ask: Any, byok: Any, wire: Wire, ada_access: Access, denies: bool
    ) -> None:
        if denies:
            policies.set_policy(ada_access, matrix={"claude-haiku-4-5-20251001": {"byok": {"allowed": False}}})

        assert ask(message(), anthropic_beta="subagent-review-2026-11-17").status == 200

        (sent,) = wire.messages()
        assert ("anthropic-beta" in sent.headers) is not denies

    def test_passes_on_what_has_no_price(self, ask: Any, byok: Any, wire: Wire, simulator: Any) -> None:
        answer = ask(message(tools=[{"type": "made_up_20990101", "name": "made_up"}]))
        simulator.reset()

        # The simulator, as the provider, refuses it; that is the provider's to do.
        assert "code" not in answer.json().get("error", {})
        assert len(wire.messages()) == 1


class TestAPool:
    @pytest.mark.parametrize("is_there", [True, False], ids=["one key", "no key"])
    def test_signs_with_a_key_that_serves_every_model_of_a_call(
        self, ask: Any, shared: Any, make_key: Any, wire: Wire, simulator: Any, is_there: bool
    ) -> None:
        haiku = "claude-haiku-4-5-20251001"
        named = {"fallbacks": [{"model": haiku}]}
        betas = {"anthropic_beta": "server-side-fallback-2026-07-01"}

        def add(name: str, *model_ids: str, cap: int) -> PlatformKey:
            return platform.add_platform_key(
                actor=None,
                provider="claude",
                pool="shared",
                name=name,
                api_key=Secret(make_key()),
                model_ids=list(model_ids),
                max_tokens_cap=cap,
            )

        small = add("small", haiku, cap=500)
        both = add("both", MODEL, haiku, cap=400) if is_there else None
        answers = []
        for _ in range(3):
            answers.append(ask(message(**named), **betas))
            settled()

        if both is None:
            assert {answer.code for answer in answers} == {"SHARED_KEY_NOT_CONFIGURED"}
            assert f"'{MODEL} and {haiku}'" in answers[0].json()["error"]["message"]
        else:
            assert {answer.status for answer in answers} == {200}
            assert {run.credential_id for run in Run.objects.all()} == {both.id} != {small.id}
            assert sent_max_tokens(wire) == 400

    @pytest.mark.parametrize("word", ["revoked", "ratelimited", "nocredit"])
    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
    def test_goes_on_with_its_next_key_each_try_its_own_attempt(
        self, ask: Any, metered: Any, add_key: Any, simulator: Any, word: str, stream: bool
    ) -> None:
        good = PlatformKey.objects.get()
        bad = add_key("metered", word)

        answer = ask(message(stream=stream))

        settled()
        assert answer.status == 200, answer.body
        run = Run.objects.get()
        attempts = run.attempts.order_by("number")
        assert [attempt.credential_id for attempt in attempts] == [bad.id, good.id]
        bad.refresh_from_db()
        assert bad.cools_until(MODEL, run.created_at) or bad.health == PlatformKey.Health.QUARANTINED
        assert answer.headers["x-rensei-run-id"] == run.id
        assert_explained(simulator)

    def test_without_a_good_key_answers_with_our_error_and_not_the_providers(
        self, ask: Any, metered: Any, add_key: Any, simulator: Any
    ) -> None:
        PlatformKey.objects.all().delete()
        add_key("metered", "revoked")

        first, second = ask(message()), ask(message())

        settled()
        for answer in (first, second):
            assert (answer.status, answer.code) == (403, "METERED_KEY_NOT_CONFIGURED")
            assert b"x-api-key" not in answer.body
        assert Run.objects.get(id=first.headers["x-rensei-run-id"]).state == Run.State.FAILED
        assert_explained(simulator)

    def test_passes_on_what_is_about_the_request(self, ask: Any, metered: Any, wire: Wire) -> None:
        answer = ask(message("[[fault:529]]"))

        assert answer.status == 529
        assert answer.body == bytes(wire.messages()[0].answer)
        assert len(wire.messages()) == 1


class TestAKeyThatTwoOrganizationsShare:
    """What one organization asks for does not take the key from the other."""

    HAIKU = "claude-haiku-4-5-20251001"
    # A model that has fast mode, and one that has a long window by a beta.
    FAST = "claude-opus-4-8"
    LONG = "claude-sonnet-4-5-20250929"

    @pytest.fixture
    def others(self, ask: Any, metered: Any, eve: User, access_of: Any, make_token: Any) -> Any:
        access = access_of(eve, "evil")
        Entitlement.objects.filter(org=access.org).update(metered_enabled=True)
        create_profile(access, auth_modes=["metered"], is_default=True)
        return partial(ask, x_api_key=make_token(access))

    def test_is_limited_for_the_model_of_the_call_only(self, ask: Any, others: Any) -> None:
        assert others(message("[[fault:429]]")).status == 429

        assert ask(message(model=self.HAIKU)).status == 200
        assert ask(message()).code == "METERED_KEY_NOT_CONFIGURED"
        settled()
        (limit,) = PlatformKey.objects.get().cooling_models
        assert limit == MODEL

    def test_is_limited_in_fast_mode_apart(self, ask: Any, others: Any) -> None:
        fast = {"model": self.FAST, "speed": "fast"}
        beta = {"anthropic_beta": "fast-mode-2026-02-01"}
        assert others(message("[[fault:429]]", **fast), **beta).status == 429

        assert ask(message(model=self.FAST)).status == 200
        assert ask(message(**fast), **beta).code == "METERED_KEY_NOT_CONFIGURED"
        settled()

    def test_is_limited_for_long_windows_apart(self, ask: Any, others: Any) -> None:
        beta = {"anthropic_beta": "context-1m-2025-08-07"}
        assert others(message("[[fault:429]]", model=self.LONG), **beta).status == 429

        assert ask(message(model=self.LONG)).status == 200
        assert ask(message(model=self.LONG), **beta).code == "METERED_KEY_NOT_CONFIGURED"
        settled()

    def test_is_not_judged_by_what_one_of_them_may_not_do(self, ask: Any, others: Any) -> None:
        for _ in range(4):
            assert others(message("[[fault:403]]")).code == "METERED_KEY_NOT_CONFIGURED"

        assert ask(message()).status == 200
        settled()

    def test_is_judged_by_both_if_no_call_succeeds_between(self, ask: Any, others: Any) -> None:
        ask(message("[[fault:403]]"))
        assert ask(message()).status == 200
        settled()
        others(message("[[fault:403]]"))
        assert others(message()).status == 200
        settled()

        ask(message("[[fault:403]]"))
        others(message("[[fault:403]]"))

        settled()
        wait_until(lambda: others(message()).status == 403, what="the notice of the change")
        assert others(message(model=self.HAIKU)).status == 200
        settled()


class TestCountTokens:
    def test_is_signed_by_the_pools_key_and_costs_nothing(self, ask: Any, shared: Any, wire: Wire, acme: Org) -> None:
        body = {"model": "prof_deep", "messages": message()["messages"]}

        answer = ask(body, path="/v1/messages/count_tokens")

        assert answer.json()["input_tokens"] > 0
        assert not Run.objects.exists()
        assert not SharedUsage.objects.exclude(used=0, held=0).exists()


def sent_max_tokens(wire: Wire) -> int:
    found: int = json.loads(wire.messages()[-1].body)["max_tokens"]
    return found


class TestBandsFor:
    def test_are_those_of_each_requests_own_region_and_speed(self, way: Any) -> None:
        route = way("Fast")
        bodies: list[dict[str, Any]] = [{}, {"inference_geo": "global"}, {"speed": "fast"}, {"inference_geo": "us"}, {}]

        for body in bodies:
            factor = features.highest_factor(body)

            assert route.bands_for(features.price_factors_of(body)) == [band.times(factor) for band in route.bands]
