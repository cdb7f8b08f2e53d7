"""The operators' kill switches in the admin: what is stopped now, stopping and resuming, each with a confirmation."""

from typing import Any

from django.contrib import admin, messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path

from rensei.core.errors import RenseiError

# The imports register the pages in the admin.
from rensei.operators import (  # noqa: F401
    audit_admin,
    break_glass_admin,
    openings_admin,
    stoppable,
    unknown_admin,
    vault_admin,
)
from rensei.orgs import kill_switches
from rensei.orgs.audited_admin import ReadOnlyAdmin, may, page_context, require_operator
from rensei.orgs.models import KillSwitch

PERMISSION = "orgs.add_killswitch"
CHANGELIST = "admin:orgs_killswitch_changelist"


@admin.register(KillSwitch)
class KillSwitchAdmin(ReadOnlyAdmin):
    """What is stopped. Only the services write the rows, so that each change is in the audit log."""

    list_display = ["__str__", "reason", "set_by", "set_at"]
    list_select_related = ["org"]
    ordering = ["-set_at"]

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("add/", view(self.choose), name="orgs_killswitch_add"),
            path("stop/<str:kind>/<path:target>/", view(self.stop), name="orgs_killswitch_stop"),
            path("<int:switch_id>/resume/", view(self.resume), name="orgs_killswitch_resume"),
            *super().get_urls(),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """List the switches in words: the row itself has only a kind and a target."""
        switches = KillSwitch.objects.select_related("org").order_by("-set_at")
        context = {
            "title": "Kill switches",
            "may_stop": may(request, PERMISSION),
            "switches": [(switch, stoppable.find(switch.kind, switch.target)) for switch in switches],
        }
        return super().changelist_view(request, context)

    def choose(self, request: HttpRequest) -> HttpResponse:
        """List what can be stopped for all organizations. A single one and its keys have pages of their own."""
        require_operator(request, permission=PERMISSION)
        stopped = set(KillSwitch.objects.values_list("kind", "target"))
        groups = [
            (title, [(target, (target.kind.value, target.id) in stopped) for target in targets])
            for title, targets in stoppable.choices()
        ]
        context = {**page_context(self, request, "What do you want to pause?"), "groups": groups}
        return TemplateResponse(request, "admin/orgs/killswitch/choose.html", context)

    def stop(self, request: HttpRequest, kind: str, target: str) -> HttpResponse:
        """Explain the effect of stopping, request the reason for refused callers, and stop it."""
        actor = require_operator(request, permission=PERMISSION)
        found = stoppable.find(kind, target)
        if found is None:
            raise Http404
        reason = request.POST.get("reason", "")
        refusal: RenseiError | None = None
        if request.method == "POST":
            try:
                kill_switches.stop(operator=actor, kind=kind, target=found.id, reason=reason, org=found.org)
            except RenseiError as caught:
                refusal = caught
            else:
                self.message_user(request, f"{found.name} is now paused.", messages.SUCCESS)
                return redirect(CHANGELIST)
        waiting, running = stoppable.live_runs(found)
        context = {
            **page_context(self, request, f"{found.verb} {found.name}"),
            "found": found,
            "reason": reason,
            "reason_length": kill_switches.REASON_LENGTH,
            "refusal": refusal,
            "waiting": waiting,
            "running": running,
        }
        return TemplateResponse(
            request, "admin/orgs/killswitch/stop.html", context, status=refusal.status if refusal else 200
        )

    def resume(self, request: HttpRequest, switch_id: int) -> HttpResponse:
        """Request a confirmation, and resume it."""
        actor = require_operator(request, permission=PERMISSION)
        switch = get_object_or_404(KillSwitch.objects.select_related("org"), pk=switch_id)
        found = stoppable.find(switch.kind, switch.target)
        name = found.name if found else switch.target
        if request.method == "POST":
            kill_switches.resume(switch, operator=actor)
            self.message_user(request, f"{name} goes on from now on.", messages.SUCCESS)
            return redirect(CHANGELIST)
        context = {**page_context(self, request, f"Resume {name}"), "switch": switch, "name": name}
        return TemplateResponse(request, "admin/orgs/killswitch/resume.html", context)
