"""
Inputs in which a key was found: the stored one has a mark in its place, and the original is sealed. Those with the
deploy token of an agent are kept in the same way.

The call goes to the provider as the caller sent it, so the worker opens the original. It is deleted within ten minutes
after the end of the run.
"""

import json
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any

from django.db.models import F

from integrations.keys import leaks
from integrations.keys.leaks import Leaks
from integrations.vault import sealed, vault
from integrations.vault.sealed import Record
from integrations.vault.vault import DEFAULT_DESTINATION, SealContext
from rensei.core import jobs
from rensei.core.querysets import pages
from rensei.core.secret import Secret
from rensei.core.transactions import durable
from rensei.dispatch import agents
from rensei.dispatch.models import Run, RunInput
from rensei.dispatch.modes.base import why_of
from rensei.orgs import storage
from rensei.orgs.models import Org

BATCH = 100


def without_keys(run: Run, body: dict[str, Any]) -> tuple[RunInput, Leaks]:
    """
    Build the stored input of a run, and blot out known keys in it and in the run's metadata, and a deploy token.

    :raises CredentialUnreadable: if the vault cannot seal the original now
    """
    found = leaks.find([body, run.metadata], org=run.org)
    stored = agents.without_token(body)
    if not found and stored is body:
        return RunInput(run=run, body=body), found
    original = Secret(json.dumps(body, ensure_ascii=False))
    run.metadata = found.blot(run.metadata)
    return RunInput(run=run, body=found.blot(stored), original=vault.seal(original, context=_place_of(run))), found


def body_of(run: Run) -> dict[str, Any]:
    """
    Return the input of a run as the caller sent it.

    :raises CredentialUnreadable: if the vault cannot open it now
    """
    stored: dict[str, Any] = run.input.body
    if run.input.original is None:
        return stored
    opened = vault.open_sealed(run.input.original, context=_place_of(run), why=why_of(run))
    original: dict[str, Any] = json.loads(opened.reveal())
    return original


def drop_of_ended_runs() -> None:
    """Delete the originals of runs that have ended."""
    ended = RunInput.objects.filter(original__isnull=False, run__state__in=Run.ENDED)
    for page in pages(ended.only("run_id"), size=BATCH):
        jobs.for_each([one.run_id for one in page], _drop, job="drop-withheld-inputs")


def _drop(run_id: str) -> None:
    with durable():
        held = RunInput.objects.select_for_update(of=("self",)).filter(run_id=run_id, original__isnull=False)
        found = held.select_related("run").first()
        if found is None or found.original is None:
            return
        freed = len(found.original)
        RunInput.objects.filter(run_id=run_id).update(original=None)
        Run.objects.filter(id=run_id).update(stored_bytes=F("stored_bytes") - freed)
        storage.change({found.run.org_id: (-freed, 0)})


def _place_of(run: Run) -> SealContext:
    return SealContext(
        org=run.org, record_id=run.id, field="input", version=1, provider="", destination=DEFAULT_DESTINATION
    )


class Originals:
    """The originals among an organization's sealed records."""

    columns = (f"{RunInput._meta.label}.original",)  # noqa: SLF001 - Django's documented way from a model

    def of(self, org: Org | None) -> Iterator[Record]:
        if org is not None:
            rows = RunInput.objects.filter(run__org=org, original__isnull=False).select_related("run__org")
            for row in chain.from_iterable(pages(rows, size=sealed.BATCH)):
                assert row.original is not None
                original = bytes(row.original)
                yield Record(
                    name=f"RunInput {row.pk}",
                    sealed=original,
                    context=_place_of(row.run),
                    replace=partial(_replace, row.pk, original),
                )


def _replace(run_id: str, old: bytes, new: bytes) -> bool:
    return bool(RunInput.objects.filter(pk=run_id, original=old).update(original=new))


sealed.register(Originals())
