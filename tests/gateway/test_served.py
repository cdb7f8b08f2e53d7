"""What a call costs by what served it: its parts and their models, its region, its speed and its tier."""

import json
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from billing.models import BudgetUsage, CostEvent, Entitlement, UsageDaily
from billing.statements import statements
from catalog import services as catalog
from catalog.models import CatalogEntry, Identity, Price
from rensei.audit.models import AuditEvent
from rensei.core.money import PICODOLLARS_PER_DOLLAR
from rensei.dispatch.models import Run
from rensei.dispatch.settlement import audit
from rensei.policies import documents
from tests.dispatch.reconcile import assert_explained
from tests.gateway.line import MODEL, message, searched, settled
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

HAIKU = "claude-haiku-4-5-20251001"
OWN = "made-up-by-acme"
COMPACTION = {
    "type": "compaction",
    "input_tokens": 180_000,
    "output_tokens": 3_500,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
}


def iteration(kind: str, tokens_in: int, tokens_out: int, **more: Any) -> dict[str, Any]:
    return {**COMPACTION, "type": kind, "input_tokens": tokens_in, "output_tokens": tokens_out, **more}


def told(usage: dict[str, Any], *, serves: str = "", **fields: Any) -> dict[str, Any]:
    """A request whose answer says that it used so much, and what served it."""
    directive = f"[[serve {serves}]] " if serves else ""
    none = {"cache_creation": None, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    return message(f"{directive}[[usage {json.dumps({**none, **usage})}]]", **fields)


def dollars_of(*lines: CostEvent) -> list[Decimal]:
    return [Decimal(line.amount_picodollars) / PICODOLLARS_PER_DOLLAR for line in lines]


def charge() -> CostEvent:
    settled()
    return CostEvent.objects.get()


@pytest.fixture(params=[False, True], ids=["whole", "stream"])
def stream(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


class TestACompaction:
    def test_is_charged_beside_the_counts_of_the_answer(self, ask: Any, metered: Any, stream: bool) -> None:
        iterations = [COMPACTION, iteration("message", 23_000, 1_000)]
        ask(told({"input_tokens": 23_000, "output_tokens": 1_000, "iterations": iterations}, stream=stream))

        line = charge()
        assert dollars_of(line) == [Decimal("0.902000")]
        assert (line.input_tokens, line.output_tokens, line.estimated) == (203_000, 4_500, False)
        assert list(audit.differences()) == []

    def test_is_charged_where_nothing_else_was_done(self, ask: Any, metered: Any, stream: bool) -> None:
        ask(told({"input_tokens": 0, "output_tokens": 0, "iterations": [COMPACTION]}, stream=stream))

        assert dollars_of(charge()) == [Decimal("0.79")]


class TestFactors:
    @pytest.mark.parametrize(
        ("asked", "served", "amount"),
        [
            ({}, {"inference_geo": "us"}, "4.40"),
            ({"inference_geo": "us"}, {"inference_geo": "global"}, "4.00"),
            ({}, {"inference_geo": "not_available"}, "4.00"),
            ({"speed": "fast"}, {"speed": "standard"}, "4.00"),
            ({"speed": "fast"}, {}, "8.00"),
            ({"speed": "fast"}, {"speed": "fast", "inference_geo": "us"}, "8.80"),
            ({}, {"service_tier": "priority"}, "4.00"),
        ],
    )
    def test_are_those_of_what_served(
        self, ask: Any, metered: Any, asked: dict[str, str], served: dict[str, str], amount: str
    ) -> None:
        answer = ask(told({"input_tokens": 1_000_000, "output_tokens": 0, **served}, **asked))

        assert answer.status == 200, answer.body
        assert dollars_of(charge()) == [Decimal(amount)]
        assert not charge().estimated
        assert list(audit.differences()) == []

    @pytest.mark.parametrize(
        ("served", "amount"),
        [({"inference_geo": "mars"}, "4.40"), ({"speed": "warp"}, "8.00"), ({"service_tier": "gold"}, "4.00")],
    )
    def test_that_are_not_known_are_the_dearest_and_flagged(
        self, ask: Any, metered: Any, served: dict[str, str], amount: str
    ) -> None:
        ask(told({"input_tokens": 1_000_000, "output_tokens": 0, **served}))

        assert dollars_of(charge()) == [Decimal(amount)]
        assert charge().estimated

    def test_are_in_the_hold_before_they_are_known(self, ask: Any, acme: Any, metered: Any) -> None:
        # The output alone may cost 4 cents, and 4.4 in a region that the workspace may have.
        Entitlement.objects.filter(org=acme).update(monthly_budget_picodollars=42 * PICODOLLARS_PER_DOLLAR // 1000)

        refused = ask(message(max_tokens=2_000))
        taken = ask(message(max_tokens=2_000, inference_geo="global"))

        assert (refused.code, taken.status) == ("METERED_BUDGET_EXCEEDED", 200)


class TestASearchWithoutAPrice:
    @pytest.fixture(autouse=True)
    def _unpriced(self, server: Any) -> None:
        Price.objects.filter(entry__model_id=MODEL).update(web_search_picodollars=None)

    @pytest.mark.parametrize("counted", ["web_search_requests", "x_requests"])
    @pytest.mark.parametrize("payer", ["metered", "shared"])
    def test_has_that_of_the_provider_where_the_platform_signs(
        self, request: Any, ask: Any, stream: bool, payer: str, counted: str
    ) -> None:
        request.getfixturevalue(payer)
        usage = {"input_tokens": 1_000, "output_tokens": 500, "server_tool_use": {counted: 3}}
        ask(told(usage, stream=stream))

        line = charge()
        assert dollars_of(line) == [Decimal("0.044")]
        assert (line.estimated, line.billed) == (True, payer == "metered")
        assert Run.objects.get().amount_picodollars == line.amount_picodollars
        assert list(audit.differences()) == []

    def test_makes_the_line_unpriced_where_the_organization_pays(self, ask: Any, byok: Any, stream: bool) -> None:
        usage = {"input_tokens": 1_000, "output_tokens": 500, "server_tool_use": {"web_search_requests": 3}}
        ask(told(usage, stream=stream))

        assert charge().amount_picodollars is None
        assert list(audit.differences()) == []


class TestACallThatIsNotReportedToItsEnd:
    """The searches and the later prompts of an answer are told by its last report alone."""

    def begin(self, ask: Any, text: str, *, how: str, api: Any, wire: Any, **fields: Any) -> None:
        usage = {"input_tokens": 1_000, "cache_creation": None, "cache_creation_input_tokens": 0}
        asked = f"[[usage {json.dumps(usage)}]] {text} [[reply 60 words]]"
        if how == "broken":
            ask(message(f"{asked} [[fault:cut after=18]]", stream=True, **fields))
        else:
            with ThreadPoolExecutor(1) as pool:
                calling = pool.submit(ask, message(f"{asked} [[stall after=18]]", stream=True, **fields))
                wait_until(lambda: any(b"text_delta" in passed.answer for passed in wire.messages()), what="the text")
                assert api.post(f"/api/v1/runs/{Run.objects.get().id}/cancel", {}).status_code in {200, 202}
                calling.result(timeout=60)
        settled()

    @pytest.fixture
    def api(self, api_as: Any, ada: Any) -> Any:
        return api_as(ada)

    @pytest.mark.parametrize("how", ["broken", "cancelled"])
    @pytest.mark.parametrize("payer", ["metered", "shared", "byok"])
    def test_is_charged_for_what_was_seen_to_begin(
        self, request: Any, ask: Any, api: Any, wire: Any, simulator: Any, payer: str, how: str
    ) -> None:
        request.getfixturevalue(payer)
        self.begin(ask, searched(2), how=how, api=api, wire=wire, max_tokens=2_000)

        line = charge()
        assert (line.web_search_requests, line.input_tokens, line.estimated) == (2, 3 * 1_000 + 2 * 100, True)
        assert 10 < line.output_tokens < 60
        assert line.billed is (payer == "metered")
        assert line.amount_picodollars > 2 * PICODOLLARS_PER_DOLLAR // 100
        assert_explained(simulator)

    @pytest.mark.parametrize("how", ["broken", "cancelled"])
    def test_costs_no_more_than_was_held_unless_the_provider_says_so(
        self, ask: Any, api: Any, wire: Any, acme: Any, metered: Any, simulator: Any, how: str
    ) -> None:
        budget = 3 * PICODOLLARS_PER_DOLLAR // 100
        Entitlement.objects.filter(org=acme).update(monthly_budget_picodollars=budget)
        self.begin(ask, searched(5), how=how, api=api, wire=wire, max_tokens=100)

        line = charge()
        assert 4_000_000_000 <= line.amount_picodollars <= budget
        assert line.estimated
        assert_explained(simulator)


class TestAnotherModel:
    def test_that_was_consulted_has_a_line_of_its_own(self, ask: Any, metered: Any, stream: bool) -> None:
        iterations = [
            iteration("message", 900, 100),
            iteration("advisor_message", 5_000, 600, model=HAIKU, cache_read_input_tokens=1_000),
            iteration("message", 100, 400),
            iteration("advisor_message", 1_000, 400, model=HAIKU),
        ]
        ask(told({"input_tokens": 1_000, "output_tokens": 500, "iterations": iterations}, stream=stream))

        settled()
        own, other = CostEvent.objects.order_by("-served_model_id")
        assert (own.served_model_id, other.served_model_id) == (MODEL, HAIKU)
        assert own.attempt_id == other.attempt_id
        assert own.model_id == other.model_id == MODEL
        assert (other.input_tokens, other.output_tokens, other.cache_read_tokens) == (6_000, 1_000, 1_000)
        assert dollars_of(own, other) == [Decimal("0.014"), Decimal("0.0111")]
        run = Run.objects.get()
        assert run.amount_picodollars == own.amount_picodollars + other.amount_picodollars
        assert run.usage["input_tokens"] == 7_000
        assert {row.served_model_id for row in UsageDaily.objects.all()} == {MODEL, HAIKU}
        month = BudgetUsage.objects.get()
        assert month.used == run.amount_picodollars
        statement = statements.read_ledger(month.org, month.month)
        assert statement.total_picodollars == run.amount_picodollars
        assert {line.served_model_id for line in statement.lines} == {MODEL, HAIKU}
        assert list(audit.differences()) == []

    def test_that_answered_instead_decides_the_price(self, ask: Any, metered: Any, stream: bool) -> None:
        iterations = [
            iteration("message", 9_000, 7, model=MODEL),
            iteration("fallback_message", 8_000, 500, model=HAIKU),
        ]
        usage = {"input_tokens": 8_000, "output_tokens": 500, "iterations": iterations}
        ask(told(usage, serves=HAIKU, stream=stream))

        line = charge()
        assert (line.model_id, line.served_model_id) == (MODEL, HAIKU)
        assert dollars_of(line) == [Decimal("0.0105")]
        assert list(audit.differences()) == []

    def test_that_only_the_iterations_name_decides_it_too(self, ask: Any, metered: Any, stream: bool) -> None:
        iterations = [iteration("fallback_message", 8_000, 500, model=HAIKU)]
        ask(told({"input_tokens": 8_000, "output_tokens": 500, "iterations": iterations}, stream=stream))

        assert (charge().served_model_id, dollars_of(charge())) == (HAIKU, [Decimal("0.0105")])

    def test_that_is_not_known_has_no_price_where_the_organization_pays(
        self, ask: Any, byok: Any, stream: bool
    ) -> None:
        ask(told({"input_tokens": 1_000, "output_tokens": 500}, serves="made-up-9", stream=stream))

        line = charge()
        assert (line.served_model_id, line.amount_picodollars, line.estimated) == ("made-up-9", None, True)
        assert Run.objects.get().amount_picodollars is None
        assert list(audit.differences()) == []

    def test_that_is_not_known_is_never_free_where_the_platform_signs(
        self, ask: Any, metered: Any, stream: bool
    ) -> None:
        ask(told({"input_tokens": 1_000, "output_tokens": 500}, serves="made-up-9", stream=stream))

        line = charge()
        assert (line.served_model_id, line.estimated, line.billed) == ("made-up-9", True, True)
        assert dollars_of(line) == [Decimal("0.014")]
        assert list(audit.differences()) == []

    def test_that_the_catalog_learns_later_changes_nothing(self, ask: Any, byok: Any) -> None:
        ask(told({"input_tokens": 1_000, "output_tokens": 500}, serves="made-up-9"))
        settled()

        entry = CatalogEntry.objects.get(model_id=MODEL)
        prices = list(entry.prices.all())
        entry.pk, entry.model_id = None, "made-up-9"
        entry.save()
        for price in prices:
            price.pk, price.entry = None, entry
            price.save()

        assert list(audit.differences()) == []

    def test_has_the_prices_of_the_moment_when_the_run_was_made(self, ask: Any, metered: Any) -> None:
        iterations = [iteration("advisor_message", 1_000_000, 0, model=HAIKU)]
        ask(told({"input_tokens": 0, "output_tokens": 0, "iterations": iterations}))
        settled()

        price = CatalogEntry.objects.get(model_id=HAIKU).prices.get()
        price.pk, price.effective_from, price.input_microdollars = None, Run.objects.get().finished_at, 1
        price.save()

        assert dollars_of(CostEvent.objects.get(served_model_id=HAIKU)) == [Decimal(1)]
        assert list(audit.differences()) == []


class TestAKindOfIterationThatIsNotKnown:
    def test_reaches_a_denied_model_once(self, ask: Any, byok: Any, ada_access: Any) -> None:
        documents.set_policy(ada_access, matrix={HAIKU: {"byok": {"allowed": False}}})
        usage = {"input_tokens": 9, "output_tokens": 9, "iterations": [iteration("subagent", 1_000, 100, model=HAIKU)]}

        first = ask(told(usage))
        settled()
        wait_until(lambda: ask(told(usage)).status == 403, what="the refusal")

        assert first.status == 200
        assert ask(told(usage)).code == "MODEL_NOT_ALLOWED_BY_POLICY"
        event = AuditEvent.objects.get(action="catalog_entry.blocked")
        assert (event.object_id, event.detail["answeredBy"]) == (MODEL, HAIKU)

    def test_of_a_model_that_the_request_names_blocks_nothing_when_a_policy_begins_to_deny_it(
        self, ask: Any, byok: Any, ada_access: Any, wire: Any
    ) -> None:
        usage = {"input_tokens": 9, "output_tokens": 9}
        body = told(usage, serves=HAIKU)
        body["messages"][0]["content"] += " [[slow 1]]"

        with ThreadPoolExecutor(1) as pool:
            calling = pool.submit(ask, {**body, "fallbacks": [{"model": HAIKU}]}, **BETAS)
            wait_until(lambda: bool(wire.messages()), what="the call")
            documents.set_policy(ada_access, matrix={HAIKU: {"byok": {"allowed": False}}})
            assert calling.result().status == 200

        settled()
        assert CostEvent.objects.get().served_model_id == HAIKU
        assert not Identity.objects.exists()

    def test_is_charged_beside_the_rest_and_flagged(self, ask: Any, metered: Any, stream: bool) -> None:
        iterations = [iteration("made_up", 1_000, 100)]
        ask(told({"input_tokens": 1_000, "output_tokens": 500, "iterations": iterations}, stream=stream))

        assert dollars_of(charge()) == [Decimal("0.020")]
        assert charge().estimated


BETAS = {"anthropic_beta": "server-side-fallback-2026-07-01,advisor-tool-2026-03-01"}


def advisor(**fields: Any) -> dict[str, Any]:
    return {"type": "advisor_20260301", "name": "advisor", "model": HAIKU, **fields}


def defined_in_a_message(tool: dict[str, Any]) -> list[dict[str, Any]]:
    """Messages of which one defines a tool that the request's `tools` do not have."""
    addition = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": tool}}
    return [{"role": "system", "content": [addition]}, {"role": "user", "content": "Hello"}]


class TestARequestThatNamesOtherModels:
    @pytest.mark.parametrize(
        "fields",
        [{"fallbacks": [{"model": HAIKU}]}, {"tools": [advisor(max_uses=2)]}],
        ids=["fallbacks", "advisor"],
    )
    def test_is_taken_where_each_has_a_price(self, ask: Any, metered: Any, fields: dict[str, Any]) -> None:
        assert ask(message(**fields), **BETAS).status == 200

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"fallbacks": [{"model": "made-up-9"}]}, "MODEL_NOT_IN_CATALOG"),
            ({"fallbacks": "default"}, "MODEL_UNPRICED"),
            ({"fallbacks": [{"model": HAIKU, "fallbacks": [{"model": HAIKU}]}]}, "MODEL_UNPRICED"),
            ({"tools": [{**advisor(max_uses=2), "model": "made-up-9"}]}, "MODEL_NOT_IN_CATALOG"),
            ({"tools": [advisor()]}, "VALIDATION_FAILED"),
            ({"tools": [advisor(max_uses=10**12)]}, "VALIDATION_FAILED"),
            ({"tools": [{"type": "oracle_20270101", "name": "oracle", "model": HAIKU}]}, "MODEL_UNPRICED"),
            ({"messages": defined_in_a_message({**advisor(max_uses=2), "model": "made-up-9"})}, "MODEL_NOT_IN_CATALOG"),
            ({"messages": defined_in_a_message(advisor())}, "VALIDATION_FAILED"),
            ({"fallbacks": [{"model": HAIKU}] * 17}, "VALIDATION_FAILED"),
            ({"fallbacks": [{"model": "m" * 301}]}, "VALIDATION_FAILED"),
            ({"fallbacks": [{"model": "\ud800"}]}, "VALIDATION_FAILED"),
            ({"tools": [{**advisor(max_uses=2), "model": "a\0"}]}, "VALIDATION_FAILED"),
            ({"fallbacks": [{"model": ""}]}, "VALIDATION_FAILED"),
            ({"fallbacks": [HAIKU]}, "VALIDATION_FAILED"),
            ({"fallbacks": [{"model": HAIKU, "speed": ["fast"]}, {"model": [HAIKU]}]}, "VALIDATION_FAILED"),
            ({"tools": [{**advisor(max_uses=2), "model": {"id": HAIKU}}]}, "VALIDATION_FAILED"),
        ],
    )
    def test_is_refused_before_the_call_where_the_price_has_no_bound(
        self, ask: Any, metered: Any, simulator: Any, fields: dict[str, Any], code: str
    ) -> None:
        assert ask(message(**fields), **BETAS).code == code
        assert not Run.objects.exists()
        assert not [call for call in simulator.requests() if call["path"] == "/v1/messages"]

    @pytest.mark.parametrize(
        "fields",
        [
            {"fallbacks": [{"model": HAIKU}]},
            {"tools": [advisor(max_uses=2)]},
            {"messages": defined_in_a_message(advisor(max_uses=2))},
        ],
        ids=["fallbacks", "advisor", "advisor in a message"],
    )
    @pytest.mark.parametrize("payer", ["byok", "metered"])
    def test_reaches_none_that_a_policy_denies(
        self, request: Any, ask: Any, ada_access: Any, simulator: Any, payer: str, fields: dict[str, Any]
    ) -> None:
        request.getfixturevalue(payer)
        documents.set_policy(ada_access, matrix={HAIKU: {payer: {"allowed": False}}})

        assert ask(message(**fields), **BETAS).code == "AUTHMODES_UNSATISFIABLE"
        assert not [call for call in simulator.requests() if call["path"] == "/v1/messages"]

    def test_holds_what_the_dearest_may_cost(self, ask: Any, acme: Any, metered: Any) -> None:
        dear = "claude-opus-4-5-20251101"
        Entitlement.objects.filter(org=acme).update(monthly_budget_picodollars=46 * PICODOLLARS_PER_DOLLAR // 1000)

        assert ask(message(max_tokens=2_000), **BETAS).status == 200
        settled()
        refused = ask(message(max_tokens=2_000, fallbacks=[{"model": HAIKU}, {"model": dear}]), **BETAS)

        assert refused.code == "METERED_BUDGET_EXCEEDED"

    def test_holds_for_the_window_that_a_beta_opens_for_a_fallback(self, ask: Any, acme: Any, metered: Any) -> None:
        dear = "claude-opus-4-5-20251101"
        # A full window of the model that is asked costs up to $8.80, and of the fallback $2.20, or $11 with the beta.
        Entitlement.objects.filter(org=acme).update(monthly_budget_picodollars=10 * PICODOLLARS_PER_DOLLAR)
        asked = message(max_tokens=1, fallbacks=[{"model": dear}])

        assert ask(asked, **BETAS).status == 200
        settled()
        refused = ask(asked, anthropic_beta=f"{BETAS['anthropic_beta']},context-1m-2025-08-07")

        assert refused.code == "METERED_BUDGET_EXCEEDED"
        assert Run.objects.count() == 1

    def test_is_not_taken_by_a_pool_that_does_not_serve_them(self, ask: Any, shared: Any) -> None:
        assert ask(message(fallbacks=[{"model": HAIKU}]), **BETAS).code == "SHARED_KEY_NOT_CONFIGURED"

    def test_may_name_any_of_the_catalog_with_a_key_of_the_organization(self, ask: Any, byok: Any) -> None:
        fields = {"fallbacks": "default", "tools": [advisor()]}

        assert ask(message(**fields), **BETAS).status == 200

    @pytest.mark.parametrize(
        "fields",
        [
            {"fallbacks": "default"},
            {"fallbacks": [{"model": OWN}]},
            {"tools": [{**advisor(), "model": OWN}]},
            {"messages": defined_in_a_message({**advisor(), "model": OWN})},
        ],
        ids=["chosen by the provider", "own fallback", "own advisor", "own advisor in a message"],
    )
    def test_names_none_that_no_policy_can_judge(
        self, ask: Any, byok: Any, ada_access: Any, simulator: Any, fields: dict[str, Any]
    ) -> None:
        catalog.create_entry(ada_access, provider="claude", model_id=OWN, display_name="Own")
        documents.set_policy(ada_access, matrix={HAIKU: {"byok": {"allowed": False}}})

        refused = ask(message(**fields), **BETAS)

        assert (refused.status, refused.code) == (403, "MODEL_NOT_ALLOWED_BY_POLICY")
        assert not [call for call in simulator.requests() if call["path"] == "/v1/messages"]

    def test_may_name_an_own_entry_where_no_policy_denies_the_mode(self, ask: Any, byok: Any, ada_access: Any) -> None:
        catalog.create_entry(ada_access, provider="claude", model_id=OWN, display_name="Own")
        documents.set_policy(ada_access, matrix={HAIKU: {"metered": {"allowed": False}}})

        assert ask(message(tools=[{**advisor(), "model": OWN}]), **BETAS).status == 200
