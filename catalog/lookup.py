"""
Resolves a name to an entry.

A model is named by its id, by a shorter name that its provider also accepts, and by either of them after the provider's
prefix (`anthropic/claude-opus-5`) or before the suffix for a larger window (`claude-opus-5[1m]`). All of these mean one
entry, and all code that accepts a model's name resolves it here first: policies, prices and windows belong to an entry,
so another spelling cannot avoid them.
"""

from collections.abc import Collection, Iterable, Sequence

from django.db.models import Exists, OuterRef, Q, prefetch_related_objects

from catalog.models import CatalogEntry, ModelAlias
from catalog.providers import PROVIDERS
from rensei.orgs.models import Org


def find_named(
    names: Iterable[tuple[str, str]], *, org: Org | None, among: Sequence[CatalogEntry] | None = None
) -> dict[tuple[str, str], CatalogEntry]:
    """
    Find the entries of many (provider, name) pairs, in two queries. Pairs without an entry are left out.

    A platform entry takes precedence over an organization's own of the same name, however either is spelled. Without an
    organization there are only platform entries, as for the name in a provider's answer.

    :param among: the entries visible to the organization, if they have already been read
    """
    # PostgreSQL rejects a zero byte in a parameter, and no id contains one.
    asked = {pair: _spellings(*pair) for pair in names if "\0" not in pair[1]}
    texts = {text for spelled in asked.values() for text in spelled}
    if not texts:
        return {}
    found = _entries_of(texts, org=org) if among is None else list(among)
    prefetch_related_objects(found, "aliases")
    platform = {(entry.provider, name): entry for entry in found if entry.org_id is None for name in _own_names(entry)}
    own = {(entry.provider, entry.model_id): entry for entry in found if entry.org_id is not None}
    meant = {}
    for (provider, name), spelled in asked.items():
        for entries in (platform, own):
            entry = next((entries[provider, text] for text in spelled if (provider, text) in entries), None)
            if entry is not None:
                if _has_window(entry, name):
                    meant[provider, name] = entry
                break
    return meant


def names_of(entry: CatalogEntry) -> frozenset[str]:
    """List every name that means an entry, to find rules written under any of them."""
    spec = PROVIDERS.get(entry.provider)
    prefixes, suffixes = ("", spec.model_prefix) if spec else ("",), ("", *spec.window_suffixes) if spec else ("",)
    return frozenset(
        f"{prefix}{name}{suffix}" for name in _own_names(entry) for prefix in prefixes for suffix in suffixes
    )


def asks_for_a_window(provider: str | None, name: str) -> str:
    """Return the suffix for a larger window in a name, of one provider or any; an empty text if there is none."""
    specs = [spec for spec in PROVIDERS.values() if provider in (None, spec.id)]
    return next((suffix for spec in specs for suffix in spec.window_suffixes if name.endswith(suffix)), "")


def _entries_of(texts: Collection[str], *, org: Org | None) -> list[CatalogEntry]:
    visible = CatalogEntry.objects.filter(org=None) if org is None else CatalogEntry.objects.visible_to(org)
    is_alias = Exists(ModelAlias.objects.filter(entry=OuterRef("pk"), name__in=texts))
    return list(visible.filter(Q(model_id__in=texts) | is_alias))


def _own_names(entry: CatalogEntry) -> Collection[str]:
    return (entry.model_id, *(alias.name for alias in entry.aliases.all()))


def _spellings(provider: str, name: str) -> tuple[str, ...]:
    """The name as given, and without the prefix and suffix that an id may have."""
    spec = PROVIDERS.get(provider)
    if spec is None:
        return (name,)
    plain = name.removesuffix(asks_for_a_window(provider, name)).removeprefix(spec.model_prefix)
    return (name,) if plain == name else (name, plain)


def _has_window(entry: CatalogEntry, name: str) -> bool:
    suffix = asks_for_a_window(entry.provider, name)
    if not suffix or entry.context_window_tokens is None:
        return True
    return entry.context_window_tokens >= PROVIDERS[entry.provider].window_suffixes[suffix]
