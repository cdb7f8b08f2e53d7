"""
The operators' kill switches: what they have stopped for now, and the reason that refused callers get.

A switch is a row that every dispatch reads, and every claim of a queued run reads again, so it applies in all
processes as soon as it is committed. A call that is under way continues and is settled.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db.models import Func, JSONField, OuterRef, Q, Subquery
from django.db.models.functions import JSONObject

from rensei.audit.record import record_operator
from rensei.core.clock import database_now
from rensei.core.errors import AlreadyExists, FieldError, RenseiError, Said
from rensei.core.transactions import durable
from rensei.orgs.models import KillSwitch, Org, User

REASON_LENGTH = 300
Kind = KillSwitch.Kind


class OrgSuspended(RenseiError):
    """The operators have suspended the organization."""

    code = "ORG_SUSPENDED"
    status = 403
    title = "Organization suspended"
    message = Said(
        "The operator has suspended this organization: {reason}",
        "It can read everything and dispatch nothing. Ask your Rensei operator{contact} to resume it.",
    )


class PausedByOperator(RenseiError):
    """The operators have paused the provider, the model, the auth mode or the key."""

    code = "PAUSED_BY_OPERATOR"
    status = 503
    title = "Paused by the operator"
    message = Said(
        "The operator has paused {what}: {reason}",
        "Dispatch again later, or ask your Rensei operator{contact} when it will be resumed.",
    )
    retryable = True


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """What the operators have stopped for one organization: the reasons, by kind and target."""

    reasons: Mapping[tuple[str, str], str]

    def require_running(
        self, *, org_id: str, provider: str, model_ids: Collection[str], mode: str, integration_id: str
    ) -> None:
        """
        Check everything that a call uses except the platform's own keys, which their pool checks.

        :raises OrgSuspended: if the organization is suspended
        :raises PausedByOperator: with the name of what is paused
        """
        found = self.concerning(
            org_id=org_id, provider=provider, model_ids=model_ids, mode=mode, integration_id=integration_id
        )
        for kind, target, reason in found:
            raise _suspended(reason) if kind == Kind.ORGANIZATION else paused(kind, target, reason=reason)

    def concerning(
        self, *, org_id: str, provider: str, model_ids: Collection[str], mode: str, integration_id: str
    ) -> Iterator[tuple[Kind, str, str]]:
        """List what is stopped of that which a call uses: its kind, its target and the reason."""
        targets = [
            (Kind.ORGANIZATION, org_id),
            (Kind.PROVIDER, provider),
            *((Kind.MODEL, model_id) for model_id in sorted(model_ids)),
            (Kind.AUTH_MODE, mode),
            (Kind.INTEGRATION, integration_id),
        ]
        for kind, target in targets:
            reason = self.reasons.get((kind, target))
            if reason is not None:
                yield kind, target, reason


class _ListOf(Func):
    """All values of a subquery as one list, whose function has a different name on each database."""

    function = "JSONB_AGG"

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, function="JSON_GROUP_ARRAY", **context)


def stopped_for(org: Org) -> Stopped:
    """Read what is stopped for all organizations and for this one, in one query."""
    return read_stopped(Org.objects.filter(pk=org.pk).values_list(switches_of(), flat=True).get())


def switches_of() -> Subquery:
    """Build the subquery of an organization's switches, in a query over organizations, for `read_stopped`."""
    concerned = KillSwitch.objects.filter(Q(org=None) | Q(org=OuterRef("pk"))).order_by()
    one = JSONObject(kind="kind", target="target", reason="reason")
    return Subquery(concerned.values(all=_ListOf(one, output_field=JSONField())))


def read_stopped(switches: Iterable[Mapping[str, str]] | None) -> Stopped:
    """Build a `Stopped` from the result of `switches_of`."""
    return Stopped(reasons={(switch["kind"], switch["target"]): switch["reason"] for switch in switches or ()})


def require_not_suspended(org: Org) -> None:
    """:raises OrgSuspended: if the operators have suspended the organization"""
    reason = suspension_of(org)
    if reason is not None:
        raise _suspended(reason)


def suspension_of(org: Org) -> str | None:
    """Read why an organization is suspended; None if it is not."""
    switches = KillSwitch.objects.for_org(org).filter(kind=Kind.ORGANIZATION)
    reason: str | None = switches.values_list("reason", flat=True).first()
    return reason


def paused(kind: str, target: str, *, reason: str) -> PausedByOperator:
    """Make the error for something that is paused. Keys are not named: callers cannot use their ids."""
    what = {
        Kind.PROVIDER: f"provider '{target}'",
        Kind.MODEL: f"model '{target}'",
        Kind.AUTH_MODE: f"auth mode '{target}'",
        Kind.PLATFORM_KEY: "the platform's keys for this model",
        Kind.INTEGRATION: "the key that this organization has connected",
    }[Kind(kind)]
    return PausedByOperator(what=what, reason=_sentence(reason), contact=_contact(), extra=_support())


def stop(*, operator: User, kind: str, target: str, reason: str, org: Org | None = None) -> KillSwitch:
    """
    Stop something until it is resumed. `org` is given if the switch is for that organization only.

    :raises FieldError: if the reason is missing or too long
    :raises AlreadyExists: if it is stopped already
    """
    reason = " ".join(reason.split())
    if not reason or len(reason) > REASON_LENGTH:
        raise FieldError(
            pointer="/reason", reason=f"Say why, in at most {REASON_LENGTH} characters: the refused are shown it."
        )
    with durable():
        switch, is_new = KillSwitch.objects.get_or_create(
            kind=kind,
            target=target,
            defaults={"org": org, "reason": reason, "set_by": operator.email, "set_at": database_now()},
        )
        if not is_new:
            raise AlreadyExists(what=f"A kill switch for {switch}")
        record_operator(operator, f"{_noun(switch)}.{_verb(switch)}", object_id=target, org=org, reason=reason)
    return switch


def resume(switch: KillSwitch, *, operator: User) -> None:
    """Resume something that was stopped. A second call changes nothing."""
    with durable():
        deleted, _ = KillSwitch.objects.filter(pk=switch.pk).delete()
        if deleted:
            action = f"{_noun(switch)}.resumed"
            record_operator(operator, action, object_id=switch.target, org=switch.org, reason=switch.reason)


def _suspended(reason: str) -> OrgSuspended:
    return OrgSuspended(reason=_sentence(reason), contact=_contact(), extra=_support())


def _sentence(reason: str) -> str:
    return reason if reason.endswith((".", "!", "?")) else f"{reason}."


def _contact() -> str:
    return f" ({settings.RENSEI_SUPPORT_EMAIL})" if settings.RENSEI_SUPPORT_EMAIL else ""


def _support() -> dict[str, str]:
    return {"supportEmail": settings.RENSEI_SUPPORT_EMAIL} if settings.RENSEI_SUPPORT_EMAIL else {}


def _noun(switch: KillSwitch) -> str:
    return "org" if switch.kind == Kind.ORGANIZATION else switch.kind.replace("-", "_")


def _verb(switch: KillSwitch) -> str:
    return "suspended" if switch.kind == Kind.ORGANIZATION else "paused"
