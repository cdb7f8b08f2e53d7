"""Pages for the first account of a new server, and to approve machines."""

from typing import Any

from allauth.account.views import login as _sign_in
from django.conf import settings
from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.decorators import login_not_required
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods

from rensei.accounts import known_browsers, setup
from rensei.accounts.forms import DeviceAnswerForm, DeviceCodeForm, SetupForm
from rensei.accounts.throttling import limit_sign_in
from rensei.core.errors import NotFound, RenseiError
from rensei.core.proxies import client_address
from rensei.core.secret import Secret
from rensei.orgs.access import for_member
from rensei.orgs.models import User
from rensei.tokens import device_codes
from rensei.tokens.models import DeviceCode


@login_not_required
@limit_sign_in("POST")
def sign_in(request: HttpRequest) -> HttpResponseBase:
    """Sign in, at most so many tries a minute from one address."""
    page: HttpResponseBase = _sign_in(request)
    return page


@login_not_required
@sensitive_post_parameters()
@require_http_methods(["GET", "POST"])
def first_setup(request: HttpRequest) -> HttpResponse:
    """Create the first account. Not found once there is one; closed without the code of the link."""
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
            answer = redirect(settings.LOGIN_REDIRECT_URL)
            known_browsers.remember(request, answer, email=user.email)
            return answer
    return render(request, "orgs/setup.html", {"form": form}, status=400 if form.is_bound else 200)


@require_http_methods(["GET", "POST"])
def device(request: HttpRequest) -> HttpResponse:
    """Show the machine with this code, and approve or deny it."""
    asked = DeviceCodeForm(request.POST if request.method == "POST" else request.GET or None)
    if not asked.is_valid():
        return _device_page(request, asked=asked, status=400 if asked.is_bound else 200)
    try:
        waiting = device_codes.find_waiting(_person(request), user_code=asked.cleaned_data["code"])
        if request.method == "GET":
            return _device_page(request, asked=asked, waiting=waiting)
        return _answer_device(request, asked, waiting)
    except NotFound:
        asked.add_error("code", "No machine waits behind this code. It may have expired: look at what it shows now.")
    except RenseiError as refusal:
        asked.add_error(None, refusal.detail)
        return _device_page(request, asked=asked, status=refusal.status)
    return _device_page(request, asked=asked, status=400)


def _answer_device(request: HttpRequest, asked: DeviceCodeForm, waiting: DeviceCode) -> HttpResponse:
    choices = device_codes.memberships_to_choose(_person(request))
    answer = DeviceAnswerForm(request.POST, memberships=choices)
    if "deny" in request.POST:
        device_codes.deny(waiting)
        messages.info(request, f"{waiting.host_name} was not let in.")
        return redirect("device")
    if not answer.is_valid():
        return _device_page(request, asked=asked, waiting=waiting, answer=answer, status=400)
    access = for_member(
        user=_person(request), slug=answer.cleaned_data["organization"], address=client_address(request)
    )
    if access is None:
        raise NotFound
    device_codes.approve(access, waiting)
    messages.success(request, f"{waiting.host_name} is connected. Return to its terminal.")
    return redirect("device")


def _device_page(
    request: HttpRequest,
    *,
    asked: DeviceCodeForm,
    waiting: DeviceCode | None = None,
    answer: DeviceAnswerForm | None = None,
    status: int = 200,
) -> HttpResponse:
    if waiting is not None and answer is None:
        answer = DeviceAnswerForm(memberships=device_codes.memberships_to_choose(_person(request)))
    shown: dict[str, Any] = {"form": asked, "waiting": waiting, "answer": answer}
    return render(request, "orgs/device.html", shown, status=status)


def _person(request: HttpRequest) -> User:
    person = request.user
    assert isinstance(person, User), "Pages are for people who are signed in"
    return person
