"""Operators' pages for people and organizations, and what they may change."""

from datetime import timedelta
from functools import partial
from typing import Any

from allauth.account.admin import EmailAddress
from allauth.mfa.admin import Authenticator
from allauth.socialaccount.admin import SocialAccount, SocialApp, SocialToken
from allauth.usersessions.admin import UserSession
from django import forms
from django.contrib import admin, messages
from django.contrib.auth import admin as auth_admin
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html

from rensei.core.errors import FieldError, NotFound
from rensei.core.limits import MIB
from rensei.core.proxies import client_address
from rensei.orgs import entering, row_limits, storage
from rensei.orgs.audited_admin import AuditedAdmin, KeptAdmin, ReadOnlyInline, operator, page_context
from rensei.orgs.models import Membership, Org, Project, Role, StoredBytes, User
from rensei.orgs.services import has_owner, insert_org, is_last_owner, left_without_owner
from rensei.orgs.shapes import clean_slug

# Memberships give roles, and operators are staff; groups would be a third way that no code reads.
admin.site.unregister(auth_admin.Group)  # type: ignore[attr-defined]
# The library's tables hold session keys and sealed secrets, which operators must not edit. They are imported
# from where they are registered, so that this runs afterwards.
for model in (EmailAddress, SocialApp, SocialAccount, SocialToken, Authenticator, UserSession):
    admin.site.unregister(model)


@admin.register(User)
class UserAdmin(AuditedAdmin):
    """
    People. Operators set neither a password nor the address of an account that exists.

    With either, an operator could sign in as a member, in whose name the audit log would then record what they do.
    """

    ordering = ["email"]
    list_display = ["email", "name", "is_active", "is_staff", "last_login"]
    list_filter = ["is_active", "is_staff"]
    search_fields = ["email", "name"]
    fieldsets = [
        (None, {"fields": ["email", "name"]}),
        ("Rights", {"fields": ["is_active", "is_staff", "is_superuser", "single_sign_on_issuer"]}),
        ("Dates", {"fields": ["last_login", "date_joined"]}),
    ]
    add_fieldsets = [(None, {"fields": ["email", "name"]})]

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fieldsets if obj else self.add_fieldsets

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return ["email", "last_login", "date_joined"] if obj else []

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """Refuse filters by the password, which would find out its hash letter by letter."""
        return not lookup.startswith("password") and super().lookup_allowed(lookup, value, request)  # type: ignore[arg-type]

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        return _with_owners_kept(super().get_deleted_objects(objs, request), Membership.objects.filter(user__in=objs))

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        if not change:
            obj.set_unusable_password()
        super().save_model(request, obj, form, change)
        if not change:
            messages.info(
                request, f"{obj.email} has no password yet, and sets one by Reset password on the page of sign-in."
            )


class NamedField(forms.ModelChoiceField):  # type: ignore[type-arg]
    """A row that is named in a text field, however many there are: a person by email, an organization by ID."""

    def __init__(self, rows: QuerySet[Any], *, by: str, label: str, missing: str) -> None:
        widget = forms.EmailInput() if by == "email" else forms.TextInput()
        super().__init__(rows, to_field_name=by, label=label, widget=widget, error_messages={"invalid_choice": missing})

    def to_python(self, value: Any) -> Any:
        return super().to_python(value.strip().lower() if isinstance(value, str) else value)


def _person_field(label: str) -> NamedField:
    people = User.objects.filter(is_active=True)
    return NamedField(people, by="email", label=label, missing="No active user has this email address.")


def _org_field() -> NamedField:
    return NamedField(
        Org.objects.all(), by="slug", label="ID of the organization", missing="No organization has this ID."
    )


class NewOrgForm(forms.ModelForm):  # type: ignore[type-arg]
    """A new organization has an owner from the start."""

    owner = _person_field("Owner's email")

    class Meta:
        model = Org
        fields = ["name", "slug"]

    def clean_slug(self) -> str:
        try:
            return clean_slug(self.cleaned_data["slug"])
        except FieldError as refusal:
            raise forms.ValidationError(refusal.detail) from refusal


class MembershipInline(ReadOnlyInline):
    """The members of an organization, read-only. A change needs a reason, which the page of a membership requires."""

    model = Membership
    show_change_link = True
    exclude = ["created_at"]


def _reason_field(*, rows: int) -> forms.CharField:
    return forms.CharField(
        min_length=10,
        max_length=400,
        widget=forms.Textarea(attrs={"rows": rows}),
        help_text="It stands in the organization's audit log, and is mailed to its owners.",
    )


class ReasonForm(forms.Form):
    """Why an operator looks at an organization, and for how long."""

    reason = _reason_field(rows=3)
    hours = forms.IntegerField(
        label="Ends after hours",
        min_value=1,
        max_value=entering.HOURS_MAX,
        initial=entering.HOURS_DEFAULT,
        help_text=f"At most {entering.HOURS_MAX}; the access ends by itself.",
    )


