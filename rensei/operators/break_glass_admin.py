"""The page of break-glass requests for operators: asking, approving another operator's, and withdrawing."""

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path

from integrations.keys import break_glass, default_address
from integrations.models import BreakGlass, DefaultAddress
from rensei.core.errors import RenseiError
from rensei.layout import MANAGE
from rensei.orgs.audited_admin import ReadOnlyAdmin, may, page_context, require_operator

PERMISSION = "integrations.add_breakglass"
CHANGELIST = "admin:integrations_breakglass_changelist"
SHOWN = 20


@admin.register(BreakGlass)
class BreakGlassAdmin(ReadOnlyAdmin):
    """Requests that need two operators. No page shows a key: an export is carried out by the command."""

    list_display = ["__str__", "asked_by", "asked_at"]
    ordering = ["-asked_at"]

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("ask/<str:kind>/", view(self.ask), name="integrations_breakglass_ask"),
            path("<str:request_id>/approve/", view(self.approve), name="integrations_breakglass_approve"),
            path("<str:request_id>/withdraw/", view(self.withdraw), name="integrations_breakglass_withdraw"),
            *super().get_urls(),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        rows = BreakGlass.objects.select_related("org", "asked_by", "approved_by").order_by("-asked_at")[:SHOWN]
        context = {
            **page_context(self, request, "Break-glass"),
            "requests": [self._shown(row, operator=request.user) for row in rows],
            "addresses": DefaultAddress.objects.order_by("provider"),
            "unapproved": default_address.unapproved(),
            "may_ask": may(request, PERMISSION),
            "manage": MANAGE,
        }
        return TemplateResponse(request, "admin/integrations/breakglass/change_list.html", context)

    def ask(self, request: HttpRequest, kind: str) -> HttpResponse:
        """Ask for an export, or for another default address."""
        actor = require_operator(request, permission=PERMISSION)
        refusal: RenseiError | None = None
        given = {name: request.POST.get(name, request.GET.get(name, "")) for name in ("target", "reason")}
        if request.method == "POST":
            try:
                break_glass.ask(kind, operator=actor, **given)
            except RenseiError as caught:
                refusal = caught
            else:
                self.message_user(request, "Asked. The other operators got a mail.", messages.SUCCESS)
                return redirect(CHANGELIST)
        title = BreakGlass.Kind(kind).label if kind in BreakGlass.Kind.values else "Ask"
        context = {"kind": kind, **given, "reason_length": break_glass.REASON_LENGTH}
        return self._answer(request, "ask", title, context, refusal)

    def approve(self, request: HttpRequest, request_id: str) -> HttpResponse:
        """Show what was asked and why, and approve it."""
        return self._decide(request, request_id, "approve", break_glass.approve, "Approved.")

    def withdraw(self, request: HttpRequest, request_id: str) -> HttpResponse:
        """Request a confirmation, and withdraw or refuse a request."""
        return self._decide(request, request_id, "withdraw", break_glass.withdraw, "Withdrawn.")

    def _decide(
        self, request: HttpRequest, request_id: str, verb: str, decide: Callable[..., None], done: str
    ) -> HttpResponse:
        actor = require_operator(request, permission=PERMISSION)
        row = get_object_or_404(BreakGlass.objects.select_related("org", "asked_by"), pk=request_id)
        refusal: RenseiError | None = None
        if request.method == "POST":
            try:
                decide(row, operator=actor)
            except RenseiError as caught:
                refusal = caught
            else:
                self.message_user(request, done, messages.SUCCESS)
                return redirect(CHANGELIST)
        may_decide = verb != "approve" or break_glass.may_approve(row, operator=actor)
        if not may_decide and refusal is None:
            refusal = break_glass.SecondOperatorNeeded()
        context = {
            "row": row, "named": break_glass.named(row), "verb": verb, "may_decide": may_decide, "manage": MANAGE
        }  # fmt: skip
        return self._answer(request, "decide", f"{verb.capitalize()} the request", context, refusal)

    def _shown(self, row: BreakGlass, *, operator: Any) -> tuple[BreakGlass, str, str, bool]:
        state = break_glass.state_of(row)
        is_waiting = state == break_glass.WAITING
        return row, state, break_glass.named(row), is_waiting and break_glass.may_approve(row, operator=operator)

    def _answer(
        self, request: HttpRequest, name: str, title: str, context: dict[str, Any], refusal: RenseiError | None
    ) -> HttpResponse:
        whole = {**page_context(self, request, title), **context, "refusal": refusal}
        template = f"admin/integrations/breakglass/{name}.html"
        return TemplateResponse(request, template, whole, status=refusal.status if refusal else 200)
