"""Base classes of the admin pages of all packages."""

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import FloatField, Model
from django.db.models.functions import Cast
from django.http import HttpRequest

from rensei.audit.record import record_operator
from rensei.core.money import dollars
from rensei.orgs.models import Org, User


class _Admin(admin.ModelAdmin):  # type: ignore[type-arg]
    """What all have in common: no filter counts its rows, because that would read a whole table for each choice."""

    show_facets = admin.ShowFacets.NEVER


class AuditedAdmin(_Admin):
    """Writes an operator's change into the audit log, in the transaction of the change."""

    def log_addition(self, request: HttpRequest, object: Model, message: Any) -> Any:  # noqa: A002
        self._audit(request, object, "created", message)
        return super().log_addition(request, object, message)

    def log_change(self, request: HttpRequest, object: Model, message: Any) -> Any:  # noqa: A002
        self._audit(request, object, "changed", message)
        return super().log_change(request, object, message)

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        for thing in queryset:
            self._audit(request, thing, "deleted", [])
        return super().log_deletions(request, queryset)

    def _audit(self, request: HttpRequest, thing: Model, verb: str, message: Any) -> None:
        org = None if verb == "deleted" or isinstance(thing, User) else getattr(thing, "org", thing)
        record_operator(
            operator(request),
            f"{type(thing).__name__.lower()}.{verb}",
            object_id=str(thing.pk),
            org=org if isinstance(org, Org) else None,
            name=str(thing),
            changes=message,
        )


class _NoneAdded:
    """Rows that only services add."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class _NoneChanged(_NoneAdded):
    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class KeptAdmin(_NoneAdded, _Admin):
    """Rows that services add, operators change, and nothing deletes."""

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class ReadOnlyAdmin(_NoneChanged, KeptAdmin):
    """Rows that are read here and written only by services."""


class ReadOnlyInline(_NoneChanged, admin.TabularInline):  # type: ignore[type-arg]
    """Rows that are read on the page of another."""

    extra = 0
    can_delete = False


def operator(request: HttpRequest) -> User:
    """Return the authenticated operator."""
    assert isinstance(request.user, User)
    return request.user


def may(request: HttpRequest, permission: str) -> bool:
    """Return whether the operator has a permission, such as `orgs.add_killswitch`."""
    return request.user.is_active and request.user.has_perm(permission)


def require_operator(request: HttpRequest, *, permission: str) -> User:
    """:raises PermissionDenied: unless the operator has the permission"""
    if not may(request, permission):
        raise PermissionDenied
    return operator(request)


def page_context(page: admin.ModelAdmin[Any], request: HttpRequest, title: str) -> dict[str, Any]:
    """Return what Django's templates need on a page that is added to those of a model."""
    return {**page.admin_site.each_context(request), "opts": page.opts, "media": page.media, "title": title}


def words(label: str, field: str) -> Any:
    """Make the line of a stored list of words."""

    @admin.display(description=label)
    def shown(row: Any) -> str:
        return ", ".join(getattr(row, field)) or "-"

    return shown


def usd(label: str, field: str) -> Any:
    """Make the column of an amount in picodollars."""

    @admin.display(description=label, ordering=Cast(field, FloatField()))
    def shown(row: Any) -> str:
        return dollars(getattr(row, field)) or "-"

    return shown


def fields_with_dollars(model: type[Model]) -> list[Any]:
    """List a model's fields for a page that is only read, with amounts and the prices of one token in dollars."""
    suffix, sums = "_picodollars", ("amount_picodollars", "billed_picodollars")
    return [
        usd(
            f"{one.name.removesuffix(suffix).replace('_', ' ').capitalize()}, USD{'' if one.name in sums else ' each'}",
            one.name,
        )
        if one.name.endswith(suffix)
        else one.name
        for one in model._meta.fields  # noqa: SLF001
        if not one.primary_key
    ]
