"""
Keys of this installation in the texts of runs: found by their shape, recognised by their fingerprints, and replaced by
a mark.

Recognised are the keys that the organization of the run has connected, and every API token of this installation. What
only looks like a key is left as it is.
"""

import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import Any

from django.conf import settings
from django.db import transaction

from catalog import providers
from integrations.keys import health, shapes
from integrations.keys.shapes import SHOWN_AT_END
from integrations.models import Integration
from integrations.vault import vault
from integrations.vault.errors import CredentialUnreadable
from rensei.audit.record import record_system
from rensei.core.clock import database_now
from rensei.core.later import later
from rensei.core.limits import limit
from rensei.core.secret import Secret, token_digest
from rensei.core.transactions import assert_open
from rensei.orgs.models import Org
from rensei.tokens.models import ApiToken

# A text without these is not searched further, which is most of them.
BEGINNINGS = ("sk-ant-api", "rsk_live_")
_START = re.compile(r"sk-ant-api\d\d-|rsk_live_")
SHAPE = re.compile(r"sk-ant-api\d\d-[A-Za-z0-9_-]{16,480}|rsk_live_[0-9a-f]{64}")
LONGEST = 512
SHORTEST = len("sk-ant-api03-") + 16
# What may be the beginning of a key, at the end of a text that goes on.
_UNFINISHED = re.compile(
    r"(?:sk-ant-api[A-Za-z0-9_-]*|rsk_live_[0-9a-f]{0,63}"
    r"|s(?:k(?:-(?:a(?:n(?:t(?:-(?:a(?:p)?)?)?)?)?)?)?)?|r(?:s(?:k(?:_(?:l(?:i(?:v(?:e)?)?)?)?)?)?)?)\Z"
)
CANDIDATES_MAX = limit(
    1_000,
    "texts",
    what="Different texts of the shape of a key that are compared with the known ones, each input and each output",
    told="operators: further ones are left as they are",
)


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """What was found: the mark that takes the place of each text, and the keys that are no longer secret."""

    marks: dict[str, str] = field(default_factory=dict)
    integrations: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.marks)

    def blot(self, value: Any) -> Any:
        """Return a JSON value with a mark in place of each key."""
        if not self.marks:
            return value
        if isinstance(value, str):
            pieces, end = [], 0
            for start, key in self.places(value):
                pieces += [value[end:start], self.marks[key]]
                end = start + len(key)
            return "".join([*pieces, value[end:]])
        if isinstance(value, dict):
            return {self.blot(name): self.blot(each) for name, each in value.items()}
        if isinstance(value, list):
            return [self.blot(each) for each in value]
        return value

    def places(self, text: str) -> Iterator[tuple[int, str]]:
        """List the keys in a text, and where each begins."""
        end = 0
        for start in _starts(text):
            if start < end:
                continue
            here = (text[start : start + length] for length in self._lengths)
            if (key := next((key for key in here if key in self.marks), None)) is not None:
                end = start + len(key)
                yield start, key

    @cached_property
    def _lengths(self) -> list[int]:
        """The lengths of the keys, the longest first."""
        return sorted({len(key) for key in self.marks}, reverse=True)


NOTHING = Leaks()


def find(value: Any, *, org: Org) -> Leaks:
    """
    Find known keys in a JSON value. Without a text of the shape of a key, nothing is read.

    :raises CredentialUnreadable: if the vault has no key for fingerprints now
    """
    found = _candidates(value)
    if not found:
        return NOTHING
    own = Integration.objects.for_org(org)
    ends = frozenset(hint[-SHOWN_AT_END:] for hint in own.values_list("key_hint", flat=True))
    digests = {token_digest(text): text for text in found if text.startswith("rsk_")}
    tokens = dict(ApiToken.objects.filter(digest__in=digests).values_list("digest", "id"))
    # A key may be followed by characters that a longer one could have.
    possible = (key for text in found if not text.startswith("rsk_") for key in _shaped(text, 0, ends))
    prints = _fingerprints(list(islice(dict.fromkeys(possible), CANDIDATES_MAX)), org=org)
    keys = dict(own.filter(fingerprint__in=prints).values_list("fingerprint", "id")) if prints else {}
    known = [digests[digest] for digest in tokens] + [prints[fingerprint] for fingerprint in keys]
    marks = {text: _mark(text) for text in known}
    return Leaks(marks=marks, integrations=tuple(keys.values()), tokens=tuple(tokens.values()))


