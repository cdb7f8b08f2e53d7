"""The request for metered to the operators."""

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from billing.limits import metered_requests
from rensei.console.access import PageRequest, page
from rensei.console.forms.metered import MeteredRequestForm
from rensei.core.errors import RenseiError


@require_http_methods(["GET", "HEAD", "POST"])
@page
def request_metered(request: PageRequest) -> HttpResponse:
    """Explain metered, show the state of the request, and let an owner or admin make it."""
    form = MeteredRequestForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            metered_requests.request_metered(request.access, purpose=form.cleaned_data["purpose"])
        except RenseiError as refusal:
            form.refuse(refusal)
        else:
            messages.success(request, "Request sent. You will see the decision here.")
            return redirect("console:metered", request.access.org.slug)
    if request.htmx:
        return render(request, "console/_metered_form.html", {"form": form})
    entitlement = metered_requests.entitlement_of(request.access.org)
    return render(request, "console/metered.html", {"form": form, "entitlement": entitlement}, status=form.status)
