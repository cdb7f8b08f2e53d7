"""What changes while a run is queued or under way: its key, its entitlement, and what the vault holds."""

import hashlib
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from billing.models import CostEvent, Entitlement
from integrations.keys import platform
from integrations.keys import services as integrations
from integrations.models import Integration
from rensei.core.secret import Secret
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution.execute import execute
from rensei.dispatch.execution.lease_renewal import LeaseRenewal
from rensei.dispatch.models import Run, RunChunk
from rensei.dispatch.queue import claims
from rensei.orgs.access import Access
from tests.dispatch.reconcile import assert_explained
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

SLOW = "[[reply 40 words]] Go. [[slow 0.05]]"


@pytest.fixture
def dispatch(ada_access: Access) -> Callable[[str], Run]:
    def send(text: str) -> Run:
        request = DispatchRequest(profile_id="prof_deep", messages=messages_from(text=text, messages=None))
        return admit.dispatch(ada_access, request)

    return send


@contextmanager
def under_way(run: Run) -> Iterator[None]:
    """Execute a run until it has begun to answer; afterwards, to its end."""
    renewal = LeaseRenewal(owner="test-worker")
    claim = claims.claim_next(owner=renewal.owner)
    assert claim is not None
    thread = threading.Thread(target=execute, args=(claim, renewal))
    thread.start()
    wait_until(RunChunk.objects.filter(run=run, kind="delta").exists, what="an output")
    yield
    thread.join(timeout=60)
    renewal.close()


class TestMetered:
    def test_disabled_while_a_run_is_under_way_lets_it_end_and_bills_it(
        self, simulator: Any, ada_access: Access, make_profile: Any, make_key: Any, dispatch: Any
    ) -> None:
        platform.add_platform_key(actor=None, provider="claude", pool="metered", name="one", api_key=Secret(make_key()))
        Entitlement.objects.filter(org=ada_access.org).update(metered_enabled=True)
        make_profile(auth_modes=["metered"])
        run = dispatch(SLOW)

        with under_way(run):
            Entitlement.objects.filter(org=ada_access.org).update(metered_enabled=False)

        run.refresh_from_db()
        assert run.state == Run.State.SUCCEEDED
        assert CostEvent.objects.get().billed_picodollars > 0
        with pytest.raises(Exception, match="not entitled"):
            dispatch("Hi.")
        assert_explained(simulator)


class TestARotatedKey:
    def test_signs_the_next_call_and_not_the_one_under_way(
        self,
        simulator: Any,
        ada_access: Access,
        connect: Any,
        make_profile: Any,
        make_key: Any,
        dispatch: Any,
        work: Any,
    ) -> None:
        integration, new = connect(), make_key()
        make_profile()
        run = dispatch(SLOW)

        with under_way(run):
            integrations.rotate_integration(ada_access, integration, api_key=Secret(new), force=True)
        dispatch("Hi.")
        (after,) = work()

        run.refresh_from_db()
        assert (run.state, after.state) == (Run.State.SUCCEEDED, Run.State.SUCCEEDED)
        assert [attempt.credential_version for attempt in (run.attempts.get(), after.attempts.get())] == [1, 2]
        first, second = (call["key_sha256"] for call in simulator.requests() if call["path"] == "/v1/messages")
        assert second == hashlib.sha256(new.encode()).hexdigest()
        assert first != second
        assert_explained(simulator)


class TestAKeyThatCannotBeOpened:
    @pytest.mark.parametrize("junk", ["garbage", "cut-short", "too-long"])
    def test_fails_its_own_run_without_a_call_and_no_other(
        self, simulator: Any, connect: Any, make_profile: Any, dispatch: Any, work: Any, junk: str
    ) -> None:
        poisoned, other = connect(name="Poisoned"), connect(name="Other")
        make_profile(name="deep", integration=poisoned)
        dispatch("Hi.")
        sealed = bytes(Integration.objects.get(id=poisoned.id).sealed_key)
        replaced = {"garbage": secrets.token_bytes(200), "cut-short": sealed[:-1], "too-long": sealed * 10_000}[junk]
        Integration.objects.filter(id=poisoned.id).update(sealed_key=replaced)

        (run,) = work()

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "CREDENTIAL_UNREADABLE")
        assert not run.attempts.exists()
        assert not simulator.requests()
        assert integrations.open_integration(other) is not None
        assert_explained(simulator)
