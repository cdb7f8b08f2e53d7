"""What the overview shows: what needs attention, how many runs fail, the cost of two weeks, and the next steps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from django.db.models import Count, Q
from django.urls import reverse

from billing.ledger import reports
from billing.ledger.reports import UsageLine
from billing.limits.snapshot import BillingSnapshot
from catalog.lookup import find_named
from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.core.ids import first_id_of
from rensei.dispatch.admission import dry_run
from rensei.dispatch.context import Known
from rensei.dispatch.models import Run
from rensei.dispatch.queries import visible_runs
from rensei.dispatch.run_filter import READ_AT_ONCE
from rensei.orgs.access import Access
from rensei.orgs.services import members
from rensei.tokens.services import visible_tokens

# As many profiles as the page decides for, as many lines as it shows, and as many names as a line has.
PROFILES_MAX, LINES_MAX, NAMES_MAX = 50, 6, 3
SPARK_DAYS, SPARK_WIDTH, SPARK_HEIGHT, SPARK_EDGE = 14, 140, 36, 2
RECENT = timedelta(days=7)
NEW_FOR = timedelta(days=30)
# A machine is chosen at the dispatch, so a profile for host sessions is not refused.
NOT_A_FAULT = "HOST_SESSION_WRONG_MACHINE"


@dataclass(frozen=True, kw_only=True)
class Line:
    """Something that needs attention, with the page where it is corrected."""

    title: str
    detail: str
    address: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """A next step of an organization or of a member."""

    title: str
    text: str
    address: str
    done: bool


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """How the newest runs of the last seven days ended. With `more`, there are others, which were not read."""

    ended: int
    failed: int
    more: bool

    @property
    def percent(self) -> float | None:
        return 100 * self.failed / self.ended if self.ended else None


@dataclass(frozen=True, kw_only=True)
class Sparkline:
    """The cost of two weeks as the points of a line, and their sum."""

    points: str
    total: UsageLine
    width: int = SPARK_WIDTH
    height: int = SPARK_HEIGHT


def needs_attention(
    access: Access, *, integrations: Sequence[Integration], profiles: Sequence[ModelProfile], snapshot: BillingSnapshot
) -> list[Line]:
    """List failing and old keys first, then profiles that a dispatch would refuse, then those with a retired model."""
    keys = [
        Line(
            title=f"{one.name}: the key fails",
            detail=one.last_error["detail"] if one.last_error else "The last test did not succeed.",
            address=_to(access, "integrations"),
        )
        for one in integrations
        if one.status == Integration.Status.FAILING
    ]
    keys += _leaked(access, integrations)
    keys += [
        Line(
            title=f"{one.name}: the key is {one.key_age_days} days old",
            detail=f"You wanted to be reminded after {one.remind_after_days} days. Store another key.",
            address=_to(access, "integration-rotate", one.id),
        )
        for one in integrations
        if one.is_old
    ]
    if not profiles:
        return keys
    entries = list(find_named([(one.provider, one.model_id) for one in profiles], org=access.org).values())
    known = Known(standing=snapshot, entries=entries, integrations=integrations)
    previews = dry_run.previews(access, profiles, known=known)
    return [*keys, *_refused(access, profiles, previews), *_retired(access, profiles, previews)]


def outcomes(access: Access, snapshot: BillingSnapshot) -> Outcomes:
    recent = visible_runs(access).filter(id__gte=first_id_of("run", snapshot.now - RECENT))
    counts = recent.order_by("-id")[:READ_AT_ONCE].aggregate(
        read=Count("id"),
        ended=Count("id", filter=Q(state__in=Run.ENDED)),
        failed=Count("id", filter=Q(state=Run.State.FAILED)),
    )
    return Outcomes(ended=counts["ended"], failed=counts["failed"], more=counts["read"] == READ_AT_ONCE)


def sparkline(access: Access, today: date) -> Sparkline:
    start = today - timedelta(days=SPARK_DAYS - 1)
    lines = reports.usage_by(access.org, start=start, end=today, group_by="day")
    amounts = {line.key: line.amount_picodollars for line in lines}
    days = [amounts.get(str(start + timedelta(days=place)), 0) for place in range(SPARK_DAYS)]
    top, step, rise = max(*days, 1), SPARK_WIDTH / (SPARK_DAYS - 1), SPARK_HEIGHT - 2 * SPARK_EDGE
    points = [
        f"{place * step:.1f},{SPARK_HEIGHT - SPARK_EDGE - max(0, day) / top * rise:.1f}"
        for place, day in enumerate(days)
    ]
    return Sparkline(points=" ".join(points), total=reports.total(lines))


def next_steps(access: Access, snapshot: BillingSnapshot, *, profiles: Sequence[ModelProfile]) -> list[Step]:
    """
    List what follows after the first run, while the organization or, for a member, the membership is new.

    Empty once all is done, and for those who only read.
    """
    since = access.org.created_at if access.manages else access.membership.created_at
    if not access.writes or snapshot.now - since > NEW_FOR:
        return []
    steps = _of_organization(access, snapshot, profiles) if access.manages else []
    steps = [*_of_person(access, snapshot), *steps]
    return [] if all(step.done for step in steps) else steps


def _of_person(access: Access, snapshot: BillingSnapshot) -> list[Step]:
    """The steps of each writer. A call is looked for among the newest runs of the time that a list reads at once."""
    recent = visible_runs(access).filter(id__gte=first_id_of("run", snapshot.now - NEW_FOR))
    own = recent.order_by("-id")[:READ_AT_ONCE].aggregate(
        runs=Count("id", filter=Q(created_by=access.user)),
        calls=Count("id", filter=Q(created_by=access.user, via=Run.Via.GATEWAY)),
    )
    tokens = visible_tokens(access).filter(membership=access.membership, revoked_at=None, host=None)
    return [
        Step(
            title="Send your first run",
            text="See its cost and who pays before you send it.",
            address=_to(access, "playground"),
            done=own["runs"] > 0,
        ),
        Step(
            title="Create an API token",
            text="Your code signs in with it. It is shown once.",
            address=_to(access, "tokens"),
            done=tokens.exists(),
        ),
        Step(
            title="Connect your app",
            text="Point Claude Code or an Anthropic SDK at Rensei.",
            address=_to(access, "connect"),
            done=own["calls"] > 0,
        ),
    ]


def _of_organization(access: Access, snapshot: BillingSnapshot, profiles: Sequence[ModelProfile]) -> list[Step]:
    """The steps of those who manage the organization."""
    steps = [
        Step(
            title="Choose a default profile",
            text="It is used when a request names none.",
            address=_to(access, "profiles"),
            done=any(one.is_default and one.project_id is None for one in profiles),
        ),
        Step(
            title="Invite people",
            text="Each person has a role, and their own runs and tokens.",
            address=_to(access, "members"),
            done=members(access).live().count() > 1,
        ),
    ]
    if snapshot.entitlement is not None and snapshot.entitlement.metered_enabled:
        steps.append(
            Step(
                title="Agree on a monthly budget",
                text="Metered runs stop at it. Your operator sets it.",
                address=_to(access, "metered"),
                done=snapshot.budget is not None,
            )
        )
    return steps


def _leaked(access: Access, integrations: Sequence[Integration]) -> Iterable[Line]:
    """One line for each key or token that was found in a run."""
    detail = "A mark replaces it here, but others may have seen it. Replace it."
    for one in integrations:
        if one.leaked_at is not None:
            address = _to(access, "integration-rotate", one.id)
            yield Line(title=f"{one.name}: the key appeared in a run", detail=detail, address=address)
    for token in visible_tokens(access).filter(leaked_at__isnull=False, revoked_at=None)[:LINES_MAX]:
        yield Line(title=f"{token.name}: the token appeared in a run", detail=detail, address=_to(access, "tokens"))


def _refused(
    access: Access, profiles: Sequence[ModelProfile], previews: Mapping[str, dict[str, Any]]
) -> Iterable[Line]:
    """One line for each reason, with the profiles that it refuses."""
    refused: dict[str, list[ModelProfile]] = {}
    for one in profiles:
        preview = previews[one.public_id]
        if not preview["wouldRun"] and preview["code"] != NOT_A_FAULT:
            refused.setdefault(preview["detail"], []).append(one)
    for detail, those in refused.items():
        yield Line(title=f"{_names(those)} would be refused", detail=detail, address=_page_of(access, those))


def _retired(
    access: Access, profiles: Sequence[ModelProfile], previews: Mapping[str, dict[str, Any]]
) -> Iterable[Line]:
    """One line for each retired model, with the profiles that name it."""
    named: dict[tuple[str, str], list[ModelProfile]] = {}
    for one in profiles:
        preview = previews[one.public_id]
        if preview["servedModel"] != preview["model"]:
            named.setdefault((preview["model"], preview["servedModel"]), []).append(one)
    for (model, served), those in named.items():
        verb = "names" if len(those) == 1 else "name"
        yield Line(
            title=f"{_names(those)} {verb} a retired model",
            detail=f"{model} is served by {served}."
            + (" Model Profiles has a button that switches to it." if access.writes else ""),
            address=_to(access, "profiles"),
        )


def _names(profiles: Sequence[ModelProfile]) -> str:
    names = [one.name for one in profiles[:NAMES_MAX]]
    rest = len(profiles) - len(names)
    if rest:
        names.append(f"{rest} more")
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _page_of(access: Access, profiles: Sequence[ModelProfile]) -> str:
    return _to(access, "profile", profiles[0].public_id) if len(profiles) == 1 else _to(access, "profiles")


def _to(access: Access, name: str, *args: str) -> str:
    return reverse(f"console:{name}", args=[access.org.slug, *args])
