"""The page of the vault for operators: outer keys, rotations and their progress, and what is done about them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Count
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path

from integrations.keys import fingerprints, rotations
from integrations.models import DataKey, KeyCheck, Rotation
from integrations.vault import kek_providers, rotation
from integrations.vault.errors import VaultFault
from integrations.vault.rotation import KekInUse
from rensei.core.errors import RenseiError
from rensei.layout import MANAGE
from rensei.orgs.audited_admin import ReadOnlyAdmin, may, page_context, require_operator

PERMISSION = "integrations.add_rotation"
CHANGELIST = "admin:integrations_rotation_changelist"
SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class OuterKey:
    """An outer key with the versions of it that wrap data keys, and how many each does."""

    check: KeyCheck
    place: str
    is_current: bool
    versions: list[tuple[str, int]]

    @property
    def count(self) -> int:
        return sum(count for _, count in self.versions)

    @property
    def may_retire(self) -> bool:
        return not self.count and not self.is_current


@admin.register(Rotation)
class RotationAdmin(ReadOnlyAdmin):
    """What wraps the data keys, and the rotations. Workers carry them out; the command does and shows the same."""

    list_display = ["__str__", "state"]
    ordering = ["-started_at"]

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("start/<str:kind>/", view(self.start), name="integrations_rotation_start"),
            path("<str:rotation_id>/stop/", view(self.stop), name="integrations_rotation_stop"),
            path("retire/<path:kek_id>/", view(self.retire), name="integrations_rotation_retire"),
            *super().get_urls(),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the keys and the rotations. No key service is called."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        live = rotations.live()
        keys, fault = _outer_keys()
        context = {
            **page_context(self, request, "Rotation of keys"),
            "keys": keys,
            "fault": fault,
            "live": live,
            "ended": Rotation.objects.exclude(state=Rotation.State.RUNNING).order_by("-started_at")[:SHOWN],
            "kinds": list(Rotation.Kind),
            "may_rotate": may(request, PERMISSION),
            "manage": MANAGE,
        }
        return TemplateResponse(request, "admin/integrations/rotation/change_list.html", context)

    def start(self, request: HttpRequest, kind: str) -> HttpResponse:
        """Say what a rotation would do, which is its dry run, and start it."""
        actor = require_operator(request, permission=PERMISSION)
        if kind not in Rotation.Kind.values:
            raise Http404
        chosen, refusal, left = Rotation.Kind(kind), "", None
        try:
            if request.method == "POST":
                rotations.start(chosen, actor=actor, resume=_is_resumed(chosen))
                self.message_user(request, "Started. A worker takes it up within seconds.", messages.SUCCESS)
                return redirect(CHANGELIST)
            left = _count(chosen)
        except RenseiError as fault:
            refusal = fault.detail
        except VaultFault as fault:
            refusal = f"It cannot be started now: {fault}."
        context = {
            **page_context(self, request, chosen.label),
            "kind": kind,
            "left": left,
            "refusal": refusal,
            "by": _current_key(),
        }
        return self._ask(request, "start", context, refusal=refusal)

    def stop(self, request: HttpRequest, rotation_id: str) -> HttpResponse:
        """Request a confirmation, and stop a rotation."""
        actor = require_operator(request, permission=PERMISSION)
        row = get_object_or_404(Rotation, pk=rotation_id)
        if request.method == "POST":
            stopped = rotations.stop(row, actor=actor)
            self.message_user(request, "Stopped." if stopped else "It had ended before.", messages.SUCCESS)
            return redirect(CHANGELIST)
        return self._ask(request, "stop", {**page_context(self, request, "Stop the rotation"), "rotation": row})

    def retire(self, request: HttpRequest, kek_id: str) -> HttpResponse:
        """Say which backups still need an outer key, and forget it when an operator says that none is left."""
        actor = require_operator(request, permission=PERMISSION)
        check = get_object_or_404(KeyCheck, pk=kek_id)
        refusal = ""
        try:
            rotation.require_unused(kek_id)
            if request.method == "POST":
                if request.POST.get("no_backup") != "on":
                    refusal = "Confirm that no backup needs it, or keep the key."
                else:
                    rotation.retire(check, actor=actor)
                    self.message_user(request, f"{kek_id} is retired.", messages.SUCCESS)
                    return redirect(CHANGELIST)
        except (KekInUse, VaultFault) as fault:
            refusal = str(fault)
        backups = rotation.backups_needing(check)
        context = {
            **page_context(self, request, f"Retire {kek_id}"),
            "check": check,
            "backups": backups,
            "refusal": refusal,
        }
        return self._ask(request, "retire", context, refusal=refusal)

    def _ask(self, request: HttpRequest, name: str, context: dict[str, Any], *, refusal: str = "") -> HttpResponse:
        template = f"admin/integrations/rotation/{name}.html"
        return TemplateResponse(request, template, context, status=409 if refusal else 200)


def _outer_keys() -> tuple[list[OuterKey], str]:
    """List the outer keys, and why the current one cannot be told."""
    current, fault = _current()
    wrapped: dict[str, list[tuple[str, int]]] = {}
    rows = DataKey.objects.order_by("kek_id", "kek_version").values_list("kek_id", "kek_version")
    for kek_id, version, count in rows.annotate(count=Count("id")):
        wrapped.setdefault(kek_id, []).append((version, count))
    keys = [
        OuterKey(
            check=check,
            place=_place_of(check.kek_id),
            is_current=check.kek_id == current,
            versions=wrapped.get(check.kek_id, []),
        )
        for check in KeyCheck.objects.order_by("created_at", "kek_id")
    ]
    return keys, fault


def _place_of(kek_id: str) -> str:
    return _told(lambda: kek_providers.holding(kek_id).describe())


def _current() -> tuple[str, str]:
    try:
        return kek_providers.current().current_id(), ""
    except VaultFault as fault:
        return "", str(fault)


def _current_key() -> str:
    """Name the key by which data keys would be re-wrapped, with its version where the service tells it."""

    def name() -> str:
        provider = kek_providers.current()
        return f"{provider.current_id()} {provider.current_version()}".strip()

    return _told(name)


def _count(kind: Rotation.Kind) -> int:
    """
    Count what a rotation would do. One of fingerprints that begins makes a new key first, so it concerns all.

    :raises VaultFault: if the current outer key is not available
    """
    if kind == Rotation.Kind.FINGERPRINTS and not _is_resumed(kind):
        return rotations.count_fingerprints()
    return rotations.left_of(kind)


def _is_resumed(kind: Rotation.Kind) -> bool:
    """Whether fingerprints of an older key are left, as after a stop: they are done first, without another key."""
    return kind == Rotation.Kind.FINGERPRINTS and fingerprints.outdated().exists()


def _told(find: Callable[[], str]) -> str:
    try:
        return find()
    except VaultFault as fault:
        return str(fault)
