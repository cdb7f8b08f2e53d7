"""Which runs a caller may see."""

from django.db.models import Q

from rensei.dispatch.models import Run, RunQuerySet
from rensei.orgs.access import Access
from rensei.orgs.scopes import Scope


def visible_runs(access: Access) -> RunQuerySet:
    """
    The runs that a caller may see: the organization's, or those of the project that the token is bound to.

    A token without the scope `read` sees its member's own, and a machine's those that go to it.
    """
    runs: RunQuerySet = Run.objects.for_org(access.org).select_related("project")
    if access.project:
        runs = runs.filter(project=access.project)
    if Scope.READ in access.scopes:
        return runs
    own = Q(created_by=access.user)
    return runs.filter(own | Q(host=access.host) if access.host else own)


def find_run(access: Access, run_id: str) -> Run:
    """:raises NotFound: if there is none, or it is not the caller's to see"""
    run: Run = visible_runs(access).get_or_404(id=run_id)
    return run
