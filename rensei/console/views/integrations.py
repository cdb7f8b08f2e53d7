"""Settings → Integrations: connect a provider, test it, change it, remove it."""

from collections.abc import Callable, Sequence
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.http import urlencode
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from catalog.providers import PROVIDERS, ProviderSpec
from integrations import capacity
from integrations.keys import services
from integrations.keys.services import visible_integrations
from integrations.models import Integration
from integrations.providers.base import Verdict
from integrations.vault import openings_kept
from profiles.models import ModelProfile
from profiles.services import visible_profiles
from rensei.console.access import PageRequest, attempt, page, say_refusal, sensitive
from rensei.console.answers import confirm
from rensei.console.forms.base import RefusableForm
from rensei.console.forms.integrations import ConnectForm, EditForm, RotateForm
from rensei.core.errors import NotFound, RenseiError
from rensei.core.secret import Secret
from rensei.dispatch.admission import key_use, test_message
from rensei.dispatch.admission.key_use import KeyUse
from rensei.dispatch.models import Run
from rensei.dispatch.queries import visible_runs
from rensei.orgs.access import Access
from rensei.tokens.throttling import spend_sensitive


@require_safe
@page
def integrations(request: PageRequest) -> HttpResponse:
    """Show every integration with the last result from its provider."""
    found = list(_own(request.access).order_by("-is_default", "name"))
    openings_kept.add_to(found, now=timezone.now())
    context = {
        "integrations": found,
        "uses": key_use.of_keys(request.access, found, list(visible_profiles(request.access)), are_all=True),
        "specs": capacity.specs(),
        "fresh": request.GET.get("new"),
        "sent": _sent(request),
    }
    return render(request, "console/integrations.html", context)


@require_safe
@page
def add(request: PageRequest) -> HttpResponse:
    """Show the providers to choose from."""
    request.access.require_manager()
    wanted = request.GET.get("q", "").strip().lower()
    offered = capacity.specs().values()
    specs = [spec for spec in offered if wanted in f"{spec.display_name} {spec.id} {spec.category}".lower()]
    return render(request, "console/integration_add.html", {"specs": specs, "wanted": wanted})


@require_http_methods(["GET", "HEAD", "POST"])
@page
def connect(request: PageRequest, provider: str) -> HttpResponse:
    """Accept a key: test it, or save it. The key is passed only to the service."""
    request.access.require_manager()
    spec = find_spec(provider)
    form = ConnectForm(request.POST or None, spec=spec)
    return answer_connection(
        request,
        form,
        spec,
        check=lambda: _test(request, provider, form.cleaned_data),
        save=lambda: _save(request.access, provider, form.cleaned_data),
        template="console/integration_connect.html",
    )


def answer_connection(
    request: PageRequest,
    form: RefusableForm,
    spec: ProviderSpec,
    *,
    check: Callable[[], Verdict],
    save: Callable[[], Integration],
    template: str,
    is_kept: bool = False,
    more: Callable[[], dict[str, Any]] = dict,
) -> HttpResponse:
    """
    Show a form that connects a provider, or test or save what was entered.

    :param is_kept: whether the page keeps what was entered, which it does if no secret is among it
    :param more: returns what the template needs besides, and is called only if the page is shown
    """
    verdict: Verdict | None = None
    if request.method == "POST":
        testing = request.POST.get("action") == "test"
        if form.is_valid():
            try:
                if testing:
                    verdict = check()
                else:
                    integration = save()
                    messages.success(request, f"{integration.name} is connected.")
                    if request.POST.get("action") == "save-and-send" and spec.auth_modes:
                        return save_and_send(request, integration)
                    return to_list(request, new=integration.id)
            except NotFound:
                raise
            except RenseiError as refusal:
                form.refuse(refusal)
        if testing and request.htmx:
            tested = {"form": form, "verdict": verdict, "spec": spec, "is_kept": is_kept}
            return render(request, "console/_verdict.html", tested)
    unsaved = Integration(org=request.access.org, provider=spec.id)
    (use,) = key_use.of_keys(request.access, [unsaved], []).values()
    context = {"form": form, "spec": spec, "verdict": verdict, "use": use, "is_kept": is_kept, **more()}
    return render(request, template, context, status=form.status)


@require_POST
@page
def test(request: PageRequest, integration_id: str) -> HttpResponse:
    """Test a stored key at the provider, and show its card again."""
    integration = find(request.access, integration_id)
    refusal: RenseiError | None = None
    try:
        verdict = services.check_integration(request.access, integration)
    except NotFound:
        raise
    except RenseiError as caught:
        refusal = caught
    if request.htmx:
        openings_kept.add_to([integration], now=timezone.now())
        uses = _uses(request.access, [integration])
        context = {
            "integration": integration,
            "uses": uses,
            "specs": capacity.specs(),
            "refusal": refusal,
            "tested": True,
        }
        return render(request, "console/_integration.html", context)
    if refusal is not None:
        say_refusal(request, refusal)
    elif verdict.ok:
        messages.success(request, f"{integration.name}: {verdict.message}")
    else:
        messages.error(request, f"{integration.name}: {verdict.message} {verdict.fix}")
    return to_list(request)


@require_POST
@page
@sensitive
def message(request: PageRequest, integration_id: str) -> HttpResponse:
    """Send a short real message with a stored key, and show in its card what came of it. It is a run like any other."""
    integration = find(request.access, integration_id)
    if integration.provider not in PROVIDERS:
        # No model is called with it.
        raise NotFound
    run = test_message.send(request.access, integration)
    return to_list(request, sent=run.id)


