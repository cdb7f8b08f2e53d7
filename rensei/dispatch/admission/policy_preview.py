"""Preview how a change of an access policy affects profiles, before it is saved. Nothing here writes."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from django.db.models import Count

from profiles import services as profiles
from profiles.models import ModelProfile
from rensei.core.auth_modes import PAYER_OF, AuthMode
from rensei.core.clock import database_now
from rensei.core.errors import FieldError, RenseiError
from rensei.core.ids import first_id_of
from rensei.core.limits import limit
from rensei.dispatch import context, pools
from rensei.dispatch.admission import decide
from rensei.dispatch.admission.requests import DispatchRequest
from rensei.dispatch.context import DispatchContext
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.orgs.models import Membership, Project, Role
from rensei.policies import services as policies
from rensei.policies.documents import known_rows
from rensei.policies.models import AccessPolicy
from rensei.policies.resolver import Policy
from rensei.policies.services import Matrix

OUTCOMES_MAX = limit(
    5_000,
    "profiles of each project",
    what="Preview of a policy: what it looks at",
    told="the caller: 400 `VALIDATION_FAILED`, and a preview for one project",
)
# The days whose runs show how much a change would affect.
RECENT = timedelta(days=7)
SYSTEM, ORGANIZATION, PROJECT = AccessPolicy.Scope.SYSTEM, AccessPolicy.Scope.ORGANIZATION, AccessPolicy.Scope.PROJECT


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The predicted result of a dispatch: the mode and its payer, and the refusal if there is one."""

    mode: AuthMode | None
    code: str | None
    # Not compared: another policy may refuse with another detail, but the result for the caller is the same.
    detail: str | None = field(compare=False)

    @property
    def payer(self) -> str | None:
        return PAYER_OF[self.mode].value if self.mode else None

    def wire(self) -> dict[str, Any]:
        return {
            "authMode": self.mode.value if self.mode else None,
            "payer": self.payer,
            "wouldRun": self.code is None,
            "code": self.code,
            "detail": self.detail,
        }


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """
    The outcome of a profile's dispatches before and after: in `project`, or outside any project if it is None.

    For a profile of the organization, a project without a policy gives the same outcome as no project.
    """

    profile: ModelProfile
    project: Project | None
    before: Outcome
    after: Outcome

    @property
    def changes(self) -> bool:
        return self.before != self.after

    def wire(self) -> dict[str, Any]:
        return {
            "profileId": self.profile.public_id,
            "projectId": self.project.slug if self.project else None,
            "before": self.before.wire(),
            "after": self.after.wire(),
        }


def changes(access: Access, *, matrix: Matrix, project: Project | None = None) -> list[Prediction]:
    """
    List the profiles that would change their mode, their payer or their refusal under a proposed policy.

    :raises FieldError: with one error for each invalid row of the proposal
    """
    policies.require_setter(access, project)
    policies.validate_matrix(matrix, known=known_rows(access.org))
    return [found for found in predict(access, matrix=matrix, project=project) if found.changes]


def predict(access: Access, *, matrix: Matrix, project: Project | None = None) -> list[Prediction]:
    """
    Predict the outcome of every profile that a proposed policy of the organization or a project applies to.

    It takes a fixed number of queries. The gates are evaluated for the caller, on the local pool, at this time.

    :raises FieldError: if it applies to too many profiles and projects
    """
    return _predict(access, scope=PROJECT if project else ORGANIZATION, matrix=matrix, project=project)


def recent_runs(access: Access, predictions: Sequence[Prediction]) -> list[int]:
    """
    Count for each prediction the runs of the last days that it applies to, in the order of the predictions.

    A prediction outside projects applies to the runs of all projects that have no prediction of their own.
    """
    rows = _counted(access, {found.profile.public_id for found in predictions})
    counts = {(profile_id, project_id): count for profile_id, project_id, count in rows}
    apart = {(found.profile.public_id, found.project.pk) for found in predictions if found.project is not None}
    together: Counter[str] = Counter()
    for key, count in counts.items():
        if key not in apart:
            together[key[0]] += count
    return [
        counts.get((found.profile.public_id, found.project.pk), 0)
        if found.project is not None
        else together[found.profile.public_id]
        for found in predictions
    ]


def _counted(access: Access, profile_ids: set[str]) -> Iterable[tuple[str, int | None, int]]:
    """Count the recent runs of profiles, by profile and project."""
    recent = Run.objects.for_org(access.org).filter(id__gte=first_id_of("run", database_now() - RECENT))
    named = recent.filter(profile_id__in=profile_ids)
    return named.values_list("profile_id", "project_id").annotate(Count("id")).order_by()