class MembershipForm(forms.ModelForm):  # type: ignore[type-arg]
    """An operator's form for a new membership or a higher role, which is mailed to the owners with its reason."""

    user = _person_field("Email")
    org = _org_field()
    reason = _reason_field(rows=2)
    hours = forms.IntegerField(
        min_value=1,
        max_value=entering.HOURS_MAX,
        initial=entering.HOURS_DEFAULT,
        required=False,
        label="Ends after hours",
        help_text=f"At most {entering.HOURS_MAX}; the access ends by itself. Leave it empty only for a member "
        "without an end, who does not operate this server, or for the owner of an organization that has none.",
    )

    class Meta:
        model = Membership
        fields = ["user", "org", "role"]

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        # The person and the organization of a membership do not change.
        is_new, member = self.instance._state.adding, self.instance  # noqa: SLF001 – ids are set before the first save
        user = cleaned.get("user") if is_new else member.user
        org = cleaned.get("org") if is_new else member.org
        if org and org.deleting_at is not None:
            self.add_error("org" if is_new else None, f"{org.name} was deleted.")
        if user and org and not cleaned.get("hours") and "hours" not in self.errors:
            self._require_lasting(user, org, cleaned.get("role"), is_new=is_new)
        if not is_new and (cleaned.get("hours") or cleaned.get("role") != Role.OWNER) and is_last_owner(member):
            field = "hours" if cleaned.get("hours") else "role"
            self.add_error(field, "This is the organization's last owner, who stays its owner without an end.")
        return cleaned

    def _require_lasting(self, user: User, org: Org, role: str | None, *, is_new: bool) -> None:
        """Refuse a membership without an end, except to those who have one and to the owner of an org without one."""
        if user.is_staff:
            self.add_error("hours", f"{user.email} operates this server, so the access needs an end.")
        elif not is_new and self.instance.ends_at is None:
            return
        elif role != Role.OWNER or has_owner(org):
            self.add_error(
                "hours", f"Operators give access with an end. An owner or admin of {org.name} invites a member to stay."
            )


