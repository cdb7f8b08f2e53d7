"""
Search of runs by the words of their prompts and errors, by people and by models.

A run whose input is stored has a row of words, `SearchEntry`, which the database indexes: PostgreSQL as a `tsvector`
with GIN, SQLite with FTS5 (`migrations/0004_search.py`). Words are cut here, so that both find the same. The row
belongs to the input and is deleted with it. The gateway stores no prompts, so its runs have no row and cost nothing.

Beside the words, a row has keys for its organization and its person. They hold a `=`, which no word can, so no text
can pretend to be another organization's. A person is found by their current name, looked up when the search is made.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from django.db import connection
from django.db.models import F, Q, TextField, Value
from django.db.models.expressions import RawSQL
from django.db.models.functions import Concat

from rensei.core.errors import StoredError
from rensei.core.limits import limit
from rensei.dispatch.models import Run, RunInput, SearchEntry
from rensei.orgs.models import Org, User

MATCHES = limit(
    1_000,
    "runs",
    what="Runs that a search finds, the newest that match; filters and sorting apply to these",
    told="the page and the caller: earlier ones are found with an earlier end of the time",
)
WORDS_MAX = limit(
    1_000,
    "different words of its first 20,000 characters, each cut at 40",
    what="Prompt of a run that is indexed for the search",
    told="the member: later words are not found",
)
TEXT_LENGTH = 20_000
WORD_LENGTH = 40
ASKED_WORDS_MAX = 12
PEOPLE_MAX = 1_000
EXCERPT_LENGTH = 160
ERROR_WORDS_MAX = 60

# Scripts without spaces are cut into single characters; other text into runs of letters and digits.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")
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
    folded = unicodedata.normalize("NFKD", text[:TEXT_LENGTH].casefold())
    for found in _WORD.finditer("".join(char for char in folded if not unicodedata.combining(char))):
        yield found[0][:WORD_LENGTH]


def entry_of(run: Run, given: RunInput) -> SearchEntry:
    """Build the index row of a run from its stored input."""
    prompt = last_prompt(given.body["messages"])
    texts = [prompt, run.profile_id, run.profile_name, run.asked_model_id, run.model_id, run.served_model_id]
    texts += reversed(list(_texts(given.body["messages"]))[:-1])
    texts.append(" ".join(_strings(given.body.get("system"))))
    return SearchEntry(
        run_id=run.id,
        excerpt=" ".join(prompt[: 4 * EXCERPT_LENGTH].split())[:EXCERPT_LENGTH],
        words=" ".join([_key_of_org(run.org_id), _key_of_person(run.created_by_id), *_distinct(texts)]),
    )


def add_errors(errors: Mapping[str, StoredError]) -> None:
    """Add the words of errors to the index rows of their runs, by run id."""
    for run_id, error in errors.items():
        text = f"{error['code']} {error['detail']}"
        words = Value(" " + " ".join(list(dict.fromkeys(words_of(text)))[:ERROR_WORDS_MAX]))
        SearchEntry.objects.filter(run_id=run_id).update(words=Concat(F("words"), words, output_field=TextField()))


def matching(org: Org, text: str, *, first: str, beyond: str) -> Q:
    """
    Select the newest runs of an organization with all words of a text, or that begin with them.

    `first` and `beyond` are run ids: the first that may be found, and the first after the last one.
    """
    asked = list(dict.fromkeys(words_of(text)))[:ASKED_WORDS_MAX]
    if not asked:
        return Q(pk__in=[])
    people = _people(org)
    named = {word: [pk for pk, names in people if any(name.startswith(word) for name in names)] for word in asked}
    parts = [_exact(_key_of_org(org.pk)), *(_either(word, named[word]) for word in asked)]
    query = (" & " if connection.vendor == "postgresql" else " AND ").join(parts)
    return Q(pk__in=RawSQL(_FIND[connection.vendor], [query, first, beyond, MATCHES]))  # noqa: S611 - parameters only


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


def _either(word: str, people: Sequence[int]) -> str:
    """Write a condition for a word, as a beginning, or for one of the people, in the database's query language."""
    begins = f"'{word}':*" if connection.vendor == "postgresql" else f'"{word}"*'
    choices = [begins, *(_exact(_key_of_person(person)) for person in people)]
    return "(" + (" | " if connection.vendor == "postgresql" else " OR ").join(choices) + ")"


def _exact(key: str) -> str:
    return f"'{key}'" if connection.vendor == "postgresql" else f'"{key}"'


def _key_of_org(pk: str) -> str:
    return f"={pk}"


def _key_of_person(pk: int | None) -> str:
    return f"=u{pk or 0}"
