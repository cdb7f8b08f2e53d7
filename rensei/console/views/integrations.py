"""Settings → Integrations: connect a provider, test it, change it, remove it."""

from collections import Counter
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from catalog.providers import PROVIDERS, ProviderSpec
from integrations.keys import services
from integrations.models import Integration
from integrations.providers.base import Verdict
from profiles.models import ModelProfile
from rensei.console.access import PageRequest, attempt, page, say_refusal, sensitive
from rensei.console.answers import confirm
from rensei.console.forms.integrations import ConnectForm, EditForm, RotateForm
from rensei.core.errors import NotFound, RenseiError
from rensei.core.secret import Secret
from rensei.dispatch.admission import test_message
from rensei.orgs.access import Access


@require_safe
@page
def integrations(request: PageRequest) -> HttpResponse:
    """Show every integration with the last result from its provider."""
    found = list(_own(request.access).order_by("-is_default", "name"))
    users = _users(request.access, found)
    context = {"integrations": found, "users": users, "specs": PROVIDERS, "fresh": request.GET.get("new")}
    return render(request, "console/integrations.html", context)


@require_safe
@page
def add(request: PageRequest) -> HttpResponse:
    """Show the providers to choose from."""
    request.access.require_manager()
    wanted = request.GET.get("q", "").strip().lower()
    specs = [spec for spec in PROVIDERS.values() if wanted in f"{spec.display_name} {spec.id} {spec.category}".lower()]
    return render(request, "console/integration_add.html", {"specs": specs, "wanted": wanted})


@require_http_methods(["GET", "HEAD", "POST"])
@page
def connect(request: PageRequest, provider: str) -> HttpResponse:
    """Accept a key: test it, or save it. The key is passed only to the service."""
    request.access.require_manager()
    spec = _spec(provider)
    form = ConnectForm(request.POST or None)
    verdict: Verdict | None = None
    if request.method == "POST":
        testing = request.POST.get("action") == "test"
        if form.is_valid():
            try:
                if testing:
                    verdict = _test(request, provider, form.cleaned_data)
                else:
                    integration = _save(request.access, provider, form.cleaned_data)
                    messages.success(request, f"{integration.name} is connected.")
                    return _to_list(request, fresh=integration.id)
            except NotFound:
                raise
            except RenseiError as refusal:
                form.refuse(refusal)
        if testing and request.htmx:
            return render(request, "console/_verdict.html", {"form": form, "verdict": verdict, "spec": spec})
    context = {"form": form, "spec": spec, "verdict": verdict}
    return render(request, "console/integration_connect.html", context, status=form.status)


@require_POST
@page
def test(request: PageRequest, integration_id: str) -> HttpResponse:
    """Test a stored key at the provider, and show its card again."""
    integration = _find(request.access, integration_id)
    refusal: RenseiError | None = None
    try:
        verdict = services.check_integration(request.access, integration)
    except NotFound:
        raise
    except RenseiError as caught:
        refusal = caught
    if request.htmx:
        users = _users(request.access, [integration])
        context = {"integration": integration, "users": users, "specs": PROVIDERS, "refusal": refusal}
        return render(request, "console/_integration.html", context)
    if refusal is not None:
        say_refusal(request, refusal)
    elif verdict.ok:
        messages.success(request, f"{integration.name}: {verdict.message}")
    else:
        messages.error(request, f"{integration.name}: {verdict.message} {verdict.fix}")
    return _to_list(request)


@require_POST
@page
@sensitive
def message(request: PageRequest, integration_id: str) -> HttpResponse:
    """Send a short real message with a stored key. It is a run like any other, in the ledger."""
    run = test_message.send(request.access, _find(request.access, integration_id))
    return redirect("console:run", request.access.org.slug, run.id)


@require_http_methods(["GET", "HEAD", "POST"])
@page
def edit(request: PageRequest, integration_id: str) -> HttpResponse:
    """Rename an integration, or change the address to which its key is sent."""
    request.access.require_manager()
    integration = _find(request.access, integration_id)
    shown = {"name": integration.name, "base_url": integration.base_url, "workspace_id": integration.workspace_id}
    form = EditForm(request.POST or None, initial=shown)
    if request.method == "POST" and form.is_valid():
        fields = form.cleaned_data
        try:
            services.update_integration(
                request.access,
                integration,
                name=fields["name"],
                base_url=fields["base_url"],
                workspace_id=fields["workspace_id"],
                api_key=Secret(fields["api_key"]) if fields["api_key"] else None,
            )
        except RenseiError as refusal:
            form.refuse(refusal)
        else:
            messages.success(request, f"{integration.name} was saved.")
            return _to_list(request)
    context = {
        "form": form,
        "integration": integration,
        "title": shown["name"],
        "spec": PROVIDERS[integration.provider],
    }
    return render(request, "console/integration_edit.html", context, status=form.status)


