"""What the caller lets one run cost, from the dispatch to the last of its calls."""

import json
from typing import Any

import pytest
from rest_framework.test import APIClient

from billing.models import CostEvent
from catalog.models import Price
from rensei.core.money import PICODOLLARS_PER_DOLLAR, picodollars
from rensei.dispatch.admission import admit, repeating
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Attempt, Run, RunInput
from rensei.orgs.access import Access
from rensei.orgs.models import User
from tests.dispatch.reconcile import assert_explained
from tests.gateway.line import searched

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def api(connected: Any, make_profile: Any, ada: User, api_as: Any, simulator: Any) -> APIClient:
    make_profile(auth_modes=["byok"], max_tokens=1000, effort="low")
    client: APIClient = api_as(ada)
    return client


@pytest.fixture
def most(api: APIClient) -> int:
    """What one call with the usual text may cost."""
    return most_of(api, "Hi.")


def send(api: APIClient, text: str = "Hi.", **fields: Any) -> Any:
    return api.post("/api/v1/runs", {"profileId": "prof_deep", "input": text, **fields})


def most_of(api: APIClient, text: str) -> int:
    found = api.post("/api/v1/profiles/prof_deep/resolve", {"input": text}).json()
    return picodollars(found["quotes"][0]["maxUsd"])


def usd(amount: int) -> str:
    return f"{amount / 10**12:.12f}"


class TestWhatARunMayCost:
    def test_is_shown_and_kept_to(self, api: APIClient, most: int, work: Any, simulator: Any) -> None:
        sent = send(api, maxCostUsd=usd(most))
        (ended,) = work()

        assert (sent.status_code, sent.json()["maxCostUsd"]) == (202, usd(most).rstrip("0"))
        assert ended.state == Run.State.SUCCEEDED
        assert ended.amount_picodollars <= most
        assert_explained(simulator)

    def test_holds_for_what_a_broken_answer_has_not_reported(self, api: APIClient, work: Any, simulator: Any) -> None:
        usage = {"input_tokens": 1_000, "cache_creation": None, "cache_creation_input_tokens": 0}
        text = f"[[usage {json.dumps(usage)}]] {searched(5)} [[reply 60 words]] [[fault:cut after=18]]"
        most = most_of(api, text)
        send(api, text, maxCostUsd=usd(most))

        (ended,) = work()

        assert ended.state == Run.State.FAILED
        assert 0 < ended.amount_picodollars <= most < 5 * PICODOLLARS_PER_DOLLAR // 100
        assert_explained(simulator)

    def test_refuses_a_call_that_may_cost_more(self, api: APIClient, most: int, simulator: Any) -> None:
        refused = send(api, maxCostUsd=usd(most - 1))

        problem = refused.json()
        assert (refused.status_code, problem["code"], problem["retryable"]) == (402, "SPEND_CAP_EXCEEDED", False)
        assert (problem["used"], problem["limit"]) == ("0.000000", usd(most - 1).rstrip("0"))
        for model in (Run, RunInput, Attempt, CostEvent):
            assert not model.objects.exists(), model
        assert simulator.requests() == []

    def test_is_foreseen_by_the_dry_run(self, api: APIClient, most: int) -> None:
        body = {"input": "Hi.", "maxCostUsd": usd(most - 1)}

        found = api.post("/api/v1/profiles/prof_deep/resolve", body).json()

        assert (found["wouldRun"], found["code"]) == (False, "SPEND_CAP_EXCEEDED")

    @pytest.mark.parametrize("amount", ["-1", "much", "1e3", 0.5, "1000000000"])
    def test_is_an_amount_of_dollars(self, api: APIClient, amount: Any) -> None:
        refused = send(api, maxCostUsd=amount)

        assert (refused.status_code, refused.json()["code"]) == (400, "VALIDATION_FAILED")

    def test_is_not_known_without_a_price(self, api: APIClient) -> None:
        Price.objects.all().delete()

        assert send(api).status_code == 202
        assert send(api, maxCostUsd="1").json()["code"] == "MODEL_UNPRICED"

    def test_covers_both_calls_where_the_first_may_have_been_billed(
        self, api: APIClient, work: Any, simulator: Any
    ) -> None:
        first, second = "[[fault:504 times=1]] Hi.", "[[fault:504 times=1]] Ho."
        send(api, first, maxCostUsd=usd(2 * most_of(api, first)))
        send(api, second, maxCostUsd=usd(most_of(api, second)))

        enough, too_little = sorted(work(), key=lambda run: run.id)

        assert (enough.state, enough.attempt_count) == (Run.State.SUCCEEDED, 2)
        assert (too_little.state, too_little.attempt_count) == (Run.State.FAILED, 1)
        assert too_little.error["code"] == "SPEND_CAP_EXCEEDED"
        assert_explained(simulator)

    def test_does_not_count_calls_that_cost_nothing(self, api: APIClient, work: Any, simulator: Any) -> None:
        text = "[[fault:529 times=1]] Hi."
        send(api, text, maxCostUsd=usd(most_of(api, text)))

        (ended,) = work()

        assert (ended.state, ended.attempt_count) == (Run.State.SUCCEEDED, 2)
        assert_explained(simulator)

    def test_goes_with_the_run_that_is_repeated(self, api: APIClient, most: int, ada_access: Access) -> None:
        asked = messages_from(text="Hi.", messages=None)
        request = DispatchRequest(profile_id="prof_deep", messages=asked, max_cost_picodollars=2 * most)
        first = admit.dispatch(ada_access, request)

        again = repeating.repeat(ada_access, first)

        assert again.max_cost_picodollars == 2 * most
