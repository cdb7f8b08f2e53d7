"""
Which platform models have answered calls to organizations' own entries.

An organization may add any id, and the provider, or a server of the organization, chooses the model that answers. Once
a model of the platform's catalog has answered, its policy rows also apply to that id.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from catalog.lookup import find_named
from catalog.models import CatalogEntry, Identity
from rensei.core.transactions import assert_open
from rensei.orgs.models import Org


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A call to a model under an id, and the model name in its answer."""

    org: Org
    provider: str
    model_id: str
    name: str
    run_id: str


def answered_by(entries: Iterable[CatalogEntry]) -> dict[int, list[CatalogEntry]]:
    """List, by the key of an organization's own entry, the platform entries whose models have answered its calls."""
    own = [entry for entry in entries if entry.org_id is not None]
    if not own:
        return {}
    rows = Identity.objects.filter(
        org__in={entry.org_id for entry in own}, model_id__in={entry.model_id for entry in own}
    )
    seen = [((row.org_id, row.provider, row.model_id), (row.provider, row.answered_by)) for row in rows]
    platform = find_named({named for _, named in seen}, org=None)
    found: dict[int, list[CatalogEntry]] = {}
    for entry in own:
        key = (entry.org_id, entry.provider, entry.model_id)
        found[entry.pk] = [platform[named] for of, named in seen if of == key and named in platform]
    return found


def note(answers: Collection[Answered]) -> list[tuple[Answered, CatalogEntry]]:
    """
    Record which platform models have answered calls to organizations' own entries, within the caller's transaction.

    Returns the answers that were recorded for the first time, each with the platform's entry.
    """
    assert_open()
    if not answers:
        return []
    own = CatalogEntry.objects.filter(
        org__in={answer.org for answer in answers}, model_id__in={answer.model_id for answer in answers}
    )
    made = set(own.values_list("org", "provider", "model_id"))
    asked = [answer for answer in answers if (answer.org.pk, answer.provider, answer.model_id) in made]
    platform = find_named({(answer.provider, answer.name) for answer in asked}, org=None)
    new = []
    for answer in asked:
        entry = platform.get((answer.provider, answer.name))
        if entry is None:
            continue
        _, is_new = Identity.objects.get_or_create(
            org=answer.org,
            provider=answer.provider,
            model_id=answer.model_id,
            answered_by=entry.model_id,
            defaults={"run_id": answer.run_id},
        )
        if is_new:
            new.append((answer, entry))
    return new
