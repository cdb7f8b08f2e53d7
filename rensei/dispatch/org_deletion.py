"""
Deleting an organization by one of its owners.

One transaction ends all access: members, tokens, machines and invitations. Then its keys are destroyed, with a signed
receipt, its runs are cancelled, and what it stores is deleted, in batches that a periodic job continues after a crash.
Prompts and answers do not wait for a key service that refuses, and the deletion does not end before the keys.

What it owes and what was done in it stays, as for every organization: the ledger with its statements and seals, the
audit log, and a row of figures for each run, without its texts. So the row of the organization stays too, and its ID is
not given to another one.
"""

import json
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from itertools import takewhile
from time import monotonic
from typing import Any

import structlog
from django.conf import settings
from django.db import models, transaction
from django.db.models import Q, QuerySet, Sum

from billing.integrity import receipts
from billing.integrity.anchor_keys import AnchorKeyUnavailable
from billing.models import (
    BudgetHold,
    BudgetUsage,
    CapHold,
    CostEvent,
    Entitlement,
    Hold,
    LedgerAnchor,
    LedgerSeal,
    SharedSpending,
    SharedUsage,
    Statement,
    UsageDaily,
)
from integrations.models import DataKey, Integration
from integrations.vault import destruction
from integrations.vault.errors import CredentialUnreadable
from profiles.models import ModelProfile
from rensei.accounts.models import Invitation
from rensei.audit.models import AuditEvent
from rensei.audit.record import record, record_system
from rensei.core import jobs, mails
from rensei.core.clock import database_now
from rensei.core.errors import FieldError
from rensei.core.later import later
from rensei.core.transactions import durable
from rensei.dispatch import services
from rensei.dispatch.models import Attempt, Run, RunChunk, RunFile, RunInput, Sandbox
from rensei.dispatch.pools.accounts import CLOUDS
from rensei.dispatch.settlement import capacity_use
from rensei.orgs import locks, storage
from rensei.orgs.access import Access
from rensei.orgs.models import Host, Membership, Org, Project, Role, StoredBytes
from rensei.tokens.models import DeviceCode

# The condition, for a periodic job, that an organization is being deleted.
ANY_DUE = "EXISTS (SELECT 1 FROM orgs_org WHERE deleting_at IS NOT NULL AND deleted_at IS NULL)"
BATCH = 500
# What one pass takes at most, for all organizations together: other periodic jobs wait for it.
TURN_SECONDS = 2.0
# For so long after its end a deletion is looked at again.
LOOK_AGAIN_FOR = timedelta(days=2)
# Until then every process knows that the organization has ended, so no run is added behind the deletion.
KNOWN_TO_ALL = timedelta(seconds=5)
# Sandboxes in clouds are ended before the keys that can end them are destroyed. This is waited for at most so long.
SANDBOXES_END_WITHIN = timedelta(minutes=10)
# The rows of an organization that stay. All others go, those of tables that are added later as well.
STAYING: frozenset[type[models.Model]] = frozenset(
    {
        CostEvent, UsageDaily, Statement, LedgerSeal, LedgerAnchor, Entitlement, BudgetUsage, SharedUsage,
        SharedSpending, Hold, BudgetHold, CapHold, StoredBytes, Run,
    }
)  # fmt: skip
# Those that others of the organization refer to come last.
LAST = (Host, Integration, Project)

# What the receipt of destroyed keys names, which stays until there is one.
OF_KEYS: frozenset[type[models.Model]] = frozenset({DataKey, Integration})
STARTED = "org.deletion_started"

# What an owner reads before.
CONSEQUENCES = (
    "All members lose access, and all tokens and machines are revoked, at once.",
    "Sandboxes in clouds are ended within ten minutes, and then stored keys are destroyed.",
    "Owners get the signed receipt of the keys by mail.",
    "Queued and running runs are cancelled. What a call has used until then is charged.",
    "Prompts, answers, profiles, policies, projects and workflows are deleted.",
    "The ledger, its statements, a row of figures for each run, and the audit log stay with the operator.",
    "The ID stays taken, so that no other organization can be mistaken for this one.",
)

logger = structlog.get_logger(__name__)


