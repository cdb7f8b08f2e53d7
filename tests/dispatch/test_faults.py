"""What a provider can do to a run, and what the run, the ledger and the payer are then."""

import io
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from PIL import Image

from billing.models import CostEvent, Entitlement
from integrations.keys import platform
from integrations.models import Integration
from integrations.outbound import http as outbound
from rensei.core.clock import database_now
from rensei.core.secret import Secret
from rensei.dispatch import services
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution import reaper
from rensei.dispatch.execution.execute import execute
from rensei.dispatch.execution.lease_renewal import LeaseRenewal
from rensei.dispatch.models import Attempt, Run, RunChunk
from rensei.dispatch.queue import claims
from rensei.dispatch.settlement import settle
from rensei.orgs.access import Access
from rensei.orgs.models import User
from tests.dispatch.reconcile import assert_explained
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def dispatch(ada_access: Access, make_profile: Any) -> Callable[..., Run]:
    make_profile()

    def send(text: str, **fields: Any) -> Run:
        request = DispatchRequest(profile_id="prof_deep", messages=messages_from(text=text, messages=None), **fields)
        return admit.dispatch(ada_access, request)

    return send


class TestAFailingProvider:
    @pytest.mark.parametrize(
        ("word", "code"),
        [
            ("revoked", "PROVIDER_AUTH_FAILED"),
            ("forbidden", "PROVIDER_AUTH_FAILED"),
            ("nocredit", "PROVIDER_UNFUNDED"),
            ("spendlimit", "PROVIDER_UNFUNDED"),
            ("linkedbilling", "PROVIDER_UNFUNDED"),
            ("tiercap", "PROVIDER_UNFUNDED"),
        ],
    )
    def test_costs_nothing_when_it_refuses_the_key_and_is_asked_once(
        self, simulator: Any, connect: Any, dispatch: Any, work: Any, word: str, code: str
    ) -> None:
        connect(word)
        dispatch("Hi.")

        (run,) = work()

        assert (run.state, run.error["code"]) == (Run.State.FAILED, code), run.error
        assert run.error["fix"]
        assert run.amount_picodollars == 0
        assert run.attempt_count == 1
        assert run.payer == "organization"
        assert_explained(simulator)

    def test_has_the_key_that_it_refuses_marked_and_the_managers_told_once(
        self, simulator: Any, alan: User, mia: User, connect: Any, dispatch: Any, work: Any, mailoutbox: Any
    ) -> None:
        integration = connect("revoked")
        dispatch("Hi.")
        dispatch("Hi again.")

        first, _ = work()

        integration.refresh_from_db()
        assert integration.status == Integration.Status.FAILING
        assert integration.last_error["detail"] == first.error["detail"]
        (mail,) = mailoutbox
        assert mail.to == ["ada@acme.test", "alan@acme.test"]
        assert "the key 'revoked' of Acme was refused" in mail.subject

    @pytest.mark.parametrize("word", ["forbidden", "nocredit"])
    def test_says_nothing_of_the_key_otherwise(
        self, simulator: Any, connect: Any, dispatch: Any, work: Any, mailoutbox: Any, word: str
    ) -> None:
        integration = connect(word)
        dispatch("Hi.")

        work()

        integration.refresh_from_db()
        assert integration.status == Integration.Status.UNTESTED
        assert mailoutbox == []

    @pytest.mark.parametrize("fault", ["500", "overloaded", "429 retry-after=0"])
    def test_is_asked_again_before_the_first_byte_each_try_its_own_attempt(
        self, simulator: Any, connect: Any, dispatch: Any, work: Any, fault: str
    ) -> None:
        connect()
        dispatch(f"Hi. [[fault:{fault} times=2]]")

        (run,) = work()

        assert run.state == Run.State.SUCCEEDED, run.error
        assert run.attempt_count == 3
        assert CostEvent.objects.count() == 3
        assert_explained(simulator)

    def test_is_given_up_after_three_attempts(self, simulator: Any, connect: Any, dispatch: Any, work: Any) -> None:
        connect()
        dispatch("Hi. [[fault:overloaded]]")

        (run,) = work()

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "PROVIDER_OVERLOADED")
        assert run.attempt_count == 3
        assert_explained(simulator)

    @pytest.mark.parametrize("fault", ["stream-error after=5", "truncate after=5"])
    def test_is_paid_for_what_it_sent_before_it_broke_and_not_asked_again(
        self, simulator: Any, connect: Any, dispatch: Any, work: Any, fault: str
    ) -> None:
        connect()
        dispatch(f"[[reply 80 words]] Go. [[fault:{fault}]]")

        (run,) = work()

        assert run.state == Run.State.FAILED
        assert run.output_text
        assert run.estimated
        assert run.amount_picodollars > 0
        assert run.attempt_count == 1
        assert_explained(simulator)

    def test_that_cannot_be_reached_costs_nothing_and_leaves_no_charge(
        self, simulator: Any, settings: Any, connect: Any, dispatch: Any, work: Any
    ) -> None:
        connect()
        dispatch("Hi.")
        settings.RENSEI_ANTHROPIC_BASE_URL = "http://127.0.0.1:9"

        (run,) = work()

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "PROVIDER_UNAVAILABLE")
        assert {attempt.state for attempt in run.attempts.all()} == {Attempt.State.VOID}
        assert not CostEvent.objects.exists()


