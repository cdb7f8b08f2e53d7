"""Settings → Model Profiles: the list, what a dispatch would do now, and the form."""

from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from billing.limits.snapshot import snapshot_of
from catalog import pricing
from catalog import services as catalog
from catalog.lookup import find_named
from catalog.models import CatalogEntry
from catalog.pricing import PriceList
from catalog.providers import PROVIDERS
from integrations.keys.services import visible_integrations
from profiles import services
from profiles.models import ModelProfile
from rensei.console import snippets
from rensei.console.access import PageRequest, attempt, page
from rensei.console.answers import confirm
from rensei.console.forms.profiles import ProfileForm
from rensei.console.templatetags.console import per_mtok
from rensei.core.clock import database_now
from rensei.core.errors import NotFound, RenseiError
from rensei.core.ids import first_id_of
from rensei.dispatch.admission import dry_run
from rensei.dispatch.context import Known
from rensei.dispatch.queries import visible_runs
from rensei.layout import MANAGE
from rensei.orgs import services as orgs
from rensei.orgs.access import Access
from rensei.tokens.services import visible_tokens
from rensei.workflows import services as workflows

RECENT = timedelta(days=7)
TOKENS_NAMED_MAX = 20
Choices = list[tuple[str, list[tuple[str, str]]]]


@require_safe
@page
def profiles(request: PageRequest) -> HttpResponse:
    """List the profiles with what a dispatch of each would do now."""
    stored = list(services.visible_profiles(request.access).order_by("-is_default", "name"))
    previews = dry_run.previews(request.access, stored) if stored else {}
    rows = [{"profile": profile, "preview": previews[profile.public_id]} for profile in stored]
    return render(request, "console/profiles.html", {"rows": rows})


@require_http_methods(["GET", "HEAD", "POST"])
@page
def create(request: PageRequest) -> HttpResponse:
    request.access.require_writer()
    return _edit(request, None)


@require_http_methods(["GET", "HEAD", "POST"])
@page
def profile(request: PageRequest, profile_id: str) -> HttpResponse:
    """Show a profile, and change it."""
    if request.method == "POST":
        request.access.require_writer()
    return _edit(request, services.find_profile(request.access, profile_id))


@require_POST
@page
def make_default(request: PageRequest, profile_id: str) -> HttpResponse:
    stored = services.find_profile(request.access, profile_id)
    return attempt(
        request,
        lambda: services.update_profile(request.access, stored, is_default=True),
        done=f"{stored.name} is the default now.",
        back="profiles",
    )


@require_POST
@page
def switch(request: PageRequest, profile_id: str) -> HttpResponse:
    """Replace a retired model in a profile by the model that serves it."""
    stored = services.find_profile(request.access, profile_id)
    entry = catalog.find_entry(org=request.access.org, provider=stored.provider, model_id=stored.model_id)
    served = catalog.served_entry(entry, org=request.access.org, today=database_now().date())
    return attempt(
        request,
        lambda: services.update_profile(request.access, stored, model_id=served.model_id),
        done=f"{stored.name} names {served.display_name} now.",
        back="profiles",
    )


@require_http_methods(["GET", "HEAD", "POST"])
@page
def delete(request: PageRequest, profile_id: str) -> HttpResponse:
    request.access.require_writer()
    stored = services.find_profile(request.access, profile_id)
    others = [other for other in services.visible_profiles(request.access) if other.project_id == stored.project_id]
    by_id = {other.public_id: other for other in others if other != stored}
    if request.method == "POST":
        chosen = request.POST.get("chosen", "") if stored.is_default else ""
        if chosen and chosen not in by_id:
            # It was deleted meanwhile. Without this, there would be no default.
            raise NotFound
        successor = by_id.get(chosen)
        return attempt(
            request,
            lambda: services.delete_profile(request.access, stored, next_default=successor),
            done=f"{stored.name} was deleted." + (f" {successor.name} is the default now." if successor else ""),
            back="profiles",
        )
    return _ask_to_delete(request, stored, by_id.values())