def delete_org(access: Access, *, confirm: str) -> Org:
    """
    End all access to the caller's organization at once, and begin to delete what it holds.

    :param confirm: the ID of the organization, typed again
    :raises OwnersOnly: unless the caller is an owner, without an end
    :raises FieldError: if another name was typed
    :raises NotFound: if it is being deleted already
    """
    access.require_lasting_owner()
    if confirm != access.org.slug:
        raise FieldError(pointer="/confirm", reason=f"Type the organization's ID, {access.org.slug}, to delete it.")
    with durable():
        # What is written under the lock of the organization, or takes storage, ends before this or is refused.
        org = locks.lock(access.org.pk)
        StoredBytes.objects.update_or_create(org=org, defaults={"limit_mib": 0})
        members = Membership.objects.for_org(org).order_by("user__email")
        told = list(members.filter(user__is_active=True).values_list("user__email", flat=True))
        owners = list(members.filter(user__is_active=True, role=Role.OWNER).values_list("user__email", flat=True))
        # No row tells afterwards who gets the receipt of the keys.
        facts = {"name": org.name, "slug": org.slug, "members": len(told), "owners": owners}
        record(access, STARTED, object_id=org.pk, **facts)
        org.deleting_at = database_now()
        org.save(update_fields=["deleting_at"])
        Host.objects.for_org(org).filter(revoked_at=None).update(revoked_at=org.deleting_at)
        for model in (Invitation, DeviceCode):
            model.objects.filter(org=org).delete()
        # With them go their tokens and saved views.
        members.delete()
        transaction.on_commit(partial(_tell, org, by=access.user.email, to=told), robust=True)
        transaction.on_commit(partial(later.do, partial(_go_on, org.pk), what="delete-org"), robust=True)
    return org


def go_on() -> None:
    """
    Continue all deletions that have begun, for one turn. The failure of one does not affect the others.

    They are taken in any order, so that those that wait for a call or for a key service do not stop those behind them.
    """
    _go_on_with(Org.objects.filter(deleting_at__isnull=False, deleted_at=None))


def look_again() -> None:
    """Delete what a process that had stopped for long has written behind a deletion."""
    _go_on_with(Org.objects.filter(deleted_at__gte=database_now() - LOOK_AGAIN_FOR))


def _go_on_with(orgs: QuerySet[Org]) -> None:
    until = monotonic() + TURN_SECONDS
    due = list(orgs.order_by("?").values_list("pk", flat=True)[:BATCH])
    in_turn = takewhile(lambda _: monotonic() < until, due)
    jobs.for_each(in_turn, partial(_go_on, until=until), job="delete-orgs")


def _go_on(org_id: str, *, until: float | None = None) -> None:
    """Delete what an organization holds until a time of the clock, or for one turn, and one step at least."""
    until = monotonic() + TURN_SECONDS if until is None else until
    for _ in _steps(Org.objects.get(pk=org_id)):
        if monotonic() >= until:
            return


def _steps(org: Org) -> Iterator[None]:
    """
    Delete what an organization holds, as far as that is possible now. Each step is short and may be repeated.

    Its sandboxes in clouds are ended first, then its keys are destroyed. Where that is not possible yet, all but the
    keys is deleted.
    """
    yield from _cancel_runs(org)
    if _awaits_sandboxes(org):
        return
    has_keys = not _destroy_keys(org)
    is_live = Run.objects.for_org(org).live().exists()
    if is_live or org.deleting_at is None or database_now() < org.deleting_at + KNOWN_TO_ALL:
        return
    yield from _end_sandboxes(org)
    yield from _empty_runs(org)
    yield from _delete_rest(org, staying=STAYING | OF_KEYS if has_keys else STAYING)
    if has_keys:
        return
    with durable():
        if Org.objects.filter(pk=org.pk, deleted_at=None).update(deleted_at=database_now()):
            record_system("delete-orgs", "org.deleted", object_id=org.pk, org_id=org.pk, slug=org.slug)


def _destroy_keys(org: Org) -> bool:
    """Destroy the keys by order of the owner, and mail the owners the receipt. False where that has to wait."""
    started = AuditEvent.objects.filter(org_id=org.pk, action=STARTED).order_by("pk").last()
    actor, owners = (started.actor, started.detail.get("owners", [])) if started else ("delete-orgs", [])
    try:
        receipt = destruction.destroy_keys(
            org, actor=actor, backups_kept_days=settings.RENSEI_BACKUPS_KEPT_DAYS, sign=receipts.sign
        )
    except destruction.NothingToDestroy:
        return True
    except (AnchorKeyUnavailable, CredentialUnreadable) as fault:
        logger.warning("org_deletion_waits_for_its_keys", org_id=org.pk, fault=type(fault).__name__)
        return False
    subject = f"Rensei: the keys of {org.name} were destroyed"
    body = (
        f"All keys that were stored for {org.name} ({org.slug}) are destroyed. This is the signed receipt. Keep it: an "
        f"operator can check its signature with `vault check-receipt`.\n\n{json.dumps(receipt, indent=2)}\n"
    )
    for email in owners:
        later.do(partial(mails.send, subject, body, [email]), what="keys-destroyed")
    return True


def _cancel_runs(org: Org) -> Iterator[None]:
    """Cancel what is queued or under way. Calls that are under way may still take a while."""
    # One that lost its worker before its call is queued again, with the request.
    live = Run.objects.for_org(org).live()
    for run in live.filter(Q(cancel_requested_at=None) | Q(state=Run.State.QUEUED)).order_by("id")[:BATCH]:
        services.request_cancel(run)
        yield


