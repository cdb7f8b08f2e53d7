"""What a queued run costs by the models that had a part in its answer, on time and late."""

import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from billing.models import CostEvent, Entitlement
from catalog.models import Price
from integrations.keys import platform
from rensei.core.clock import database_now
from rensei.core.money import PICODOLLARS_PER_DOLLAR
from rensei.core.secret import Secret
from rensei.core.unknown import take_counts
from rensei.core.usage import Usage, UsagePart, total
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Run
from rensei.dispatch.settlement import audit, settle
from rensei.orgs.access import Access
from tests.dispatch.losing import lose

pytestmark = pytest.mark.django_db(transaction=True)

OPUS, HAIKU, OLDER = "claude-opus-5-5", "claude-haiku-4-5-20251001", "claude-opus-4-8"


@pytest.fixture
def dispatch(simulator: Any, ada_access: Access, make_profile: Any, make_key: Any) -> Callable[..., Run]:
    """Dispatch a metered run."""
    Entitlement.objects.filter(org=ada_access.org).update(metered_enabled=True)
    make_profile(auth_modes=["metered"])
    platform.add_platform_key(
        actor=None, provider="claude", pool="metered", name="one", api_key=Secret(make_key()), model_ids=[]
    )

    def make(text: str = "What is two and two?") -> Run:
        messages = messages_from(text=text, messages=None)
        return admit.dispatch(ada_access, DispatchRequest(profile_id="prof_deep", messages=messages))

    return make


def settle_late(run: Run, *parts: UsagePart) -> None:
    plan = settle.SettlementPlan(
        run=run, now=database_now(), attempt=run.attempts.get(), usage=total(parts), parts=parts
    )
    settle.write([plan])
    run.refresh_from_db()


def owed() -> dict[str, int]:
    """What is billed for each model."""
    sums: dict[str, int] = {}
    for line in CostEvent.objects.all():
        sums[line.served_model_id] = sums.get(line.served_model_id, 0) + line.billed_picodollars
    return sums


class TestARun:
    def test_has_a_charge_for_each_model(self, dispatch: Any, work: Any) -> None:
        used = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        usage = {
            "input_tokens": 1000,
            "output_tokens": 500,
            "inference_geo": "us",
            "iterations": [
                {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3500, **used},
                {"type": "advisor_message", "model": HAIKU, "input_tokens": 5000, "output_tokens": 600, **used},
            ],
        }
        dispatch(f"[[usage {json.dumps(usage)}]] Go.")

        (run,) = work()

        own = 11 * (181_000 * 4_000_000 + 4000 * 20_000_000) // 10
        other = 11 * (5000 * 1_000_000 + 600 * 5_000_000) // 10
        assert owed() == {OPUS: own, HAIKU: other}
        assert run.amount_picodollars == own + other
        assert run.usage["input_tokens"] == 186_000
        assert list(audit.differences()) == []

    def test_of_a_model_that_the_catalog_does_not_know_is_counted_by_its_name(self, dispatch: Any, work: Any) -> None:
        dispatch("[[serve made-up-9]] Go.")
        take_counts()

        work()

        assert take_counts() == {("model", "made-up-9"): 1}
        assert CostEvent.objects.get().served_model_id == "made-up-9"

    def test_of_a_model_by_another_name_is_that_of_the_model(self, dispatch: Any, work: Any) -> None:
        dispatch(f"[[serve anthropic/{OPUS}]] Go.")

        work()

        line = CostEvent.objects.get()
        assert (line.served_model_id, line.estimated) == (OPUS, False)


class TestALateSettlement:
    def test_takes_the_estimate_back_where_other_models_answered(self, dispatch: Any) -> None:
        run = lose(dispatch())

        settle_late(
            run,
            UsagePart(usage=Usage(input_tokens=9, output_tokens=11), model_id=HAIKU),
            UsagePart(usage=Usage(input_tokens=1), model_id=OLDER, price_factor=Fraction(11, 10)),
        )

        assert owed() == {OPUS: 0, HAIKU: 64_000_000, OLDER: 5_500_000}
        assert run.amount_picodollars == 69_500_000
        assert not run.estimated
        assert run.usage["input_tokens"] == 10
        assert list(audit.differences()) == []

    def test_corrects_the_part_of_each_model(self, dispatch: Any) -> None:
        run = lose(dispatch())

        settle_late(
            run,
            UsagePart(usage=Usage(input_tokens=20), price_factor=Fraction(2)),
            UsagePart(usage=Usage(input_tokens=9), model_id=HAIKU),
        )

        assert owed() == {OPUS: 160_000_000, HAIKU: 9_000_000}
        assert CostEvent.objects.filter(kind="adjustment", adjusts__served_model_id=OPUS).exists()
        assert list(audit.differences()) == []

    def test_of_searches_without_a_price_has_that_of_the_provider(self, dispatch: Any) -> None:
        Price.objects.update(web_search_picodollars=None)
        run = lose(dispatch())

        settle_late(run, UsagePart(usage=Usage(input_tokens=9, web_search_requests=2), price_factor=Fraction(2)))

        assert owed() == {OPUS: 9 * 8_000_000 + 2 * PICODOLLARS_PER_DOLLAR // 100}
        assert run.estimated
        assert list(audit.differences()) == []

    def test_counts_once(self, dispatch: Any) -> None:
        run = lose(dispatch())

        for _ in range(2):
            settle_late(run, UsagePart(usage=Usage(input_tokens=9), model_id=HAIKU))

        assert owed() == {OPUS: 0, HAIKU: 9_000_000}
        assert list(audit.differences()) == []


class TestTheAudit:
    def test_names_a_price_that_no_factor_makes(self, dispatch: Any, work: Any) -> None:
        dispatch()
        (run,) = work()
        Run.objects.filter(id=run.id).update(prices=[{**run.prices[0], "input": run.prices[0]["input"] + 1}])

        assert [difference.kind for difference in audit.differences()] == ["line-prices"]
