"""Pages of this room: the first account of a new server."""

from django.conf import settings
from django.contrib.auth import login
from django.contrib.auth.decorators import login_not_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods

from rensei.core.errors import NotFound, RenseiError
from rensei.core.secret import Secret
from rensei.orgs import setup
from rensei.orgs.authentication import client_address
from rensei.orgs.forms import SetupForm


@login_not_required
@sensitive_post_parameters()
@require_http_methods(["GET", "POST"])
def first_setup(request: HttpRequest) -> HttpResponse:
    """Make the first account. Absent as soon as there is one; shut without the code of the link."""
    if not setup.is_open():
        raise Http404
    code = request.POST.get("code") or request.GET.get("code", "")
    if not setup.is_right(code):
        return render(request, "orgs/setup.html", {"form": None}, status=403)
    form = SetupForm(request.POST or None, initial={"code": code})
    if form.is_valid():
        fields = form.cleaned_data
        try:
            user, _ = setup.finish(
                **{**fields, "password": Secret(fields["password"])}, address=client_address(request)
            )
        except NotFound as absent:
            raise Http404 from absent
        except RenseiError as refusal:
            form.show(refusal)
        else:
            login(request, user, backend="django.contrib.auth.backends.ModelBackend")
            return redirect(settings.LOGIN_REDIRECT_URL)
    return render(request, "orgs/setup.html", {"form": form}, status=400 if form.is_bound else 200)