@require_http_methods(["GET", "HEAD", "POST"])
@page
def edit(request: PageRequest, integration_id: str) -> HttpResponse:
    """Rename an integration, or change the address to which its key is sent."""
    request.access.require_manager()
    integration = find(request.access, integration_id)
    names = ("name", "base_url", "workspace_id", "remind_after_days")
    shown = {name: getattr(integration, name) for name in names}
    spec = capacity.specs()[integration.provider]
    form = EditForm(request.POST or None, initial=shown, spec=spec)
    if request.method == "POST" and form.is_valid():
        fields = form.cleaned_data
        # An age that is set again would remind again.
        is_same = fields["remind_after_days"] == shown["remind_after_days"]
        try:
            services.update_integration(
                request.access,
                integration,
                name=fields["name"],
                base_url=fields["base_url"],
                workspace_id=fields["workspace_id"],
                api_key=Secret(fields["api_key"]) if fields["api_key"] else None,
                remind_after_days=services.UNCHANGED if is_same else fields["remind_after_days"],
            )
        except RenseiError as refusal:
            form.refuse(refusal)
        else:
            messages.success(request, f"{integration.name} was saved.")
            return to_list(request)
    context = {
        "form": form,
        "integration": integration,
        "title": shown["name"],
        "spec": spec,
    }
    return render(request, "console/integration_edit.html", context, status=form.status)


@require_http_methods(["GET", "HEAD", "POST"])
@page
def rotate(request: PageRequest, integration_id: str) -> HttpResponse:
    """Replace a key. The new key is tested before the old one is removed."""
    request.access.require_manager()
    integration = find(request.access, integration_id)
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
            return to_list(request)
    context = {"form": form, "integration": integration, "spec": capacity.specs()[integration.provider]}
    return render(request, "console/integration_rotate.html", context, status=form.status)


@require_POST
@page
def make_default(request: PageRequest, integration_id: str) -> HttpResponse:
    integration = find(request.access, integration_id)
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
    own = list(_own(request.access))
    integration = next((found for found in own if found.pk == integration_id), None)
    if integration is None:
        raise NotFound
    others = [found for found in own if found.provider == integration.provider and found != integration]
    profiles = list(visible_profiles(request.access).filter(provider=integration.provider))
    relying = _uses(request.access, [integration], profiles)[integration.pk].profiles
    typed = request.POST.get("typed")
    if request.method == "POST" and (not relying or typed == integration.name):
        return attempt(
            request,
            lambda: services.remove_integration(request.access, integration),
            done=f"{integration.name} was removed. Its key is gone.",
            back="integrations",
        )
    naming = [profile.name for profile in profiles if profile.integration_id == integration.pk]
    names = [profile.name for profile in relying]
    return _ask_to_remove(request, integration, others, naming=naming, relying=names)


def _ask_to_remove(
    request: PageRequest,
    integration: Integration,
    others: Sequence[Integration],
    *,
    naming: Sequence[str],
    relying: Sequence[str],
) -> HttpResponse:
    """Show the effect of a removal: profiles that name the key prevent it, those that use it get its successor."""
    if naming:
        return confirm(
            request,
            title=f"{integration.name} is in use",
            text="These profiles name it. Give them another integration, or delete them, before you remove it:",
            action="",
            items=naming,
            section="Integrations",
            back="integrations",
        )
    text = "The key is deleted from the vault and cannot be restored."
    if relying:
        text += f" {_after_removal(others)}"
    return confirm(
        request,
        title=f"Remove {integration.name}?",
        text=text,
        action="Remove",
        items=relying,
        section="Integrations",
        back="integrations",
        to_type=integration.name if relying else "",
    )


def _after_removal(others: Sequence[Integration]) -> str:
    """Say which key signs for the profiles of a removed default, and whether it works."""
    if not others:
        return "No other key is connected, so BYOK runs of these profiles will be refused:"
    successor = services.successor_of(others)
    health = {
        Integration.Status.OK: "which worked in its last test",
        Integration.Status.FAILING: "which failed its last test, so their BYOK runs will fail until it is fixed",
        Integration.Status.UNTESTED: "which was never tested",
    }[Integration.Status(successor.status)]
    return f"BYOK runs of these profiles will be signed by {successor.name} ({successor.key_hint}), {health}:"


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
    return visible_integrations(access).defer("sealed_key")


def find(access: Access, integration_id: str) -> Integration:
    found: Integration = visible_integrations(access).get_or_404(pk=integration_id)
    return found


def find_spec(provider: str) -> ProviderSpec:
    spec = capacity.specs().get(provider)
    if spec is None:
        raise Http404
    return spec


def _uses(
    access: Access, found: Sequence[Integration], profiles: Sequence[ModelProfile] | None = None
) -> dict[str, KeyUse]:
    return key_use.of_keys(access, found, list(visible_profiles(access)) if profiles is None else profiles)


def _sent(request: PageRequest) -> Run | None:
    """The test message that was just sent, by which key it was signed and how far it is."""
    run_id = request.GET.get("sent", "").replace("\0", "")
    runs = visible_runs(request.access).listed()
    return runs.filter(pk=run_id).first() if run_id else None


def save_and_send(request: PageRequest, integration: Integration) -> HttpResponse:
    """Send a test message with a key that was just saved. A refusal does not undo the saving."""
    try:
        spend_sensitive(request.access)
        run = test_message.send(request.access, integration)
    except RenseiError as refusal:
        say_refusal(request, refusal)
        return to_list(request, new=integration.id)
    return to_list(request, sent=run.id)


def to_list(request: PageRequest, **shown: str) -> HttpResponse:
    """Go to the list, which shows what was just saved (`new`) or sent (`sent`)."""
    answer = redirect("console:integrations", request.access.org.slug)
    if shown:
        answer["Location"] += f"?{urlencode(shown)}"
    return answer