@require_http_methods(["GET", "HEAD", "POST"])
@page
def rotate(request: PageRequest, integration_id: str) -> HttpResponse:
    """Replace a key. The new key is tested before the old one is removed."""
    request.access.require_manager()
    integration = _find(request.access, integration_id)
    form = RotateForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            services.rotate_integration(
                request.access,
                integration,
                api_key=Secret(form.cleaned_data["api_key"]),
                force=form.cleaned_data["force"],
            )
        except RenseiError as refusal:
            form.refuse(refusal)
        else:
            messages.success(request, f"{integration.name} uses the new key.")
            return _to_list(request)
    context = {"form": form, "integration": integration, "spec": PROVIDERS[integration.provider]}
    return render(request, "console/integration_rotate.html", context, status=form.status)


@require_POST
@page
def make_default(request: PageRequest, integration_id: str) -> HttpResponse:
    integration = _find(request.access, integration_id)
    return attempt(
        request,
        lambda: services.update_integration(request.access, integration, is_default=True),
        done=f"{integration.name} is the default now.",
        back="integrations",
    )


@require_http_methods(["GET", "HEAD", "POST"])
@page
def remove(request: PageRequest, integration_id: str) -> HttpResponse:
    """Show a confirmation that lists what depends on the key; then remove it."""
    request.access.require_manager()
    integration = _find(request.access, integration_id)
    if request.method == "POST":
        return attempt(
            request,
            lambda: services.remove_integration(request.access, integration),
            done=f"{integration.name} was removed. Its key is gone.",
            back="integrations",
        )
    return _ask_to_remove(request, integration)


def _ask_to_remove(request: PageRequest, integration: Integration) -> HttpResponse:
    """Show the effect of a removal: profiles that name the key prevent it, others lose their default."""
    org = request.access.org
    profiles = ModelProfile.objects.for_org(org).filter(provider=integration.provider)
    naming = [profile.name for profile in profiles if profile.integration_id == integration.pk]
    relying = [profile.name for profile in profiles if profile.integration_id is None and integration.is_default]
    others = Integration.objects.for_org(org).filter(provider=integration.provider).exclude(pk=integration.pk)
    if naming:
        title, action, items = f"{integration.name} is in use", "", naming
        text = "These profiles name it. Give them another integration, or delete them, before you remove it:"
    else:
        title, action, items = f"Remove {integration.name}?", "Remove", relying
        text = "The key is deleted from the vault and cannot be brought back."
        if relying and others.exists():
            text += " These profiles use it as the default, and will use the oldest other one:"
        elif relying:
            text += " These profiles use it as the default, and their BYOK runs will be refused:"
    return confirm(
        request, title=title, text=text, action=action, items=items, section="Integrations", back="integrations"
    )


def _test(request: PageRequest, provider: str, fields: dict[str, Any]) -> Verdict:
    return services.check_connection(
        request.access,
        provider=provider,
        api_key=Secret(fields["api_key"]),
        base_url=fields["base_url"],
        workspace_id=fields["workspace_id"],
    )


def _save(access: Access, provider: str, fields: dict[str, Any]) -> Integration:
    return services.add_integration(
        access,
        provider=provider,
        api_key=Secret(fields["api_key"]),
        name=fields["name"],
        base_url=fields["base_url"],
        workspace_id=fields["workspace_id"],
        is_default=fields["is_default"] or None,
    )


def _own(access: Access) -> Any:
    # Pages never need the sealed key, so they do not load it.
    return Integration.objects.for_org(access.org).defer("sealed_key")


def _find(access: Access, integration_id: str) -> Integration:
    found: Integration = Integration.objects.for_org(access.org).get_or_404(pk=integration_id)
    return found


def _spec(provider: str) -> ProviderSpec:
    if provider not in PROVIDERS:
        raise Http404
    return PROVIDERS[provider]


def _users(access: Access, found: list[Integration]) -> dict[str, int]:
    """Count the profiles of each integration; those that name none use their provider's default."""
    rows = ModelProfile.objects.for_org(access.org).values_list("integration_id", "provider")
    users = Counter(named or f"default of {provider}" for named, provider in rows)
    return {
        integration.id: users[integration.id]
        + (users[f"default of {integration.provider}"] if integration.is_default else 0)
        for integration in found
    }


def _to_list(request: PageRequest, *, fresh: str = "") -> HttpResponse:
    answer = redirect("console:integrations", request.access.org.slug)
    if fresh:
        answer["Location"] += f"?new={fresh}"
    return answer