class TestSharedQuota:
    def test_is_given_back_by_a_run_that_never_reached_the_provider(
        self, simulator: Any, settings: Any, ada_access: Access, make_profile: Any, make_key: Any, work: Any
    ) -> None:
        platform.add_platform_key(
            actor=None,
            provider="claude",
            pool="shared",
            name="one",
            api_key=Secret(make_key()),
            model_ids=["claude-opus-5-5"],
            max_tokens_cap=2000,
        )
        Entitlement.objects.filter(org=ada_access.org).update(shared_runs_per_day=1)
        make_profile(auth_modes=["shared"])
        request = DispatchRequest(profile_id="prof_deep", messages=messages_from(text="Hi.", messages=None))
        admit.dispatch(ada_access, request)
        reachable, settings.RENSEI_ANTHROPIC_BASE_URL = settings.RENSEI_ANTHROPIC_BASE_URL, "http://127.0.0.1:9"
        work()
        settings.RENSEI_ANTHROPIC_BASE_URL = reachable

        admit.dispatch(ada_access, request)
        (run,) = work()

        assert run.state == Run.State.SUCCEEDED
        assert run.payer == "platform"
        with pytest.raises(Exception, match="shared runs"):
            admit.dispatch(ada_access, request)


class TestStopping:
    def _execute(self, run: Run) -> tuple[threading.Thread, LeaseRenewal]:
        renewal = LeaseRenewal(owner="test-worker")
        claim = claims.claim_next(owner=renewal.owner)
        assert claim is not None
        thread = threading.Thread(target=execute, args=(claim, renewal))
        thread.start()
        return thread, renewal

    def _wait_for_output(self, run: Run) -> None:
        wait_until(RunChunk.objects.filter(run=run, kind="delta").exists, what="an output")

    def test_hangs_up_on_a_cancelled_run_and_charges_what_it_used(
        self, simulator: Any, ada_access: Access, connect: Any, dispatch: Any
    ) -> None:
        connect()
        run = dispatch("[[reply 2000 words]] Go. [[slow 0.05]]")
        thread, renewal = self._execute(run)
        self._wait_for_output(run)

        services.cancel_run(ada_access, Run.objects.get(id=run.id))
        thread.join(timeout=10)

        assert not thread.is_alive()
        renewal.close()
        run.refresh_from_db()
        assert run.state == Run.State.CANCELLED
        assert run.estimated
        assert run.amount_picodollars > 0
        assert_explained(simulator)

    def test_ends_a_run_that_is_cancelled_while_its_images_are_fetched(
        self, simulator: Any, ada_access: Access, connect: Any, make_profile: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connect()
        make_profile()
        urls = [f"https://images.example.com/{number}.png" for number in range(50)]
        blocks = [{"type": "image", "source": {"type": "url", "url": url}} for url in urls]
        request = DispatchRequest(profile_id="prof_deep", messages=[{"role": "user", "content": blocks}])
        run = admit.dispatch(ada_access, request)
        fetched: list[str] = []

        def fetch(url: str, *, seconds_max: float) -> bytes:
            fetched.append(url)
            if len(fetched) == 1:
                services.cancel_run(ada_access, Run.objects.get(id=run.id))
            time.sleep(1)
            picture = io.BytesIO()
            Image.new("RGB", (8, 8)).save(picture, "PNG")
            return picture.getvalue()

        monkeypatch.setattr(outbound, "fetch_image", fetch)
        thread, renewal = self._execute(run)
        thread.join(timeout=60)

        renewal.close()
        run.refresh_from_db()
        assert run.state == Run.State.CANCELLED
        assert len(fetched) < len(urls)
        assert run.attempt_count == 0
        assert_explained(simulator)

    def test_does_not_claim_to_know_a_call_that_was_cancelled_before_it_was_heard_of(
        self, simulator: Any, ada_access: Access, connect: Any, dispatch: Any
    ) -> None:
        connect()
        run = dispatch("Go. [[stall]]")
        thread, renewal = self._execute(run)
        wait_until(simulator.requests, what="the call")

        services.cancel_run(ada_access, Run.objects.get(id=run.id))
        thread.join(timeout=10)

        renewal.close()
        run.refresh_from_db()
        assert run.state == Run.State.CANCELLED
        assert run.estimated
        assert run.attempts.get().state == Attempt.State.INDETERMINATE
        assert_explained(simulator)

    def test_settles_late_by_one_adjustment_when_its_lease_was_lost(
        self, simulator: Any, connect: Any, dispatch: Any
    ) -> None:
        connect()
        run = dispatch("[[reply 40 words]] Go. [[slow 0.05]]")
        thread, renewal = self._execute(run)
        self._wait_for_output(run)
        Run.objects.filter(id=run.id).update(lease_until=database_now() - claims.LEASE)

        reaper.reap()
        thread.join(timeout=20)

        renewal.close()
        run.refresh_from_db()
        assert (run.state, run.error["code"]) == (Run.State.FAILED, "RUN_INTERRUPTED")
        assert [line.kind for line in CostEvent.objects.order_by("id")] == ["charge", "adjustment"]
        assert run.attempts.get().state == Attempt.State.SETTLED
        assert_explained(simulator)

    def test_ends_a_run_at_its_deadline(self, simulator: Any, connect: Any, dispatch: Any, work: Any) -> None:
        connect()
        run = dispatch("Go. [[stall]]")
        Run.objects.filter(id=run.id).update(deadline_at=database_now() + timedelta(seconds=2))

        (run,) = work()

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "RUN_TIMEOUT")
        assert_explained(simulator)


