"""Settings → Integrations: connect a provider without a stored key, by an identity that the provider trusts."""

from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_http_methods

from integrations.keys import services
from integrations.keys.identity import identity_of
from integrations.models import Integration
from integrations.providers.base import Federation, Verdict
from rensei.console.access import PageRequest, page
from rensei.console.forms.integrations import FederateForm, ReplaceFederationForm
from rensei.console.views.integrations import find, find_spec, save_and_send, to_list
from rensei.core.errors import NotFound, RenseiError
from rensei.dispatch.admission import key_use


@require_http_methods(["GET", "HEAD", "POST"])
@page
def connect(request: PageRequest, provider: str) -> HttpResponse:
    """Show what to enter at the provider, and accept the ids that it shows in return: test them, or save them."""
    request.access.require_manager()
    spec = find_spec(provider)
    if not spec.federation_audience:
        raise Http404
    form = FederateForm(request.POST or None)
    verdict: Verdict | None = None
    if request.method == "POST":
        testing = request.POST.get("action") == "test"
        if form.is_valid():
            try:
                if testing:
                    verdict = services.check_connection(
                        request.access,
                        provider=provider,
                        federation=form.federation(),
                        workspace_id=form.cleaned_data["workspace_id"],
                    )
                else:
                    integration = _save(request, provider, form)
                    if request.POST.get("action") == "save-and-send":
                        return save_and_send(request, integration)
                    return to_list(request, new=integration.id)
            except NotFound:
                raise
            except RenseiError as refusal:
                form.refuse(refusal)
        if testing and request.htmx:
            return render(
                request, "console/_verdict.html", {"form": form, "verdict": verdict, "spec": spec, "is_kept": True}
            )
    unsaved = Integration(org=request.access.org, provider=provider)
    (use,) = key_use.of_keys(request.access, [unsaved], []).values()
    identity = identity_of(request.access, provider=provider)
    context: dict[str, object] = {"form": form, "spec": spec, "verdict": verdict, "is_kept": True}
    context |= {"use": use, "identity": identity}
    return render(request, "console/integration_federate.html", context, status=form.status)


@require_http_methods(["GET", "HEAD", "POST"])
@page
def replace(request: PageRequest, integration_id: str) -> HttpResponse:
    """Replace the ids of a federation, or a key by a federation. The new one is tested first."""
    request.access.require_manager()
    integration = find(request.access, integration_id)
    spec = find_spec(integration.provider)
    if not spec.federation_audience:
        raise Http404
    stored = Federation.of_wire(integration.federation) if integration.federation else None
    form = ReplaceFederationForm(request.POST or None, initial=vars(stored) if stored else {})
    if request.method == "POST" and form.is_valid():
        try:
            services.rotate_integration(
                request.access, integration, federation=form.federation(), force=form.cleaned_data["force"]
            )
        except RenseiError as refusal:
            form.refuse(refusal)
        else:
            messages.success(request, f"{integration.name} needs no stored key now.")
            return to_list(request)
    identity = identity_of(request.access, provider=integration.provider)
    context = {"form": form, "integration": integration, "spec": spec, "identity": identity}
    return render(request, "console/integration_identity.html", context, status=form.status)


def _save(request: PageRequest, provider: str, form: FederateForm) -> Integration:
    fields = form.cleaned_data
    integration = services.add_integration(
        request.access,
        provider=provider,
        federation=form.federation(),
        name=fields["name"],
        workspace_id=fields["workspace_id"],
        is_default=fields["is_default"] or None,
    )
    messages.success(request, f"{integration.name} is connected.")
    return integration