def system_changes(matrix: Matrix) -> Iterator[Prediction]:
    """
    List the profiles of all organizations that would change under a proposed policy of the system.

    The gates are evaluated for each organization's first owner. Only organizations with a profile whose modes
    the proposal changes are checked, each in a fixed number of queries.

    :raises FieldError: with one error for each invalid row of the proposal
    """
    policies.validate_matrix(matrix, known=known_rows(None))
    stored = AccessPolicy.objects.filter(scope=SYSTEM).first()
    touched = _touched_modes(stored.matrix if stored else {}, matrix)
    listed = ModelProfile.objects.values_list("org", "auth_modes")
    org_ids = {org_id for org_id, modes in listed if touched.intersection(modes)}
    owners = Membership.objects.filter(org__in=org_ids, role=Role.OWNER).select_related("org", "user").order_by("id")
    first_owners = {owner.org_id: owner for owner in reversed(owners)}
    for owner in first_owners.values():
        access = Access(user=owner.user, org=owner.org, role=Role.OWNER, membership=owner)
        yield from (found for found in _predict(access, scope=SYSTEM, matrix=matrix, project=None) if found.changes)


def _predict(access: Access, *, scope: str, matrix: Matrix, project: Project | None) -> list[Prediction]:
    stored = list(policies.all_policies(access.org))
    proposed = [policy for policy in stored if not _is_of(policy, scope, project)]
    proposed.append(AccessPolicy(scope=scope, org=access.org, project=project, matrix=matrix))
    projects = {policy.project for policy in stored if policy.project is not None}
    applied = [
        profile
        for profile in profiles.visible_profiles(access).order_by("created_at", "public_id")
        if project is None or profile.project in (None, project)
    ]
    projects_of_each = [_projects_of(profile, project, projects) for profile in applied]
    if scope != SYSTEM and sum(map(len, projects_of_each)) > OUTCOMES_MAX:
        reason = f"The policy applies to more than {OUTCOMES_MAX} profiles of projects. Preview it for a project."
        raise FieldError(pointer="/matrix", reason=reason)
    pool = pools.find_pool(access.org, "local")
    loaded = context.load(access, applied, project=None, pool=pool, with_quota=True)
    return [
        Prediction(
            profile=profile,
            project=within,
            before=_outcome(found, within, _applying(stored, within)),
            after=_outcome(found, within, _applying(proposed, within)),
        )
        for profile, found, within_each in zip(applied, loaded, projects_of_each, strict=True)
        for within in within_each
    ]


def _projects_of(profile: ModelProfile, project: Project | None, with_policy: set[Project]) -> Sequence[Project | None]:
    """List the projects (None: outside any) in which dispatches of a profile may have different outcomes."""
    if profile.project is not None:
        return [profile.project]
    if project is not None:
        return [project]
    return [None, *sorted(with_policy, key=lambda one: one.slug)]


def _is_of(policy: AccessPolicy, scope: str, project: Project | None) -> bool:
    return policy.scope == scope and policy.project_id == (project.pk if project else None)


def _applying(found: list[AccessPolicy], project: Project | None) -> list[Policy]:
    """List the policies that apply to a dispatch in a project, in the order system, organization, project."""
    by_scope = {
        policy.scope: Policy(scope=policy.scope, matrix=policy.matrix)
        for policy in found
        if policy.project_id is None or (project is not None and policy.project_id == project.pk)
    }
    return [by_scope[scope] for scope in (SYSTEM, ORGANIZATION, PROJECT) if scope in by_scope]


def _outcome(found: DispatchContext | RenseiError, project: Project | None, applying: list[Policy]) -> Outcome:
    if isinstance(found, RenseiError):
        return Outcome(mode=None, code=found.code, detail=found.detail)
    judgement = decide.decide(replace(found, project=project, policies=applying), DispatchRequest())
    refusal = judgement.refusal
    return Outcome(
        mode=judgement.decision.mode,
        code=refusal.code if refusal else None,
        detail=refusal.detail if refusal else None,
    )


def _touched_modes(old: Matrix, new: Matrix) -> set[str]:
    """Return the modes whose rule differs in at least one row."""
    cells_of = [
        {(row, mode): rule for row, rules in matrix.items() for mode, rule in rules.items()} for matrix in (old, new)
    ]
    before, after = cells_of
    return {place[1] for place in {*before, *after} if before.get(place) != after.get(place)}