def _ask_to_delete(request: PageRequest, stored: ModelProfile, others: Iterable[ModelProfile]) -> HttpResponse:
    """Show what uses a profile: workflows, tokens, and the number of its runs. A default offers its successor."""
    naming = [workflow.name for workflow in workflows.workflows_naming(request.access, stored.public_id)]
    since = database_now() - RECENT
    recent = visible_runs(request.access).filter(id__gte=first_id_of("run", since), profile_id=stored.public_id)
    count = recent.count()
    used_with = recent.exclude(token_id="").values("token_id")
    tokens = visible_tokens(request.access).filter(revoked_at=None, pk__in=used_with).order_by("name", "pk")
    named = [f"Token, used in the last 7 days: {token.name}" for token in tokens[: TOKENS_NAMED_MAX + 1]]
    if len(named) > TOKENS_NAMED_MAX:
        named[TOKENS_NAMED_MAX:] = ["More tokens, used in the last 7 days"]
    text = f"Requests that name {stored.public_id} will be refused. Its runs and costs are kept."
    if stored.is_default:
        text += " It is the default, so requests that name no profile will be refused too, until there is another."
    text += f" It had {count:,} run{'' if count == 1 else 's'} in the last 7 days."
    if naming:
        text += " Give the nodes of its workflows another profile first, or their next runs will fail."
    choices = [(other.public_id, other.name) for other in others] if stored.is_default else []
    return confirm(
        request,
        title=f"Delete {stored.name}?",
        text=text,
        items=[*(f"Workflow: {name}" for name in naming), *named],
        choice=("The default from now on", [("", "None"), *choices]) if choices else None,
        action="Delete",
        section="Model Profiles",
        back="profiles",
    )


def _edit(request: PageRequest, stored: ModelProfile | None) -> HttpResponse:
    access = request.access
    entries = list(catalog.visible_entries(access).order_by("-released_on", "display_name"))
    standing = snapshot_of(access.org)
    today = standing.now.date()
    entry = _chosen(entries, request.POST.get("model_id") or request.GET.get("model"), stored, today)
    served = catalog.served_entries([entry], org=access.org, today=today)[entry.pk] or entry
    price_lists = pricing.price_lists({*entries, served}, moment=standing.now)
    projects = list(orgs.visible_projects(access).order_by("name"))
    of_models = visible_integrations(access).filter(provider__in=PROVIDERS)
    integrations = list(of_models.defer("sealed_key").order_by("name"))
    form = ProfileForm(
        request.POST or None,
        initial=_initial(access, stored, entry),
        groups=_groups(entries, price_lists, today),
        entry=entry,
        served=served,
        projects=projects,
        integrations=integrations,
    )
    updating = request.POST.get("action") == "update"
    if request.method == "POST" and not updating and form.is_valid():
        try:
            values = _values(form, projects=projects, integrations=integrations)
            saved = _save(access, stored, values, public_id=form.cleaned_data.get("slug", ""))
        except NotFound:
            raise
        except RenseiError as refusal:
            form.refuse(refusal)
        else:
            messages.success(request, f"{saved.name} was saved.")
            return redirect("console:profile", access.org.slug, saved.public_id)
    context = {
        "form": form,
        "profile": stored,
        "entry": entry,
        "served": served,
        "lifecycle": entry.lifecycle_on(today),
        "preview": _preview(
            access,
            form,
            stored,
            projects=projects,
            known=Known(standing=standing, entries=entries, integrations=integrations, price_lists=price_lists),
        ),
        "price_list": price_lists.get(served.pk),
        "snippets": snippets.of_profile(stored) if stored else [],
    }
    if updating:
        # The form is still being filled in, so a missing value is not yet an error.
        form.errors.clear()
    template = "console/_profile_form.html" if request.htmx and updating else "console/profile.html"
    return render(request, template, context, status=form.status)


def _save(access: Access, stored: ModelProfile | None, values: dict[str, Any], *, public_id: str) -> ModelProfile:
    if stored is None:
        return services.create_profile(access, **values, public_id=public_id)
    # If the change is refused, the list shows the unchanged row.
    return services.update_profile(access, stored, **values)


def _chosen(entries: list[CatalogEntry], value: str | None, stored: ModelProfile | None, today: date) -> CatalogEntry:
    """The model of the form: the one just picked, the profile's own, else the newest recommended one."""
    by_value = {_value(entry): entry for entry in entries}
    if value in by_value:
        return by_value[value]
    if stored is not None:
        for own in find_named([(stored.provider, stored.model_id)], org=None, among=entries).values():
            return own
    if not entries:
        raise catalog.ModelNotInCatalog(model_id="…", step=f"Ask the operator to run: {MANAGE} load_catalog")
    current = [entry for entry in entries if entry.lifecycle_on(today) is CatalogEntry.Lifecycle.ACTIVE] or entries
    proposed = [entry for entry in current if entry.model_id.startswith(PROVIDERS[entry.provider].recommended)]
    return max(proposed or current, key=lambda entry: entry.released_on or date.min)


