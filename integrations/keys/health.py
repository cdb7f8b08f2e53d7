"""
What a failed call means for its key, and who is notified: operators for a pool's key, else the organization.

A pool's key that the provider refuses is quarantined until an operator replaces it. A key that is rate limited or
out of funds cools down. The state belongs to the version of the key: a new key starts healthy.
"""

from datetime import datetime, timedelta

import structlog
from django.conf import settings

from integrations.models import Integration, PlatformKey
from integrations.providers.base import Credential, ProviderFailure
from rensei.core import mails
from rensei.core.errors import StoredError
from rensei.core.periods import end_of, month_of
from rensei.orgs.models import MANAGERS, Membership, Org, User

RATE_LIMITED_FOR = timedelta(seconds=60)
REFUSED_FOR = timedelta(minutes=10)
UNAUTHORIZED = 401

logger = structlog.get_logger(__name__)


def note_failure(credential: Credential, failure: ProviderFailure, *, now: datetime) -> None:
    """
    Remove a key from its pool if the failure concerns the key, and notify the operators once.

    Other failures (an overloaded provider, a broken connection, a bad request) change nothing.
    """
    verdict = _verdict(failure, now, is_federated=credential.federation is not None)
    if verdict is None:
        return
    health, until = verdict
    error: StoredError = {"code": failure.code, "detail": failure.message, "fix": failure.fix}
    judged = PlatformKey.objects.filter(id=credential.id, secret_version=credential.version)
    # Quarantine takes precedence over a cool-down. Each change of state is notified once, however many calls detect it.
    changing = judged.exclude(health=PlatformKey.Health.QUARANTINED)
    if health is PlatformKey.Health.COOLING:
        changing = changing.exclude(health=health, cooling_until__gte=until)
    if changing.update(health=health, cooling_until=until, last_error=error):
        logger.warning("pool_key_out", key_id=credential.id, health=health.value, code=failure.code)
        if failure.code == "PROVIDER_AUTH_FAILED" and failure.status == UNAUTHORIZED:
            _alert(judged.first(), until)


def note_refused(credential: Credential, failure: ProviderFailure, *, now: datetime) -> None:
    """
    Mark an organization's own key as failing if the provider refused it, and notify its owners and admins once.

    The mark is for information: the next run still uses the key. A new version or a successful test clears it. A
    token that the provider ended early says nothing yet: the next call asks for another one.
    """
    if failure.status != UNAUTHORIZED or failure.retryable:
        return
    code = failure.diagnosis or failure.code
    error: StoredError = {"code": code, "detail": failure.message, "fix": failure.fix}
    judged = Integration.objects.filter(id=credential.id, secret_version=credential.version)
    working = judged.exclude(status=Integration.Status.FAILING)
    if working.update(status=Integration.Status.FAILING, tested_at=now, last_error=error):
        logger.warning("integration_refused", integration_id=credential.id, code=failure.code)
        for integration in judged.select_related("org"):
            _tell_managers(integration)


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
    if failure.code == "PROVIDER_RATE_LIMITED":
        wait = failure.retry_after_seconds
        return PlatformKey.Health.COOLING, now + (RATE_LIMITED_FOR if wait is None else timedelta(seconds=wait))
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
