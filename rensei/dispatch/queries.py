"""Queries of the runs and pools that are visible to a caller."""

from django.db.models import OuterRef, Q, QuerySet, Subquery, Sum

from billing.models import CostEvent
from rensei.core.errors import NotFound
from rensei.dispatch.models import Attempt, CapacityPool, Run, RunChunk, RunFile, RunQuerySet, Sandbox
from rensei.orgs.access import Access
from rensei.orgs.models import OrgScopedQuerySet
from rensei.orgs.scopes import Scope


def visible_runs(access: Access) -> RunQuerySet:
    """
    Return the runs visible to a caller: the organization's, or those of the API token's project.

    Without the scope `read`, an API token gives access to its member's own runs, and a machine's also to its runs.
    """
    runs = Run.objects.for_org(access.org).select_related("project")
    if access.project:
        runs = runs.filter(project=access.project)
    if Scope.READ in access.scopes:
        return runs
    own = Q(created_by=access.user)
    return runs.filter(own | Q(host=access.host) if access.host else own)


def find_run(access: Access, run_id: str) -> Run:
    """:raises NotFound: if there is no such run, or it is not visible to the caller"""
    return visible_runs(access).get_or_404(id=run_id)


def calls_of(access: Access, run_id: str) -> QuerySet[Attempt]:
    """
    List the calls of a run, each with what it has cost, as `amount`.

    :raises NotFound: if there is no such run, or it is not visible to the caller
    """
    run = visible_runs(access).listed().get_or_404(id=run_id)
    # The ledger has an index of runs, and none of attempts.
    lines = CostEvent.objects.filter(run_id=run.id, attempt_id=OuterRef("id")).order_by().values("attempt_id")
    amount = Subquery(lines.annotate(sum=Sum("amount_picodollars")).values("sum"))
    return Attempt.objects.filter(run=run).annotate(amount=amount)


def find_run_file(access: Access, run_id: str, file_id: str) -> RunFile:
    """:raises NotFound: if the agent has left no such file, or its run is not visible to the caller"""
    run = visible_runs(access).listed().get_or_404(id=run_id)
    file = RunFile.objects.filter(run=run, id=file_id).first()
    if file is None:
        raise NotFound
    return file


def sandboxes_of(run: Run) -> QuerySet[Sandbox]:
    """Return the sandboxes of a run, one for each time it was claimed, for a caller that is already authorized."""
    return Sandbox.objects.filter(run=run).order_by("epoch")


def run_to_show(run_id: str) -> Run:
    """Load a run with what its JSON needs, for a caller that is already authorized."""
    return Run.objects.select_related("project").get(id=run_id)


def chunks_of(run: Run, kind: RunChunk.Kind) -> QuerySet[RunChunk]:
    """Return one kind of a run's stored events, in their order, for a caller that is already authorized."""
    return RunChunk.objects.filter(run=run, kind=kind).order_by("seq")


def visible_pools(access: Access) -> OrgScopedQuerySet[CapacityPool]:
    """Return the capacity pools of the caller's organization, besides the built-in ones."""
    return CapacityPool.objects.for_org(access.org)
