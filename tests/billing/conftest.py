"""What the tests of the money share."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import transaction

from billing.ledger.charges import Charge
from billing.models import CostEvent
from catalog.pricing import UnitPrices
from rensei.core.auth_modes import PAYER_OF, AuthMode
from rensei.core.ids import new_id
from rensei.core.usage import Usage
from rensei.orgs.models import Org
from tests.billing.record import record_charges

NOON = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)
# Dollars for a million tokens, in millionths: 5 for input, 25 for output, and so on. A search costs a cent.
PRICES = UnitPrices(
    above_prompt_tokens=0,
    input=5_000_000,
    output=25_000_000,
    cache_write_5m=6_250_000,
    cache_write_1h=10_000_000,
    cache_read=500_000,
    web_search=10_000_000_000,
)


@pytest.fixture
def make_charge(acme: Org) -> Callable[..., Charge]:
    """Make a metered charge of Acme's: 1,000 tokens in and 100 out, which is 7,500 millionths of a dollar."""

    def make(**fields: Any) -> Charge:
        mode = AuthMode(fields.get("auth_mode", AuthMode.METERED))
        return Charge(
            **{
                "org_id": acme.pk,
                "run_id": new_id("run"),
                "attempt_id": new_id("att"),
                "profile_id": "prof_deep",
                "project_id": "",
                "auth_mode": mode,
                "payer": PAYER_OF[mode],
                "billing_class": f"{mode}.anthropic",
                "pool_id": "",
                "credential_id": "",
                "provider": "claude",
                "model_id": "claude-opus-4-1-20250514",
                "served_model_id": "claude-opus-5-5",
                "provider_request_id": "",
                "usage": Usage(input_tokens=1000, output_tokens=100),
                "prices": PRICES,
                "billed": mode is AuthMode.METERED,
                "estimated": False,
                "occurred_at": NOON,
                **fields,
            }
        )

    return make


@pytest.fixture
def charge(make_charge: Callable[..., Charge]) -> Callable[..., CostEvent]:
    """Write a charge to the ledger."""

    def write(**fields: Any) -> CostEvent:
        with transaction.atomic():
            [line] = record_charges([make_charge(**fields)])
        return line

    return write
