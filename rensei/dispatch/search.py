"""
Search of runs by the words of their prompts and errors, by people and by models.

A run whose input is stored has a row of words, `SearchEntry`, which the database indexes: PostgreSQL as a `tsvector`
with GIN, SQLite with FTS5 (`migrations/0004_search.py`). Words are cut here, so that both find the same. The row
belongs to the input and is deleted with it. The gateway stores no prompts, so its runs have no row and cost nothing.

Each word is stored behind the key of its organization, as in `k3v9…=sky`, so that a search reads no index of another
organization. No word holds a `=`, so no text can pretend to be another organization's, or to be the key of a person,
`k3v9…==7`. A person is found by their current name, looked up when the search is made.
"""

import re
import unicodedata
from base64 import b32encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from django.db import connection
from django.db.models import F, Q, TextField, Value
from django.db.models.functions import Concat

from rensei.core.bounded_queries import bounded_search
from rensei.core.errors import StoredError
from rensei.core.limits import limit
from rensei.dispatch.models import Run, RunInput, SearchEntry
from rensei.orgs.models import Org, User

MATCHES = limit(
    1_000,
    "runs",
    what="Runs that a search finds, the newest that match; filters and sorting apply to these",
    told="the caller: earlier ones are found with an earlier end of the time",
)
WORDS_MAX = limit(
    1_000,
    "different words of its first 20,000 characters, each cut at 40",
    what="Prompt of a run that is indexed for the search",
    told="the caller: later words are not found",
)
ASKED_WORDS_MAX = limit(
    8,
    "words; one of at least 3 characters finds what it begins, a shorter one itself",
    what="Words of a search",
    told="the caller: further ones narrow nothing, as the documentation says",
)
NAMED_MAX = limit(
    20,
    "members",
    what="Members whose runs one word of a search finds by their names and addresses",
    told="the caller: the runs of further ones are found with more of the name, or by the member",
)
BEGINNING_LENGTH = 3
TEXT_LENGTH = 20_000
WORD_LENGTH = 40
PEOPLE_MAX = limit(
    1_000,
    "members",
    what="Members whose names a search of runs compares",
    told="the caller: the runs of later members are found with the filter of members",
)
EXCERPT_LENGTH = 160
ERROR_WORDS_MAX = 60

# Scripts without spaces are cut into single characters; other text into runs of letters and digits.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# The ranges of scripts without spaces contain code points that are no letters, or not assigned.
_WORD = re.compile(f"(?=[^\\W_])[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")
_FIND = {
    "postgresql": (
        "SELECT run_id FROM dispatch_searchentry WHERE vector @@ %s::tsquery "
        "AND run_id >= %s AND run_id < %s ORDER BY id DESC LIMIT %s"
    ),
    "sqlite": (
        "SELECT entry.run_id FROM dispatch_searchwords JOIN dispatch_searchentry entry "
        "ON entry.id = dispatch_searchwords.rowid WHERE dispatch_searchwords MATCH %s "
        "AND entry.run_id >= %s AND entry.run_id < %s ORDER BY dispatch_searchwords.rowid DESC LIMIT %s"
    ),
}


def words_of(text: str) -> Iterator[str]:
    """Cut a text into its words, without case and accents."""
    # The normalization makes new capitals, as of a trademark sign.
    folded = unicodedata.normalize("NFKD", text[:TEXT_LENGTH].casefold()).casefold()
    for found in _WORD.finditer("".join(char for char in folded if not unicodedata.combining(char))):
        yield found[0][:WORD_LENGTH]


def entry_of(run: Run, given: RunInput) -> SearchEntry:
    """Build the index row of a run from its stored input."""
    prompt = last_prompt(given.body["messages"])
    texts = [prompt, run.profile_id, run.profile_name, run.asked_model_id, run.model_id, run.served_model_id]
    texts += reversed(list(_texts(given.body["messages"]))[:-1])
    texts.append(" ".join(_strings(given.body.get("system"))))
    key = _key_of(run.org_id)
    return SearchEntry(
        run_id=run.id,
        excerpt=" ".join(prompt[: 4 * EXCERPT_LENGTH].split())[:EXCERPT_LENGTH],
        words=" ".join([key + _person(run.created_by_id), *(key + word for word in _distinct(texts))]),
    )