class DeletionFilter(admin.SimpleListFilter):
    """Organizations by whether an owner has deleted them."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("active", "Active"), ("deleting", "Being deleted"), ("deleted", "Deleted")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "active":
            return queryset.filter(deleting_at=None)
        if self.value() == "deleting":
            return queryset.filter(deleted_at=None).exclude(deleting_at=None)
        return queryset.exclude(deleted_at=None) if self.value() == "deleted" else queryset


@admin.register(Org)
class OrgAdmin(AuditedAdmin):
    list_display = ["name", "slug", "id", "created_at", "state", "view_as_button"]
    list_filter = [DeletionFilter]
    search_fields = ["name", "slug", "id"]
    readonly_fields = ["id", "created_at"]
    inlines = [MembershipInline]

    def get_prepopulated_fields(self, request: HttpRequest, obj: Any = None) -> dict[str, Any]:
        return {} if obj else {"slug": ["name"]}

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **options: Any) -> Any:
        if not change:
            return NewOrgForm
        return super().get_form(request, obj, change, **options)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return (
            ["id", "name", "mark", "slug", "created_at", "deleting_at", "deleted_at"]
            if obj
            else ["name", "slug", "owner"]
        )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        # Addresses and programs contain the slug.
        return ["id", "slug", "created_at", "deleting_at", "deleted_at"] if obj else []

    def get_inlines(self, request: HttpRequest, obj: Any) -> Any:
        return self.inlines if obj else []

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.view_as)
        return [path("<str:org_id>/view-as/", view, name="orgs_org_view_as"), *super().get_urls()]

    @admin.display(ordering="deleting_at")
    def state(self, org: Org) -> str:
        if org.deleted_at is not None:
            return f"Deleted {org.deleted_at:%Y-%m-%d}"
        return "Being deleted" if org.deleting_at is not None else "Active"

    @admin.display(description="", empty_value="")
    def view_as_button(self, org: Org) -> str:
        if org.deleting_at is not None:
            return ""
        address = reverse("admin:orgs_org_view_as", args=[org.pk])
        return format_html('<a class="quiet-button" href="{}">View as…</a>', address)

    def view_as(self, request: HttpRequest, org_id: str) -> HttpResponse:
        """Ask for the reason and the hours of a read-only access to an organization, and open its pages."""
        if not request.user.has_perm("orgs.add_membership"):
            raise PermissionDenied
        org = get_object_or_404(Org, pk=org_id)
        form = ReasonForm(request.POST or None)
        if form.is_valid():
            try:
                entering.view_as(org, operator=operator(request), address=client_address(request), **form.cleaned_data)
            except FieldError as refusal:
                form.add_error(None, refusal.detail)
            else:
                return redirect(f"/o/{org.slug}/")
        context = {
            **page_context(self, request, f"View as {org.name}"),
            "original": org,
            "form": form,
        }
        return TemplateResponse(request, "admin/orgs/org/view_as.html", context, status=400 if form.is_bound else 200)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """The ledger is kept permanently, so an organization is never deleted."""
        return False

    def save_model(self, request: HttpRequest, obj: Org, form: Any, change: bool) -> None:
        if change:
            super().save_model(request, obj, form, change)
            return
        made = insert_org(name=obj.name, slug=obj.slug, owner=form.cleaned_data["owner"])
        obj.pk, obj.created_at = made.pk, made.created_at
        obj._state.adding = False  # noqa: SLF001 – the row is there: the service has written it


@admin.register(StoredBytes)
class StoredBytesAdmin(AuditedAdmin, KeptAdmin):
    """What each organization stores, with its limit. The counts change only with what is stored."""

    list_display = ["org", "used_mib", "held_mib", "limit"]
    list_select_related = ["org"]
    search_fields = ["org__slug", "org__name"]
    ordering = ["-used", "org"]
    fields = ["org", "used_mib", "held_mib", "limit_mib"]
    readonly_fields = ["org", "used_mib", "held_mib"]

    @admin.display(description="Used, MiB", ordering="used")
    def used_mib(self, row: StoredBytes) -> str:
        return f"{row.used / MIB:,.1f}"

    @admin.display(description="Held by runs under way, MiB", ordering="held")
    def held_mib(self, row: StoredBytes) -> str:
        return f"{row.held / MIB:,.1f}"

    @admin.display(description="Limit, MiB")
    def limit(self, row: StoredBytes) -> str:
        return f"{storage.storage_of(row).limit // MIB:,}"


@admin.register(Membership)
class MembershipAdmin(AuditedAdmin):
    list_display = ["user", "org", "role", "created_at", "ends_at"]
    list_filter = ["role", ("ends_at", admin.EmptyFieldListFilter)]
    list_select_related = ["user", "org"]
    search_fields = ["user__email", "org__slug"]
    form = MembershipForm

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        # Another person with the same membership would have joined without an invitation.
        return ["user", "org", "created_at", "ends_at"] if obj else ["created_at", "ends_at"]

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        return _with_owners_kept(
            super().get_deleted_objects(objs, request), Membership.objects.filter(pk__in=[row.pk for row in objs])
        )

    def construct_change_message(self, request: HttpRequest, form: Any, formsets: Any, add: bool = False) -> Any:
        """Add the reason and the end to the change, for the audit log."""
        message = super().construct_change_message(request, form, formsets, add)
        ends_at = form.instance.ends_at
        return [*message, {"reason": form.cleaned_data["reason"]}, {"endsAt": ends_at and ends_at.isoformat()}]

    def save_model(self, request: HttpRequest, obj: Membership, form: Any, change: bool) -> None:
        hours = form.cleaned_data["hours"]
        obj.ends_at = timezone.now() + timedelta(hours=hours) if hours else None
        super().save_model(request, obj, form, change)
        tell = partial(entering.tell_owners, obj, operator=operator(request), reason=form.cleaned_data["reason"])
        transaction.on_commit(tell, robust=True)


class ProjectForm(forms.ModelForm):  # type: ignore[type-arg]
    """An operator's form for a project, which is within the organization's limit too."""

    org = _org_field()

    class Meta:
        model = Project
        fields = ["org", "slug", "name"]

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        org = cleaned.get("org")
        if org is None:
            return cleaned
        try:
            row_limits.require_room(org, Project.objects.for_org(org), row_limits.PROJECTS)
        except row_limits.LimitReached as refusal:
            self.add_error("org", refusal.detail)
        except NotFound:
            self.add_error("org", f"{org.name} was deleted.")
        return cleaned


@admin.register(Project)
class ProjectAdmin(AuditedAdmin):
    list_display = ["slug", "name", "org", "created_at"]
    list_select_related = ["org"]
    search_fields = ["slug", "name", "org__slug"]
    form = ProjectForm

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        # Its runs, policies and tokens are those of its organization.
        return ["org", "created_at"] if obj else ["created_at"]


def _with_owners_kept(found: tuple[Any, Any, Any, list[str]], leaving: QuerySet[Membership]) -> Any:
    """Add to what a deletion must not delete the last owners: an operator could make themselves the next one."""
    objects, counts, missing, protected = found
    kept = [f"The last owner of {org.name}" for org in left_without_owner(leaving)]
    return objects, counts, missing, [*protected, *kept]