class TestClaim:
    def test_gives_a_run_to_one_of_many_workers(self, simulator: Any, connect: Any, dispatch: Any) -> None:
        connect()
        dispatch("Hi.")
        got: list[Any] = []

        def claim() -> None:
            from django.db import connection

            got.append(claims.claim_next(owner=threading.current_thread().name))
            connection.close()

        threads = [threading.Thread(target=claim) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sum(one is not None for one in got) == 1

    def test_finds_nothing_to_do_for_a_doubled_bell(
        self, simulator: Any, connect: Any, dispatch: Any, work: Any
    ) -> None:
        connect()
        dispatch("Hi.")
        work()

        assert claims.claim_next(owner="late") is None

    def test_leaves_host_session_runs_to_their_machine(
        self, simulator: Any, ada_access: Access, make_profile: Any
    ) -> None:
        from rensei.orgs.models import Host

        Host.objects.create(org=ada_access.org, owner=ada_access.user, name="laptop")
        make_profile(auth_modes=["host-session"])
        request = DispatchRequest(profile_id="prof_deep", messages=messages_from(text="Hi.", messages=None))
        admit.dispatch(ada_access, request)

        assert claims.claim_next(owner="server") is None
        assert claims.claim_next(owner="server") is None

    def test_times_a_run_out_that_nobody_claimed(self, simulator: Any, connect: Any, dispatch: Any) -> None:
        connect()
        run = dispatch("Hi.")
        Run.objects.filter(id=run.id).update(deadline_at=database_now())

        reaper.reap()

        run.refresh_from_db()
        assert (run.state, run.error["code"]) == (Run.State.FAILED, "RUN_TIMEOUT")


class TestWrite:
    def test_settles_once_however_often_it_is_written(
        self, simulator: Any, connect: Any, dispatch: Any, work: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connect()
        dispatch("Hi.")
        plans = []
        write = settle.write
        monkeypatch.setattr(settle, "write", lambda list_of: (plans.extend(list_of), write(list_of))[1])
        work()

        write(plans)
        write(plans)

        assert CostEvent.objects.count() == 1
        assert_explained(simulator)


def test_an_integration_knows_when_its_key_was_used(simulator: Any, connect: Any, dispatch: Any, work: Any) -> None:
    used = connect()
    dispatch("Hi.")

    work()

    assert Integration.objects.get(id=used.id).last_used_at is not None
