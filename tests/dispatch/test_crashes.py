"""A worker dies at each point of a run; afterwards the provider's log and the ledger agree."""

from collections.abc import Callable
from typing import Any

import pytest

from billing.models import Entitlement
from integrations.keys import platform
from integrations.models import KeyOpening
from rensei.core.clock import database_now
from rensei.core.secret import Secret
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution import reaper
from rensei.dispatch.models import Attempt, Run
from rensei.dispatch.queue import claims
from rensei.orgs.access import Access
from tests.dispatch.dying_worker import plant_death
from tests.dispatch.reconcile import assert_explained
from tests.dying import die_at

pytestmark = pytest.mark.django_db(transaction=True)

# Where the worker dies, and how its run ends: by another worker, or given up because the call may have been made.
POINTS = {
    "before-the-claim": "SUCCEEDED",
    "after-the-claim": "SUCCEEDED",
    "before-the-attempt": "SUCCEEDED",
    "after-the-attempt": "FAILED",
    "connected": "FAILED",
    "mid-stream": "FAILED",
    "after-message-stop": "FAILED",
    "before-the-settlement-commits": "FAILED",
    "after-the-settlement": "SUCCEEDED",
}


def let_leases_run_out() -> None:
    Run.objects.filter(state=Run.State.RUNNING).update(lease_until=database_now() - claims.LEASE)


@pytest.mark.parametrize("mode", ["byok", "shared", "metered"])
@pytest.mark.parametrize(("point", "state"), POINTS.items(), ids=POINTS)
class TestAWorkerThatIsKilled:
    def test_leaves_nothing_unexplained(
        self,
        simulator: Any,
        ada_access: Access,
        connect: Callable[..., Any],
        make_profile: Callable[..., Any],
        make_key: Callable[..., str],
        work: Callable[[], list[Run]],
        point: str,
        state: str,
        mode: str,
    ) -> None:
        if mode == "byok":
            connect()
        else:
            platform.add_platform_key(
                actor=None,
                provider="claude",
                pool=mode,
                name="one",
                api_key=Secret(make_key()),
                model_ids=["claude-opus-5-5"],
                max_tokens_cap=4000,
            )
        Entitlement.objects.filter(org=ada_access.org).update(metered_enabled=True)
        make_profile(auth_modes=[mode])
        asked = messages_from(text="[[reply 60 words]] Tell me of the sea. [[slow 0.01]]", messages=None)
        run = admit.dispatch(ada_access, DispatchRequest(profile_id="prof_deep", messages=asked))

        die_at(point, plant=plant_death)
        # A key that may have signed is recorded as opened, whatever kills the worker.
        opened_for = list(KeyOpening.objects.values_list("run_id", "reason"))
        assert opened_for == [(run.id, "dispatch")] * Attempt.objects.filter(run=run).count()
        let_leases_run_out()
        reaper.reap()
        work()

        run.refresh_from_db()
        assert run.state == state
        if state == "FAILED":
            assert run.error["code"] == "RUN_INTERRUPTED"
            assert run.estimated
            assert not run.billed
            assert run.attempts.get().state == Attempt.State.INDETERMINATE
        assert_explained(simulator)
