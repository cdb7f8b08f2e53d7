"""The admin site: its front page and its menu are Rensei's own, and operators sign in as all people do."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from allauth.account.decorators import secure_admin_login
from django.contrib import messages
from django.contrib.admin import AdminSite
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

from rensei.accounts.second_factor import is_missing
from rensei.orgs.models import User

# Each job of an operator with its models, in the order of the menu. Other models are listed under Data.
JOBS = {
    "Customers": ["Org", "Membership", "User", "Project", "ModelProfile", "ApiToken"],
    "Billing": [
        "Entitlement", "CostEvent", "UsageDaily", "Statement", "BudgetUsage", "SharedUsage", "SharedSpending",
        "SpendCap", "BillingSetting",
    ],
    "Models": ["CatalogEntry", "Price", "CatalogSetting", "Identity"],
    "Keys": [
        "PlatformKey", "Integration", "DataKey", "KeyCheck", "Rotation", "IssuerKey", "KeyOpening", "BreakGlass",
    ],
    "Safety": ["KillSwitch", "AccessPolicy", "AuditEvent", "LedgerAudit", "UnknownName"],
    "Data": ["Run", "StoredBytes"],
}  # fmt: skip
OTHERS = "Data"


class OperatorsSite(AdminSite):
    """
    The admin, with the common sign-in, its rate limits and its second step.

    If a second factor is required, those without one are redirected to its setup, and have no access before.
    """

    index_title = "Overview"

    def has_permission(self, request: HttpRequest) -> bool:
        return super().has_permission(request) and not (isinstance(request.user, User) and is_missing(request.user))

    def login(self, request: HttpRequest, extra_context: dict[str, object] | None = None) -> HttpResponse:
        answer: HttpResponse = secure_admin_login(self._sign_in)(request, extra_context)
        return answer

    def _sign_in(self, request: HttpRequest, extra_context: dict[str, object] | None = None) -> HttpResponse:
        if isinstance(request.user, User) and request.user.is_staff and is_missing(request.user):
            messages.info(request, "The admin opens once you have set up two-step sign-in.")
            return redirect("mfa_activate_totp")
        return super().login(request, extra_context)

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[dict[str, Any]]:
        """List the models by job. The list of one Django app, which no page of ours links to, stays Django's."""
        found = super().get_app_list(request, app_label)
        if app_label is not None:
            return found
        jobs: dict[str, list[dict[str, Any]]] = {job: [] for job in JOBS}
        for model in [model for app in found for model in app["models"]]:
            job = next((job for job, names in JOBS.items() if model["object_name"] in names), OTHERS)
            jobs[job].append(model)
        return [
            {
                "name": job,
                "app_label": job.lower(),
                "app_url": "",
                "has_module_perms": True,
                "models": sorted(members, key=partial(_place, JOBS[job])),
            }
            for job, members in jobs.items()
            if members
        ]


def _place(names: Sequence[str], model: dict[str, Any]) -> int:
    name = model["object_name"]
    return names.index(name) if name in names else len(names)