def _groups(entries: list[CatalogEntry], price_lists: Mapping[int, PriceList], today: date) -> Choices:
    """The models by lifecycle, each with its price for input and output."""
    groups: Choices = []
    for lifecycle in CatalogEntry.Lifecycle:
        members = [
            (_value(entry), entry.display_name + _price_of(price_lists.get(entry.pk)))
            for entry in entries
            if entry.lifecycle_on(today) == lifecycle
        ]
        if members:
            groups.append((str(lifecycle.label), members))
    return groups


def _price_of(price_list: PriceList | None) -> str:
    if price_list is None:
        return ", no price"
    band = price_list.bands[0]
    return f", {per_mtok(band.input)} in, {per_mtok(band.output)} out"


def _value(entry: CatalogEntry) -> str:
    return f"{entry.provider}:{entry.model_id}"


def _initial(access: Access, stored: ModelProfile | None, entry: CatalogEntry) -> dict[str, Any]:
    if stored is None:
        return {
            "model_id": _value(entry),
            "auth_modes": entry.auth_modes[:1],
            "prompt_caching": "ephemeral",
            "is_default": services.default_profile(access.org, None) is None,
        }
    namespace = PROVIDERS[stored.provider].config_namespace
    return {
        "name": stored.name,
        "model_id": _value(entry),
        "auth_modes": stored.auth_modes,
        "effort": stored.effort,
        "scope": stored.scope,
        "project": stored.project.slug if stored.project else "",
        "integration": stored.integration_id or "",
        "system": stored.system,
        "max_tokens": stored.max_tokens,
        "context_window": stored.provider_config.get(namespace, {}).get("contextWindow"),
        "prompt_caching": stored.prompt_caching,
        "is_default": stored.is_default,
    }


def _values(form: ProfileForm, *, projects: list[Any], integrations: list[Any]) -> dict[str, Any]:
    """Convert the form's values to arguments of the service. A field that the model lacks has its default."""
    fields = form.cleaned_data
    namespace = PROVIDERS[form.entry.provider].config_namespace
    window = fields.get("context_window")
    by_slug = {project.slug: project for project in projects}
    by_id = {integration.id: integration for integration in integrations}
    in_project = fields.get("scope") == ModelProfile.Scope.PROJECT
    return {
        "name": fields.get("name", ""),
        "provider": form.entry.provider,
        "model_id": form.entry.model_id,
        "auth_modes": fields.get("auth_modes", []),
        "effort": fields.get("effort") or "",
        "scope": fields.get("scope") or ModelProfile.Scope.ORGANIZATION,
        "project": by_slug.get(fields.get("project")) if in_project else None,
        "integration": by_id.get(fields.get("integration")),
        "system": fields.get("system") or "",
        "max_tokens": fields.get("max_tokens"),
        "prompt_caching": fields.get("prompt_caching") or ModelProfile.PromptCaching.EPHEMERAL,
        "provider_config": {namespace: {"contextWindow": window}} if window else {},
        "is_default": fields.get("is_default", False),
    }


def _preview(
    access: Access, form: ProfileForm, stored: ModelProfile | None, *, projects: list[Any], known: Known
) -> dict[str, Any] | None:
    """Describe what a dispatch of the profile in the form's current state would do, saved or not."""
    if form.is_bound:
        form.is_valid()  # Fills in what is valid so far.
        draft = ModelProfile(
            org=access.org,
            public_id="draft",
            **_values(form, projects=projects, integrations=list(known.integrations or ())),
        )
    elif stored is not None:
        draft = stored
    else:
        draft = ModelProfile(
            org=access.org,
            public_id="draft",
            provider=form.entry.provider,
            model_id=form.entry.model_id,
            auth_modes=form.entry.auth_modes[:1],
        )
    if not draft.auth_modes:
        return None
    try:
        return dry_run.previews(access, [draft], known=known)[draft.public_id]
    except RenseiError as refusal:
        return {"wouldRun": False, "code": refusal.code, "detail": refusal.detail, "trace": [], "quotes": []}
