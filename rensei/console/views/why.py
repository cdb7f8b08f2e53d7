"""Settings → Why was I refused?: every gate of a dispatch, for a member, a profile, a project and a pool."""

from typing import Any

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from profiles import services as profiles
from rensei.console.access import PageRequest, page
from rensei.console.forms.why import WhyForm
from rensei.core.errors import RenseiError
from rensei.dispatch.admission import explain
from rensei.dispatch.admission.explain import Explanation, GateVerdict
from rensei.dispatch.admission.requests import DispatchRequest
from rensei.dispatch.models import CapacityPool
from rensei.dispatch.queries import visible_pools
from rensei.orgs import services as orgs
from rensei.orgs.access import Access, as_member

MEMBERS_SUGGESTED = 200


@require_safe
@page
def why(request: PageRequest) -> HttpResponse:
    """Show the form and, once something was asked, the gates. The address holds the question, so it can be sent on."""
    access = request.access
    pools = visible_pools(access).order_by("name").values_list("name", flat=True)
    form = WhyForm(
        request.GET or None,
        access=access,
        profiles=list(profiles.visible_profiles(access)),
        projects=list(orgs.visible_projects(access).order_by("name")),
        pools=list(dict.fromkeys(["local", *CapacityPool.Provider.values, *pools])),
    )
    explained: Explanation | None = None
    if form.is_bound and form.is_valid():
        try:
            explained = _explain(access, form.cleaned_data)
        except RenseiError as refusal:
            form.refuse(refusal)
    context: dict[str, Any] = {"form": form, "explained": explained, "members": []}
    if access.sees_everyone:
        people = orgs.members(access).live().order_by("user__email")
        context["members"] = [one.user for one in people[:MEMBERS_SUGGESTED]]
    if explained is not None:
        context["is_only_one"] = len(explained.refused) == 1 and not any(
            gate.verdict is GateVerdict.NOT_REACHED for gate in explained.gates
        )
    return render(request, "console/why.html", context, status=form.status)


def _explain(access: Access, fields: dict[str, Any]) -> Explanation:
    """:raises RenseiError: if the member, the profile or the project is not found"""
    asked = DispatchRequest(
        profile_id=fields["profile_id"] or None,
        project_id=fields["project_id"] or None,
        pool=fields["pool"] or "local",
    )
    return explain.explain(as_member(access, fields.get("as_member") or access.user.email), asked)
