"""
A conversation of the Playground: the turns up to one run, and the messages that a follow-up begins with.

Each answer is a run of its own, whose input is the whole conversation before it. A run of the Playground lists the
runs of the earlier answers in its metadata, so that the page can show what each has cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django.db.models import Exists, OuterRef

from rensei.console.run_texts import asked_of, last_question, text_of
from rensei.core.limits import limit
from rensei.dispatch.models import Run
from rensei.dispatch.queries import visible_runs
from rensei.orgs.access import Access
from rensei.workflows.services import nodes_of

ANSWERS_MAX = limit(
    50,
    "answers",
    what="Playground: answers of one conversation, all of which a follow-up sends again",
    told="the caller: the page begins a new conversation",
)
# The key in a run's metadata. Programs may write the same one, so what is read is checked.
METADATA = "conversation"
PROMPTS_SHOWN, OWN_RUNS_READ, RUNS_READ = 5, 25, 1000


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message before the last answer, with the run that answered, where it is known."""

    role: str
    text: str
    images: int
    run: Run | None


@dataclass(frozen=True)
class Conversation:
    """The conversation whose last turn is a run: under way, answered, or ended without an answer."""

    run: Run
    earlier: Sequence[Run]

    @cached_property
    def text(self) -> str:
        """The last answer so far."""
        return text_of(self.run)

    @property
    def ended(self) -> bool:
        return self.run.state in Run.ENDED

    @property
    def answered(self) -> bool:
        return self.run.state == Run.State.SUCCEEDED and bool(self.text.strip())

    @property
    def is_full(self) -> bool:
        return len(self.run_ids) >= ANSWERS_MAX

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What a follow-up begins with. A message that got no answer is left out: it is proposed again."""
        asked: list[dict[str, Any]] = self.run.input.body["messages"]
        if self.answered:
            return [*asked, {"role": "assistant", "content": [{"type": "text", "text": self.text}]}]
        return asked[:-1]

    @property
    def run_ids(self) -> list[str]:
        """The runs of the answers among `messages`."""
        return [*(one.id for one in self.earlier), *([self.run.id] if self.answered else [])]

    @property
    def unanswered(self) -> str:
        """The text of the last message, if its run has ended without an answer."""
        return "" if self.answered or not self.ended else last_question(self.run.input.body)

    @property
    def turns(self) -> list[Turn]:
        """The messages up to the last answer. The runs belong to the last of the earlier answers."""
        asked = asked_of(self.run.input.body)
        answers = [place for place, one in enumerate(asked) if one["role"] == "assistant"]
        runs = dict(zip(reversed(answers), reversed(self.earlier), strict=False))
        return [Turn(**one, run=runs.get(place)) for place, one in enumerate(asked)]

    @property
    def amount(self) -> int | None:
        """The cost of its runs that have ended; None if none of them has a known one."""
        known = [one.amount_picodollars for one in self._ended if one.amount_picodollars is not None]
        return sum(known) if known else None

    @property
    def unpriced(self) -> int:
        return sum(one.amount_picodollars is None for one in self._ended)

    @property
    def _ended(self) -> list[Run]:
        return [one for one in (*self.earlier, self.run) if one.state in Run.ENDED]


def find_conversation(access: Access, run_id: str) -> Conversation:
    """:raises NotFound: if the organization has no such run, or its input is not stored"""
    runs = visible_runs(access)
    run = runs.filter(input__isnull=False).select_related("input", "host").get_or_404(pk=run_id)
    named = run.metadata.get(METADATA)
    ids = [one for one in named if isinstance(one, str)][:ANSWERS_MAX] if isinstance(named, list) else []
    return Conversation(run, list(runs.listed().filter(pk__in=ids, id__lt=run.id).order_by("id")) if ids else [])


def last_prompts(access: Access) -> dict[str, str]:
    """The beginnings of the person's last different prompts from a browser, with their runs, among the newest runs."""
    newest = visible_runs(access).order_by("-id").values("pk")[:RUNS_READ]
    own = visible_runs(access).filter(pk__in=newest, created_by=access.user, token_id="")
    prompts = own.filter(~Exists(nodes_of(OuterRef("pk"))), input__search_entry__excerpt__gt="").order_by("-id")
    found: dict[str, str] = {}
    for excerpt, run_id in prompts.values_list("input__search_entry__excerpt", "id")[:OWN_RUNS_READ]:
        found.setdefault(excerpt, run_id)
    return dict(list(found.items())[:PROMPTS_SHOWN])
