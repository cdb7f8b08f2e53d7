"""
Which platform models have answered calls to other entries.

An organization may add any id, and the provider, or a server of the organization, chooses the model that answers. Once
a model of the platform's catalog has answered, its policy rows also apply to that id. The same is recorded of a
platform entry if a denied model has answered in its place.
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


def answered_by(entries: Iterable[CatalogEntry], *, org: Org | None = None) -> dict[int, list[CatalogEntry]]:
    """
    List, by the key of an entry, the platform entries whose models have answered its calls.

    :param org: the organization whose calls to platform entries are included; None: only own entries are looked up
    """
    caller = org.pk if org is not None else None
    looked_up = {entry: org_id for entry in entries if (org_id := entry.org_id or caller)}
    if not looked_up:
        return {}
    rows = Identity.objects.filter(
        org__in=set(looked_up.values()), model_id__in={entry.model_id for entry in looked_up}
    )
    seen = [((row.org_id, row.provider, row.model_id), (row.provider, row.answered_by)) for row in rows]
    platform = find_named({named for _, named in seen}, org=None)
    found: dict[int, list[CatalogEntry]] = {}
    for entry, org_id in looked_up.items():
        key = (org_id, entry.provider, entry.model_id)
        found[entry.pk] = [platform[named] for of, named in seen if of == key and named in platform]
    return found


def answerers(answers: Collection[Answered]) -> list[tuple[Answered, CatalogEntry, bool]]:
    """List the answers of another platform model, each with its entry and whether the called entry is an own one."""
    if not answers:
        return []
    platform = find_named({(answer.provider, answer.name) for answer in answers}, org=None)
    own = CatalogEntry.objects.filter(
        org__in={answer.org for answer in answers}, model_id__in={answer.model_id for answer in answers}
    )
    made = set(own.values_list("org", "provider", "model_id"))
    return [
        (answer, entry, (answer.org.pk, answer.provider, answer.model_id) in made)
        for answer in answers
        if (entry := platform.get((answer.provider, answer.name))) and entry.model_id != answer.model_id
    ]


def note(answer: Answered, entry: CatalogEntry) -> bool:
    """Record within the caller's transaction which model answered, and return whether that was not known before."""
    assert_open()
    _, is_new = Identity.objects.get_or_create(
        org=answer.org,
        provider=answer.provider,
        model_id=answer.model_id,
        answered_by=entry.model_id,
        defaults={"run_id": answer.run_id},
    )
    return is_new
