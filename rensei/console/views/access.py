"""Settings → Projects & Access: the access policy of the organization, or of a project, as a matrix."""

import json
from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from catalog.models import CatalogEntry
from catalog.services import visible_entries
from rensei.audit.models import AuditEvent
from rensei.console import policy_matrix
from rensei.console.access import PageRequest, page
from rensei.console.policy_matrix import Rule
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.errors import FieldError, RenseiError
from rensei.core.json_body import read_json
from rensei.dispatch.admission import policy_preview
from rensei.dispatch.admission.policy_preview import Prediction
from rensei.orgs import services as orgs
from rensei.orgs.access import Access
from rensei.orgs.models import Project
from rensei.orgs.services import people
from rensei.policies import documents
from rensei.policies import services as policies
from rensei.policies.models import AccessPolicy
from rensei.policies.services import Matrix

HISTORY_LENGTH = 20
RETIRED = CatalogEntry.Lifecycle.RETIRED


@require_http_methods(["GET", "HEAD", "POST"])
@page
def org_access(request: PageRequest) -> HttpResponse:
    return _policy(request, None)


@require_http_methods(["GET", "HEAD", "POST"])
@page
def project_access(request: PageRequest, project_id: str) -> HttpResponse:
    return _policy(request, orgs.find_project(request.access, project_id))


def _policy(request: PageRequest, project: Project | None) -> HttpResponse:
    """
    Show the matrix; add a row to it, preview it, save it.

    The previewed document is saved, not later changes in the form.
    """
    access = request.access
    applying = policies.applying_policies(access.org, project_ids=[project.pk] if project else [])
    scope = AccessPolicy.Scope.PROJECT if project else AccessPolicy.Scope.ORGANIZATION
    stored: Matrix = next((policy.matrix for policy in applying if policy.scope == scope), {})
    parents = documents.as_policies([policy for policy in applying if policy.scope != scope])
    matrix, added = stored, list[str]()
    preview, refusal = None, None
    action = request.POST.get("action", "")
    if request.method == "POST":
        policies.require_setter(access, project)
        try:
            if action == "save":
                matrix = _previewed(request)
                _require_current(request, stored)
                documents.set_policy(access, matrix=matrix, project=project, expected=stored)
                messages.success(request, f"The access policy of {(project or access.org).name} was saved.")
                return redirect(request.path)
            matrix, added = policy_matrix.read(request.POST)
            if action == "add":
                added.append(request.POST.get("model", ""))
                policies.validate_matrix({name: {} for name in added}, known=documents.known_rows(access.org))
            elif action.startswith("clear:"):
                cleared = action.removeprefix("clear:")
                matrix.pop(cleared, None)
                added = [name for name in added if name != cleared]
            else:
                _require_current(request, stored)
                found = policy_preview.changes(access, matrix=matrix, project=project)
                preview = _preview(access, stored, matrix, found)
        except RenseiError as caught:
            refusal = caught
    entries = list(visible_entries(access).order_by("display_name", "model_id"))
    mistakes = {error["pointer"]: error["detail"] for error in getattr(refusal, "errors", [])}
    rows = policy_matrix.rows_of(matrix, parents=parents, entries=entries, added=added, errors=mistakes)
    shown, today = {row.name for row in rows}, database_now().date()
    context = {
        "project": project,
        "rows": rows,
        "modes": list(AuthMode),
        "rules": Rule,
        "more_models": [
            entry for entry in entries if entry.model_id not in shown and entry.lifecycle_on(today) != RETIRED
        ],
        "base": policy_matrix.fingerprint(stored),
        "preview": preview,
        "refusal": refusal,
        "history": _history(request, project),
    }
    return render(request, "console/access.html", context, status=422 if refusal else 200)


def _previewed(request: PageRequest) -> Matrix:
    """:raises FieldError: unless the form contains the document of a preview"""
    document = read_json(request.POST.get("matrix", "").encode())
    policies.validate_matrix(document)
    matrix: Matrix = document
    return matrix


def _require_current(request: PageRequest, stored: Matrix) -> None:
    """:raises FieldError: if the policy was saved by another request since the page was opened"""
    if request.POST.get("base") != policy_matrix.fingerprint(stored):
        raise FieldError(
            pointer="/matrix",
            reason="This policy was changed after you opened it. Preview your changes again.",
        )


def _preview(access: Access, stored: Matrix, matrix: Matrix, found: list[Prediction]) -> dict[str, Any]:
    """The changes that would be saved, and their effect on the profiles and their recent runs: the refused first."""
    refused = [one for one in found if one.after.code and not one.before.code]
    paying = [one for one in found if one not in refused and one.after.payer != one.before.payer]
    rest = [one for one in found if one not in refused and one not in paying]
    ordered = [*refused, *paying, *rest]
    runs = policy_preview.recent_runs(access, ordered)
    return {
        "cells": policy_matrix.changes(stored, matrix),
        "matrix": json.dumps(matrix),
        "profiles": list(zip(ordered, runs, strict=True)),
        "refused": len({one.profile.pk for one in refused}),
        "refused_runs": sum(runs[: len(refused)]),
        "paying": len(paying),
    }


def _history(request: PageRequest, project: Project | None) -> list[dict[str, Any]]:
    events: list[AuditEvent] = list(policies.changes_of(request.access.org, project)[:HISTORY_LENGTH])
    known = people([event.user_id for event in events if event.user_id])
    names: dict[int | None, str] = {person.pk: person.get_full_name() for person in known}
    return [
        {
            "event": event,
            "name": names.get(event.user_id, event.actor),
            "cells": policy_matrix.changes(event.detail["old"], event.detail["new"]),
        }
        for event in events
    ]
