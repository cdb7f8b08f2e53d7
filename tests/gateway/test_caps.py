"""The cap of a token at the gateway: refused before the call, in a form that no client repeats, and never passed."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from billing.models import CostEvent
from rensei.dispatch.models import Attempt
from rensei.orgs.models import SpendCap
from rensei.tokens.models import ApiToken
from rensei.tokens.services import update_token
from tests.dispatch.reconcile import assert_explained
from tests.gateway.line import message, settled
from tests.gateway.test_modes import CENT, SEARCH, assert_used_up
from tests.gateway.wire import Wire
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def cap(make_token: Callable[..., str]) -> Callable[[int], str]:
    """Make a token with a cap in picodollars."""
    return lambda picodollars: make_token(cap=picodollars)


def test_a_call_beyond_the_cap_is_refused_as_a_used_up_amount(ask: Any, byok: Any, cap: Any, wire: Wire) -> None:
    answer = ask(message(), x_api_key=cap(1000))

    assert (answer.status, answer.code) == (429, "SPEND_CAP_EXCEEDED")
    assert answer.json()["error"]["type"] == "billing_error"
    assert "max_tokens" in answer.json()["error"]["message"]
    assert_used_up(answer, period="monthly")
    assert wire.messages() == []
    assert not Attempt.objects.exists()


@pytest.mark.parametrize("mode", ["byok", "metered", "shared"])
def test_a_call_is_held_and_counted_in_every_mode(ask: Any, request: Any, cap: Any, mode: str, simulator: Any) -> None:
    request.getfixturevalue(mode)

    answer = ask(message(), x_api_key=cap(100 * CENT))

    settled()
    assert answer.headers["x-rensei-auth-mode"] == mode
    row = SpendCap.objects.get()
    assert (row.used, row.held) == (CostEvent.objects.get().amount_picodollars, 0)
    assert row.used > 0
    assert_explained(simulator)


def test_calls_at_once_never_pass_the_cap(ask: Any, byok: Any, cap: Any, simulator: Any) -> None:
    token = cap(6 * CENT)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(message(), x_api_key=token), range(24)))

    settled()
    assert {answer.status for answer in answers} == {200, 429}
    assert SpendCap.objects.get().held == 0
    assert SpendCap.objects.get().used == sum(line.amount_picodollars or 0 for line in CostEvent.objects.all())
    assert SpendCap.objects.get().used <= 6 * CENT
    assert_explained(simulator)


def test_a_cap_that_is_set_holds_within_a_second(ask: Any, byok: Any, token: str, ada_access: Any) -> None:
    first = ask(message())
    update_token(ada_access, ApiToken.objects.get(), cap=1)

    wait_until(lambda: ask(message()).status == 429, what="the cap")

    assert first.status == 200


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"tools": [SEARCH]}, "VALIDATION_FAILED"),
        ({"made_up_member": 1}, "MODEL_UNPRICED"),
        ({"betas": True}, "VALIDATION_FAILED"),
    ],
    ids=["searches without a limit", "unknown member", "unknown beta"],
)
def test_what_has_no_bound_is_refused_with_an_own_key_too(
    ask: Any, byok: Any, cap: Any, token: str, wire: Wire, asked: dict[str, Any], code: str
) -> None:
    headers = {"anthropic_beta": "made-up-2030-01-01"} if asked.pop("betas", False) else {}

    refused = ask(message(**asked), x_api_key=cap(100 * CENT), **headers)

    assert refused.code == code
    assert "cap" in refused.json()["error"]["message"]
    assert wire.messages() == []