def words_of_error(run: Run, error: StoredError) -> str:
    """The words that an error adds to the index row of its run."""
    found = list(dict.fromkeys(words_of(f"{error['code']} {error['detail']}")))[:ERROR_WORDS_MAX]
    return "".join(f" {_key_of(run.org_id)}{word}" for word in found)


def add_errors(errors: Iterable[tuple[Run, StoredError]]) -> None:
    """Add the words of errors to the index rows of their runs."""
    for run, error in errors:
        words = Concat(F("words"), Value(words_of_error(run, error)), output_field=TextField())
        SearchEntry.objects.filter(run_id=run.id).update(words=words)


def matching(org: Org, text: str, *, first: str, beyond: str) -> Q:
    """
    Search the newest runs of an organization with all words of a text, or that begin with them, at once.

    `first` and `beyond` are run ids: the first that may be found, and the first after the last one.

    :raises FieldError: if the search takes too long
    """
    asked = list(dict.fromkeys(words_of(text)))[:ASKED_WORDS_MAX]
    if not asked:
        return Q(pk__in=[])
    key, people = _key_of(org.pk), _people(org)
    parts = [_either(word, [pk for pk, names in people if _names(word, names)][:NAMED_MAX], key) for word in asked]
    query = (" & " if connection.vendor == "postgresql" else " AND ").join(parts)
    with bounded_search(), connection.cursor() as cursor:
        cursor.execute(_FIND[connection.vendor], [query, first, beyond, MATCHES])
        return Q(org=org.pk, pk__in=[run_id for (run_id,) in cursor.fetchall()])


def last_prompt(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of the last message of a user."""
    return next(reversed(list(_texts(message for message in messages if message["role"] == "user"))), "")


def _texts(messages: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for message in messages:
        yield "\n".join(_strings(message["content"]))


def _strings(content: Any) -> Iterator[str]:
    """Yield the texts of a message or a system prompt, those inside tool results included."""
    if isinstance(content, str):
        yield content
    for block in content if isinstance(content, list) else ():
        if block.get("type") == "text":
            yield block["text"]
        elif block.get("type") == "tool_result":
            yield from _strings(block.get("content"))


def _distinct(texts: Iterable[str]) -> list[str]:
    found: dict[str, None] = {}
    left = TEXT_LENGTH
    for text in texts:
        for word in words_of(text[:left]):
            found[word] = None
            if len(found) == WORDS_MAX:
                return list(found)
        left = max(0, left - len(text))
    return list(found)


def _people(org: Org) -> list[tuple[int, set[str]]]:
    """The members, each with the words of their name and address."""
    members = User.objects.filter(memberships__org=org).order_by("pk")[:PEOPLE_MAX]
    return [(one.pk, set(words_of(f"{one.get_full_name()} {one.email}"))) for one in members]


def _names(word: str, names: set[str]) -> bool:
    return word in names or (len(word) >= BEGINNING_LENGTH and any(name.startswith(word) for name in names))


def _either(word: str, people: Sequence[int], key: str) -> str:
    """Write a condition for a word, or for one of the people, in the database's query language."""
    begins = len(word) >= BEGINNING_LENGTH
    if connection.vendor == "postgresql":
        choices = [f"'{key}{word}'" + (":*" if begins else ""), *(f"'{key}{_person(person)}'" for person in people)]
        return "(" + " | ".join(choices) + ")"
    choices = [f'"{key}{word}"' + ("*" if begins else ""), *(f'"{key}{_person(person)}"' for person in people)]
    return "(" + " OR ".join(choices) + ")"


def _key_of(org_id: str) -> str:
    """The beginning of each word of an organization, as short as it may be: a row stores it up to 1,000 times."""
    return b32encode(blake2b(org_id.encode(), digest_size=5).digest()).decode().lower() + "="


def _person(pk: int | None) -> str:
    return f"={pk or 0}"
