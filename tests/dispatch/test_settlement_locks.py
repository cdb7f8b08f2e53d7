"""The rows that all settlements of an organization change: changed last, and in the order of admission."""

import re
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from billing.models import BudgetUsage, CostEvent, Entitlement
from integrations.keys import platform
from rensei.core.clock import database_now
from rensei.core.ids import new_id
from rensei.core.secret import Secret
from rensei.core.transactions import durable
from rensei.core.usage import Usage
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Attempt, Run
from rensei.dispatch.queue import claims
from rensei.dispatch.settlement import settle
from rensei.dispatch.settlement.settle import RunEnd, SettlementPlan
from rensei.orgs import storage
from rensei.orgs.access import Access
from tests.database import lock_waits
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

# In the order in which settlement locks their rows, and admission those that it has.
OF_ORGANIZATIONS = [
    "billing_usagedaily",
    "orgs_storedbytes",
    "billing_budgetusage",
    "billing_sharedspending",
    "billing_sharedusage",
]
_WRITTEN = re.compile(r'^\s*(?:INSERT INTO|UPDATE|DELETE FROM) "?(\w+)', re.IGNORECASE)


@pytest.fixture
def under_way(ada_access: Access, make_profile: Any, make_key: Callable[..., str]) -> Callable[[str], SettlementPlan]:
    """Claim a queued run of a mode, and plan its end."""

    def begin(mode: str) -> SettlementPlan:
        limits = {"model_ids": ["claude-opus-5-5"], "max_tokens_cap": 1000} if mode == "shared" else {}
        name = new_id("test")
        platform.add_platform_key(
            actor=None, provider="claude", pool=mode, name=name, api_key=Secret(make_key()), **limits
        )
        Entitlement.objects.filter(org=ada_access.org).update(metered_enabled=True)
        profile = make_profile(name=name.lower(), auth_modes=[mode], max_tokens=1000, effort="low")
        messages = messages_from(text="Hi.", messages=None)
        admit.dispatch(ada_access, DispatchRequest(profile_id=profile.public_id, messages=messages))
        claim = claims.claim_next(owner="worker")
        assert claim is not None
        attempt = claims.open_attempt(claim.run, credential_id="key_1", credential_version=1, input_tokens=9)
        return SettlementPlan(
            run=claim.run,
            now=database_now(),
            attempt=attempt,
            usage=Usage(input_tokens=20, output_tokens=30),
            end=RunEnd(state=Run.State.SUCCEEDED, text="Hi."),
        )

    return begin


class TestASettlement:
    @pytest.mark.parametrize("is_late", [False, True], ids=["in time", "late"])
    @pytest.mark.parametrize("mode", ["metered", "shared"])
    def test_changes_the_rows_of_its_organization_last_and_in_one_order(
        self, under_way: Any, mode: str, is_late: bool
    ) -> None:
        """Other settlements of the organization wait from the first of these to the commit, with a connection each."""
        plan = under_way(mode)
        plans = [plan]
        if is_late:
            given_up = Attempt.State.INDETERMINATE
            settle.write([replace(plan, attempt_state=given_up, estimated=True, end=RunEnd(state=Run.State.FAILED))])
            more = Usage(input_tokens=40, output_tokens=60)
            plans = [replace(plan, usage=more, end=None), under_way(mode)]

        with CaptureQueriesContext(connection) as captured:
            settle.write(plans)

        found = [match[1] for query in captured if (match := _WRITTEN.match(query["sql"]))]
        first = found.index(OF_ORGANIZATIONS[0])
        # A hold is a row of the run.
        after = [table for table in found[first:] if table not in {"billing_hold", "billing_budgethold"}]
        assert not set(found[:first]) & set(OF_ORGANIZATIONS)
        assert is_late == (CostEvent.objects.filter(kind=CostEvent.Kind.ADJUSTMENT).exists())
        assert after[0] == "billing_usagedaily"
        assert [OF_ORGANIZATIONS.index(table) for table in after] == sorted(map(OF_ORGANIZATIONS.index, after))

    def test_writes_each_run_once(self, under_way: Any) -> None:
        """A run is a long row, of which each UPDATE writes a copy: its end and its totals are one."""
        plans = [under_way("metered"), under_way("metered")]

        with CaptureQueriesContext(connection) as captured:
            settle.write(plans)

        written = [match[1] for query in captured if (match := _WRITTEN.match(query["sql"]))]
        assert written.count("dispatch_run") == len(plans)
        for run in Run.objects.all():
            assert (run.state, run.billed, run.usage["output_tokens"]) == (Run.State.SUCCEEDED, True, 30)

    @pytest.mark.postgres
    def test_waits_for_an_admission_and_never_deadlocks_with_it(self, under_way: Any, ada_access: Access) -> None:
        """An admission has counted its bytes, and then takes from the budget, while a settlement begins."""
        plan = under_way("metered")
        ended: list[list[Run]] = []

        def end() -> None:
            try:
                ended.append(settle.write([plan]))
            finally:
                connection.close()

        settlement = threading.Thread(target=end)
        # A transaction sees one state of the activity, so another connection looks at it.
        with durable():
            storage.change({ada_access.org.id: (1, 0)})
            settlement.start()
            wait_until(lock_waits, what="the wait for the row of stored bytes")
            BudgetUsage.objects.select_for_update(nowait=True).get(org=ada_access.org)
        settlement.join()

        assert [run.id for run in ended[0]] == [plan.run.id]
