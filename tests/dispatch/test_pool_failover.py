"""A pool of keys: which fails, which goes on, who is told, and that the payer stays the same."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.core import mail

from billing.models import CostEvent, Entitlement
from integrations.keys import health, platform
from integrations.models import PlatformKey
from integrations.providers.base import Credential, ProviderFailure
from rensei.core.secret import Secret
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.orgs.models import User
from tests.dispatch.reconcile import assert_explained

pytestmark = pytest.mark.django_db(transaction=True)

NOW = datetime(2026, 12, 31, 23, 59, tzinfo=UTC)
MODEL = "claude-opus-5-5"


@pytest.fixture
def add(make_key: Callable[..., str], db: None) -> Callable[..., PlatformKey]:
    def add_key(word: str = "", **fields: Any) -> PlatformKey:
        return platform.add_platform_key(
            actor=None,
            provider="claude",
            pool="metered",
            name=fields.pop("name", word or "good"),
            api_key=Secret(make_key(word)),
            # A failing key is all but certain to be chosen first.
            weight=30_000 if word else 1,
            **fields,
        )

    return add_key


@pytest.fixture
def dispatch(ada_access: Access, make_profile: Any) -> Callable[[], Run]:
    make_profile(auth_modes=["metered"])
    Entitlement.objects.filter(org=ada_access.org).update(metered_enabled=True)
    request = DispatchRequest(profile_id="prof_deep", messages=messages_from(text="Hi.", messages=None))
    return lambda: admit.dispatch(ada_access, request)


class TestAPoolKeyThatFails:
    @pytest.mark.parametrize(
        ("word", "health", "limits"),
        [
            ("revoked", "quarantined", []),
            ("tiercap", "cooling", []),
            # What one organization may not do is no verdict.
            ("forbidden", "healthy", []),
            ("ratelimited", "healthy", [MODEL]),
        ],
    )
    def test_makes_room_for_the_next_key_of_the_pool_each_try_its_own_attempt(
        self, simulator: Any, grace: User, add: Any, dispatch: Any, work: Any, word: str, health: str, limits: list[str]
    ) -> None:
        bad, good = add(word), add()
        dispatch()

        (run,) = work()

        assert run.state == Run.State.SUCCEEDED, run.error
        assert [attempt.credential_id for attempt in run.attempts.order_by("number")] == [bad.id, good.id]
        bad.refresh_from_db()
        assert (bad.health, list(bad.cooling_models)) == (health, limits)
        assert {charge.payer for charge in CostEvent.objects.all()} == {"organization-via-rensei"}
        assert run.billed
        assert_explained(simulator)

    def test_is_no_next_key_for_what_it_has_refused_to_the_organization(
        self, simulator: Any, grace: User, add: Any, dispatch: Any, work: Any
    ) -> None:
        """Otherwise, each call that no key may make would be as many calls as there are keys to try."""
        for number in range(2):
            add("forbidden", name=f"key {number}")
        for _ in range(3):
            dispatch()

        runs = work()

        assert [run.attempt_count for run in runs] == [2, 1, 1]

    def test_is_told_of_to_the_operators_once_and_never_to_the_organization(
        self, simulator: Any, grace: User, add: Any, dispatch: Any, work: Any
    ) -> None:
        bad = add("revoked")
        runs = [dispatch() for _ in range(3)]

        work()

        for run in Run.objects.filter(id__in=[run.id for run in runs]):
            assert run.error["code"] == "METERED_KEY_NOT_CONFIGURED"
            assert bad.key_hint not in str(run.error)
        (alert,) = mail.outbox
        assert alert.to == [grace.email]
        assert bad.name in alert.body
        assert len([call for call in simulator.requests() if call["path"] == "/v1/messages"]) == 1

    def test_leaves_the_next_dispatch_with_the_documented_refusal(
        self, simulator: Any, grace: User, add: Any, dispatch: Any, work: Any
    ) -> None:
        add("revoked")
        dispatch()
        work()

        with pytest.raises(Exception, match="No metered key is configured for provider 'claude'"):
            dispatch()


class TestAQueuedRun:
    def test_is_refused_without_a_call_when_metered_was_disabled_meanwhile(
        self, simulator: Any, ada_access: Access, add: Any, dispatch: Any, work: Any
    ) -> None:
        add()
        dispatch()
        Entitlement.objects.filter(org=ada_access.org).update(metered_enabled=False)

        (run,) = work()

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "METERED_NOT_ENTITLED")
        assert not simulator.requests()
        assert_explained(simulator)


class TestNoteFailure:
    def note(
        self,
        key: PlatformKey,
        *,
        org_id: str = "org_one",
        rate_limit: str = MODEL,
        at: datetime = NOW,
        succeeded_at: datetime | None = None,
        **failure: Any,
    ) -> PlatformKey:
        call = health.FailedCall(
            credential=Credential(id=key.id, version=key.secret_version, secret=Secret(""), base_url=""),
            org_id=org_id,
            rate_limit=rate_limit,
            succeeded_at=lambda since: succeeded_at,
        )
        defaults = {"message": "m", "fix": "f", "retryable": False}
        health.note_failure(call, ProviderFailure(**{**defaults, **failure}), now=at)
        key.refresh_from_db()
        return key

    @pytest.mark.parametrize(("wait", "seconds"), [(7.0, 7), (None, 60)])
    def test_cools_a_limited_key_for_the_model_and_as_long_as_the_provider_says(
        self, add: Any, catalog: None, wait: float | None, seconds: int
    ) -> None:
        key = self.note(add(), code="PROVIDER_RATE_LIMITED", status=429, retry_after_seconds=wait)

        assert key.coolings(NOW) == {MODEL: NOW + timedelta(seconds=seconds)}
        assert key.cools_until("another", NOW) is None
        assert key.last_error is not None

    def test_cools_no_key_that_the_provider_takes_again_at_once(self, add: Any, catalog: None) -> None:
        key = self.note(add(), code="PROVIDER_RATE_LIMITED", status=429, retry_after_seconds=0.0)

        assert key.coolings(NOW) == {}

    def test_keeps_one_pause_for_each_limit_and_forgets_what_is_over(self, add: Any, catalog: None) -> None:
        limited = {"code": "PROVIDER_RATE_LIMITED", "status": 429, "retry_after_seconds": 5.0}
        key = add()
        later, after = NOW + timedelta(seconds=2), NOW + timedelta(seconds=6)

        self.note(key, rate_limit="a", **limited)
        self.note(key, rate_limit="b", at=later, **limited)
        both = self.note(key, rate_limit="a", at=later, **limited).coolings(later)
        self.note(key, rate_limit="c", at=after, **limited)

        # A call that was under way when the pause began does not prolong it.
        assert both == {"a": NOW + timedelta(seconds=5), "b": NOW + timedelta(seconds=7)}
        assert key.cooling_models.keys() == {"b", "c"}

    def test_takes_what_one_organization_may_not_do_for_no_verdict(self, add: Any, catalog: None) -> None:
        forbidden = {"code": "PROVIDER_AUTH_FAILED", "status": 403}
        key = add()

        for second in range(3):
            self.note(key, at=NOW + timedelta(seconds=second), **forbidden)

        assert (key.health, key.coolings(NOW)) == ("healthy", {})
        assert key.last_error is not None

    @pytest.mark.parametrize(("minutes", "succeeds", "cools"), [(1, False, True), (1, True, False), (11, False, False)])
    def test_cools_a_key_that_two_organizations_may_not_use_for_a_model(
        self, add: Any, catalog: None, minutes: int, succeeds: bool, cools: bool
    ) -> None:
        forbidden = {"code": "PROVIDER_AUTH_FAILED", "status": 403}
        key, then = add(), NOW + timedelta(minutes=minutes)
        self.note(key, **forbidden)

        self.note(key, org_id="org_two", at=then, succeeded_at=then if succeeds else None, **forbidden)

        assert key.coolings(then) == ({MODEL: then + timedelta(minutes=10)} if cools else {})

    def test_rests_a_key_out_of_money_until_the_next_month(self, add: Any, catalog: None) -> None:
        key = self.note(add(), code="PROVIDER_UNFUNDED", status=429)

        assert (key.health, key.cooling_until) == ("cooling", datetime(2027, 1, 1, tzinfo=UTC))

    @pytest.mark.parametrize("code", ["PROVIDER_OVERLOADED", "PROVIDER_UNAVAILABLE", "PROVIDER_REJECTED"])
    def test_blames_no_key_for_what_is_the_providers_or_the_requests(self, add: Any, catalog: None, code: str) -> None:
        assert self.note(add(), code=code, status=529).health == "healthy"

    def test_does_not_judge_a_key_that_was_replaced_meanwhile(
        self, add: Any, make_key: Callable[..., str], catalog: None
    ) -> None:
        key = add()
        before = PlatformKey.objects.get(pk=key.pk)
        platform.replace_key(key, actor=None, api_key=Secret(make_key()))
        old_version = SimpleNamespace(id=key.id, secret_version=1, refresh_from_db=before.refresh_from_db)

        self.note(old_version, code="PROVIDER_AUTH_FAILED", status=401)
        self.note(old_version, code="PROVIDER_RATE_LIMITED", status=429)

        assert (before.health, before.secret_version, before.cooling_models) == ("healthy", 2, {})

    def test_keeps_a_quarantined_key_out_whatever_comes_late(self, grace: User, add: Any, catalog: None) -> None:
        key = add()
        self.note(key, code="PROVIDER_AUTH_FAILED", status=401)

        self.note(key, code="PROVIDER_RATE_LIMITED", status=429, retry_after_seconds=1.0)

        assert (key.health, key.cooling_models) == ("quarantined", {})
        assert len(mail.outbox) == 1
