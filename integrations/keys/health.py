"""
What a failed call means for its key, and who is notified: operators for a pool's key, else the organization.

A pool's key that the provider rejects is quarantined until an operator replaces it. A key out of funds cools down. One
that is rate limited cools down for the limit that the call counted in, because the provider limits each model by
itself. One that may not do what a call asked for cools down for that limit once two organizations have met the
refusal, with no success between: what one organization asks for does not take the key from the others. The state
belongs to the version of the key: a new key starts healthy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet

from integrations.models import Integration, PlatformKey
from integrations.providers.base import Credential, ProviderFailure
from rensei.core import mails
from rensei.core.errors import StoredError
from rensei.core.periods import end_of, month_of
from rensei.orgs.models import MANAGERS, Membership, Org, User

RATE_LIMITED_FOR = timedelta(seconds=60)
REFUSED_FOR = timedelta(minutes=10)
UNAUTHORIZED = 401
FORBIDDEN = 403

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class FailedCall:
    """
    A call that failed under a key of a pool: whose it was, and the name of the provider's limit that it counted in.

    `succeeded_at` tells when a call of the same model last succeeded under the key since a moment, or None.
    """

    credential: Credential
    org_id: str
    rate_limit: str
    succeeded_at: Callable[[datetime], datetime | None]


def note_failure(call: FailedCall, failure: ProviderFailure, *, now: datetime) -> None:
    """
    Remove a key from its pool, or for one model, if the failure concerns the key, and notify the operators once.

    Other failures (an overloaded provider, a broken connection, a bad request) change nothing.
    """
    if failure.code == "PROVIDER_RATE_LIMITED":
        wait = failure.retry_after_seconds
        _cool(call, failure, RATE_LIMITED_FOR if wait is None else timedelta(seconds=wait), now=now)
    elif failure.code == "PROVIDER_AUTH_FAILED" and failure.status == FORBIDDEN and not failure.retryable:
        _note_forbidden(call, failure, now=now)
    else:
        _note_verdict(call, failure, now=now)


def note_refused(credential: Credential, failure: ProviderFailure, *, now: datetime) -> None:
    """
    Mark an organization's own key as failing if the provider refused it, and notify its owners and admins once.

    The mark is for information: the next run still uses the key. A new version or a successful test clears it. A
    token that the provider ended early says nothing yet: the next call asks for another one.
    """
    if failure.status != UNAUTHORIZED or failure.retryable:
        return
    error: StoredError = {**_error_of(failure), "code": failure.diagnosis or failure.code}
    judged = Integration.objects.filter(id=credential.id, secret_version=credential.version)
    working = judged.exclude(status=Integration.Status.FAILING)
    if working.update(status=Integration.Status.FAILING, tested_at=now, last_error=error):
        logger.warning("integration_refused", integration_id=credential.id, code=failure.code)
        for integration in judged.select_related("org"):
            _tell_managers(integration)


def note_accepted(credential: Credential, *, now: datetime) -> None:
    """Clear the mark of an organization's own key that failed: its provider has accepted it."""
    failing = Integration.objects.filter(
        id=credential.id, secret_version=credential.version, status=Integration.Status.FAILING
    )
    failing.update(status=Integration.Status.OK, tested_at=now, last_error=None)


def has_refused(key: PlatformKey, *, org_id: str, rate_limit: str, now: datetime) -> bool:
    """Return whether a key may not do what a call of the organization in the limit has asked for a moment ago."""
    last = key.refused.get(rate_limit)
    return last is not None and last[0] == org_id and now - _moment(last) < REFUSED_FOR


def _cool(call: FailedCall, failure: ProviderFailure, wait: timedelta, *, now: datetime) -> None:
    """Stop using the key for one of the provider's limits. Calls that find it cooling change nothing more."""
    if not wait:
        return
    with transaction.atomic():
        key = _locked(call.credential)
        if key is None or key.cools_until(call.rate_limit, now) is not None:
            return
        until = now + wait
        pauses = {limit: end for limit, end in key.coolings(now).items() if limit}
        ends = {limit: end.isoformat() for limit, end in {**pauses, call.rate_limit: until}.items()}
        refused = {limit: last for limit, last in key.refused.items() if limit != call.rate_limit}
        PlatformKey.objects.filter(pk=key.pk).update(
            cooling_models=ends, refused=refused, last_error=_error_of(failure)
        )
    logger.warning("pool_key_cools", key_id=key.pk, limit=call.rate_limit, code=failure.code)