def _awaits_sandboxes(org: Org) -> bool:
    """Return whether sandboxes in clouds are to be ended first, which needs the keys. Workers do it within minutes."""
    if org.deleting_at is None or database_now() >= org.deleting_at + SANDBOXES_END_WITHIN:
        return False
    return Sandbox.objects.for_org(org).filter(ended_at=None, provider_id__in=CLOUDS).exists()


def _end_sandboxes(org: Org) -> Iterator[None]:
    """
    Write the lines of sandboxes in clouds that no worker could end: their rows go, and what they may have cost stays.

    They end by themselves soon after the deadline of their run.
    """
    left = Sandbox.objects.for_org(org).filter(ended_at=None, provider_id__in=CLOUDS).order_by("id")
    while batch := list(left.select_related("run__project")[:BATCH]):
        capacity_use.end_left(batch, {})
        yield


def _empty_runs(org: Org) -> Iterator[None]:
    """Delete the texts of the runs. Their figures stay, because ledger lines refer to them."""
    runs = Run.objects.for_org(org).order_by("id").values_list("id", flat=True)
    emptied_to = org.deleted_to
    while ids := list(runs.filter(id__gt=emptied_to)[:BATCH]):
        # An input may be megabytes long and is not read to be deleted.
        yield from _delete(RunInput.objects.filter(run__in=ids).only("run"), org)
        yield from _delete(RunChunk.objects.filter(run__in=ids), org)
        yield from _delete(RunFile.objects.filter(run__in=ids).only("run"), org)
        emptied_to = ids[-1]
        with durable():
            locked = Org.objects.select_for_update(no_key=True).get(pk=org.pk)
            batch = Run.objects.filter(id__in=ids)
            freed = batch.aggregate(size=Sum("stored_bytes"))["size"] or 0
            Attempt.objects.filter(run__in=ids, error__isnull=False).update(error=None)
            # Projects and machines go later: that they are named is undone here, and not for all runs at once.
            batch.update(
                project=None, host=None, output_text="", output_content=[], agent_result=None, metadata={}, trace=[],
                error=None, stored_bytes=0, event_bytes=0,
            )  # fmt: skip
            storage.change({org.pk: (-freed, 0)})
            locked.deleted_to = max(locked.deleted_to, emptied_to)
            locked.save(update_fields=["deleted_to"])
        yield


def _delete_rest(org: Org, *, staying: frozenset[type[models.Model]]) -> Iterator[None]:
    """Delete the rows of all other tables."""
    held: list[type[Any]] = sorted(
        {reference.related_model for reference in _references_to(Org)} - staying,
        key=lambda model: (model in LAST, model is not ModelProfile, model._meta.label),  # noqa: SLF001
    )
    for model in held:
        yield from _delete(model._default_manager.filter(org=org), org)  # noqa: SLF001


def _delete(rows: QuerySet[Any], org: Org) -> Iterator[None]:
    """Delete rows in batches, and before each batch, also in batches, the rows that go with it."""
    model = rows.model
    # A workflow releases what its versions and runs store, and a profile its own bytes, when it is deleted itself.
    is_counted = model is not ModelProfile and any(field.name == "stored_bytes" for field in model._meta.fields)  # noqa: SLF001
    while keys := list(rows.order_by().values_list("pk", flat=True)[:BATCH]):
        for reference in _references_to(model):
            if reference.on_delete is models.CASCADE:
                children = reference.related_model._default_manager  # noqa: SLF001
                yield from _delete(children.filter(**{f"{reference.field.name}__in": keys}), org)
        with durable():
            batch = rows.filter(pk__in=keys)
            if is_counted:
                freed = batch.aggregate(size=Sum("stored_bytes"))["size"] or 0
                storage.change({org.pk: (-freed, 0)})
            batch.delete()
        yield


def _references_to(model: type[models.Model]) -> list[Any]:
    """List the foreign keys to a model, also those without a name on its side."""
    fields = model._meta.get_fields(include_hidden=True)  # noqa: SLF001 - Django's documented interface
    return [field for field in fields if field.auto_created and (field.one_to_many or field.one_to_one)]


def _tell(org: Org, *, by: str, to: list[str]) -> None:
    """Mail those who were members, one by one, after the answer."""
    subject = f"Rensei: {org.name} was deleted"
    body = (
        f"{by} deleted the organization {org.name} ({org.slug}). All access to it has ended, and its tokens and "
        "machines were revoked. Its runs will be cancelled, its keys destroyed, and its prompts, answers, profiles and "
        "workflows deleted. Owners get a receipt of the keys. The ledger of what its runs cost and the audit log stay "
        "with the operator of the server.\n"
    )
    for email in to:
        later.do(partial(mails.send, subject, body, [email]), what="org-deleted")
