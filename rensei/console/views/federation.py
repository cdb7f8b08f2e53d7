"""Settings → Integrations: connect a provider without a stored key, by an identity that the provider trusts."""

from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_http_methods

from integrations.keys import services
from integrations.keys.identity import identity_of
from integrations.models import Integration
from integrations.providers.base import Federation
from rensei.console.access import PageRequest, page
from rensei.console.forms.integrations import FederateForm, ReplaceFederationForm
from rensei.console.views.integrations import answer_connection, find, find_spec, to_list
from rensei.core.errors import RenseiError
from rensei.orgs.access import Access


@require_http_methods(["GET", "HEAD", "POST"])
@page
def connect(request: PageRequest, provider: str) -> HttpResponse:
    """Show what to enter at the provider, and accept the ids that it shows in return: test them, or save them."""
    request.access.require_manager()
    spec = find_spec(provider)
    if not spec.federation_audience:
        raise Http404
    form = FederateForm(request.POST or None)
    return answer_connection(
        request,
        form,
        spec,
        check=lambda: services.check_connection(
            request.access,
            provider=provider,
            federation=form.federation(),
            workspace_id=form.cleaned_data["workspace_id"],
        ),
        save=lambda: _save(request.access, provider, form),
        template="console/integration_federate.html",
        is_kept=True,
        more=lambda: {"identity": identity_of(request.access, provider=provider)},
    )


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


def _save(access: Access, provider: str, form: FederateForm) -> Integration:
    fields = form.cleaned_data
    return services.add_integration(
        access,
        provider=provider,
        federation=form.federation(),
        name=fields["name"],
        workspace_id=fields["workspace_id"],
        is_default=fields["is_default"] or None,
    )