def _note_forbidden(call: FailedCall, failure: ProviderFailure, *, now: datetime) -> None:
    """Cool the key for the limit if another organization was refused before, and no call has succeeded since."""
    with transaction.atomic():
        key = _locked(call.credential)
        if key is None:
            return
        refused = {limit: last for limit, last in key.refused.items() if now - _moment(last) < REFUSED_FOR}
        last = refused.get(call.rate_limit)
        if last is not None and last[0] == call.org_id:
            return
        succeeded_at = call.succeeded_at(_moment(last)) if last is not None else None
        if last is None or succeeded_at is not None:
            refused[call.rate_limit] = [call.org_id, now.isoformat()]
            PlatformKey.objects.filter(pk=key.pk).update(refused=refused, last_error=_error_of(failure))
            return
    _cool(call, failure, REFUSED_FOR, now=now)


def _judged(credential: Credential) -> QuerySet[PlatformKey]:
    """The key of a pool, unless it has been replaced since the call."""
    return PlatformKey.objects.filter(id=credential.id, secret_version=credential.version)


def _locked(credential: Credential) -> PlatformKey | None:
    """Load the judged version of the key, unless it is quarantined, and lock its row: its JSON is written whole."""
    in_use = _judged(credential).exclude(health=PlatformKey.Health.QUARANTINED)
    return in_use.defer("sealed_key").select_for_update().first()


def _moment(last: list[str]) -> datetime:
    return datetime.fromisoformat(last[1])


def _error_of(failure: ProviderFailure) -> StoredError:
    return {"code": failure.code, "detail": failure.message, "fix": failure.fix}


def _note_verdict(call: FailedCall, failure: ProviderFailure, *, now: datetime) -> None:
    credential = call.credential
    verdict = _verdict(failure, now, is_federated=credential.federation is not None)
    if verdict is None:
        return
    health, until = verdict
    judged = _judged(credential)
    # Quarantine takes precedence over a cool-down. Each change of state is notified once, however many calls detect it.
    changing = judged.exclude(health=PlatformKey.Health.QUARANTINED)
    if health is PlatformKey.Health.COOLING:
        changing = changing.exclude(health=health, cooling_until__gte=until)
    if changing.update(health=health, cooling_until=until, last_error=_error_of(failure)):
        logger.warning("pool_key_out", key_id=credential.id, health=health.value, code=failure.code)
        if failure.code == "PROVIDER_AUTH_FAILED" and failure.status == UNAUTHORIZED:
            _alert(judged.first(), until)


def _verdict(
    failure: ProviderFailure, now: datetime, *, is_federated: bool
) -> tuple[PlatformKey.Health, datetime | None] | None:
    if failure.code == "PROVIDER_AUTH_FAILED":
        if failure.retryable:
            return None
        # A federation may be refused because the provider could not fetch our public keys, which passes by itself.
        if failure.status == UNAUTHORIZED and not is_federated:
            return PlatformKey.Health.QUARANTINED, None
        return PlatformKey.Health.COOLING, now + REFUSED_FOR
    if failure.code == "PROVIDER_UNFUNDED":
        return PlatformKey.Health.COOLING, end_of(month_of(now))
    return None


def _alert(key: PlatformKey | None, until: datetime | None) -> None:
    operators = list(User.objects.filter(is_staff=True, is_active=True).values_list("email", flat=True))
    if key is None or not operators:
        return
    subject = f"Rensei: a {key.pool} key of {key.provider} was refused"
    back = f" until {until:%H:%M} UTC" if until else ""
    body = (
        f"The provider refused the {key.pool} key '{key.name}' ({key.key_hint}), so it has been taken out of its "
        f"pool{back}. Replace it here:\n\n{settings.PUBLIC_URL}/admin/integrations/platformkey/{key.pk}/change/\n"
    )
    _mail(subject, body, operators)


def _tell_managers(integration: Integration) -> None:
    subject = f"Rensei: the key '{integration.name}' of {integration.org.name} was refused"
    body = (
        f"The provider refused the key '{integration.name}' ({integration.key_hint}), and the run that used it failed. "
        "Runs are not moved to another key or payer. Test or replace it here:\n\n"
        f"{settings.PUBLIC_URL}/o/{integration.org.slug}/settings/integrations\n"
    )
    mail_managers(integration.org, subject, body)


def mail_managers(org: Org, subject: str, body: str) -> None:
    """Mail the owners and admins of an organization. A fault of the mail server is logged."""
    managers = Membership.objects.filter(org=org, role__in=MANAGERS, user__is_active=True)
    _mail(subject, body, list(managers.order_by("user__email").values_list("user__email", flat=True)))


def _mail(subject: str, body: str, to: list[str]) -> None:
    try:
        mails.send(subject, body, to)
    except OSError as fault:
        # The pages show the key's state as well. A mail server fault must not fail the run.
        logger.warning("alert_not_mailed", fault=type(fault).__name__)