def find_or_blot(value: Any, *, org: Org) -> Leaks:
    """As `find`. While the vault cannot tell which are known, all texts of that shape are replaced."""
    try:
        return find(value, org=org)
    except CredentialUnreadable:
        return Leaks(marks={text: _mark(text) for text in _candidates(value)})


def split_unfinished(text: str) -> tuple[str, str]:
    """Divide a text that goes on into what can be judged now, and an end that may be the beginning of a key."""
    tail = text[-LONGEST:]
    found = _UNFINISHED.search(tail)
    cut = len(text) if found is None else len(text) - len(tail) + found.start()
    # An end that fills all of it is longer than any key.
    return (text, "") if cut == len(text) - LONGEST else (text[:cut], text[cut:])


def note(leaks: Leaks, *, place: str) -> None:
    """
    Tell the owners of the keys, once for each key until it is replaced, in the transaction that stores the text.

    :param place: `input` or `output`
    """
    assert_open()
    now = database_now()
    for key in Integration.objects.filter(id__in=leaks.integrations, leaked_at=None).select_related("org"):
        if Integration.objects.filter(id=key.id, secret_version=key.secret_version, leaked_at=None).update(
            leaked_at=now
        ):
            address = f"{settings.PUBLIC_URL}/o/{key.org.slug}/settings/integrations/{key.id}/rotate"
            _tell(key.org, key.id, f"the key '{key.name}' ({key.key_hint})", place, "Replace it", address)
    for token in ApiToken.objects.filter(id__in=leaks.tokens, leaked_at=None, revoked_at=None).select_related("org"):
        if ApiToken.objects.filter(id=token.id, leaked_at=None).update(leaked_at=now):
            address = f"{settings.PUBLIC_URL}/o/{token.org.slug}/settings/tokens"
            _tell(token.org, token.id, f"the API token '{token.name}' (…{token.hint})", place, "Revoke it", address)


def _tell(org: Org, key_id: str, what: str, place: str, remedy: str, address: str) -> None:
    # The run is not named: it may be another organization's.
    record_system("scan", "key.leaked", object_id=key_id, org_id=org.id, place=place)
    subject = f"Rensei: {what} of {org.name} appeared in a run"
    body = (
        f"The {place} of a run contained {what}. A mark replaces it in what Rensei keeps and shows, but a person "
        f"who saw the text before can use it. {remedy}:\n\n{address}\n"
    )
    transaction.on_commit(partial(later.do, partial(health.mail_managers, org, subject, body), what="leaked key"))


def _fingerprints(texts: list[str], *, org: Org) -> dict[str, str]:
    """Return the texts by each of the fingerprints that an organization's own key with that text would have."""
    found: dict[str, str] = {}
    for provider in providers.PROVIDERS if texts else ():
        each = vault.fingerprints_of_each([Secret(text) for text in texts], org_id=org.id, provider=provider)
        found |= {value: text for text, values in zip(texts, each, strict=True) for value in values.values()}
    return found


def _candidates(value: Any) -> list[str]:
    """List different texts of the shape of a key, each as long as it may be."""
    texts = (text for text in _strings(value) if any(beginning in text for beginning in BEGINNINGS))
    shaped = (SHAPE.match(text, start) for text in texts for start in _starts(text))
    return list(islice(dict.fromkeys(found[0] for found in shaped if found), CANDIDATES_MAX))


def _starts(text: str) -> Iterator[int]:
    if any(beginning in text for beginning in BEGINNINGS):
        yield from (found.start() for found in _START.finditer(text))


def _shaped(text: str, start: int, ends: Container[str]) -> Iterator[str]:
    """List the texts of the shape of a key that begin here and have one of these ends, the longest first."""
    if found := SHAPE.match(text, start):
        longest = found[0]
        for length in range(len(longest), SHORTEST - 1, -1):
            if longest[length - SHOWN_AT_END : length] in ends:
                yield longest[:length]


def _strings(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict):
            waiting += each.keys()
            waiting += each.values()
        elif isinstance(each, Iterable):
            waiting += each


def _mark(text: str) -> str:
    hint = f"rsk_live_…{text[-4:]}" if text.startswith("rsk_") else shapes.hint_of(Secret(text))
    return f"[key removed: {hint}]"
