"""The pages of a person's own account: password, two-step sign-in and sessions."""

from allauth.mfa.app_settings import RECOVERY_CODE_COUNT
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST, require_safe

from rensei.accounts import people, second_factor, sessions
from rensei.accounts.forms import DetailsForm
from rensei.core.errors import NotFound, RenseiError
from rensei.core.proxies import client_address
from rensei.orgs.models import User
from rensei.orgs.services import orgs_of


@require_safe
def account(request: HttpRequest) -> HttpResponse:
    """Show how the person signs in, and their sessions."""
    person = _person(request)
    factors = {factor.type: factor for factor in Authenticator.objects.filter(user=person)}
    totp, codes = factors.get(Authenticator.Type.TOTP), factors.get(Authenticator.Type.RECOVERY_CODES)
    context = {
        "form": DetailsForm(initial={"name": person.name, "is_mailed_decisions": person.is_mailed_decisions}),
        "person": person,
        "home": orgs_of(person).filter(slug=request.GET.get("org", "")).first(),
        "totp": totp,
        # Each used code is a bit of the mask, so they are counted without decrypting the secret.
        "codes_left": RECOVERY_CODE_COUNT - int(codes.data["used_mask"]).bit_count() if codes else 0,
        "required": second_factor.is_required(person),
        "linked": SocialAccount.objects.filter(user=person),
        "sessions": sessions.signed_in(request, person),
    }
    return render(request, "account/account.html", context)


@require_POST
def save_details(request: HttpRequest) -> HttpResponse:
    """Save the person's name, and which mails they get."""
    form = DetailsForm(request.POST)
    if form.is_valid():
        try:
            people.update_person(_person(request), **form.cleaned_data, address=client_address(request))
        except RenseiError as refusal:
            messages.error(request, refusal.detail)
        else:
            messages.success(request, "Your account was saved.")
    else:
        messages.error(request, " ".join(str(error) for errors in form.errors.values() for error in errors))
    return redirect("account")


@require_POST
def end(request: HttpRequest, session_id: int) -> HttpResponse:
    """Sign out in one other browser."""
    try:
        sessions.end_session(request, _person(request), session_id=session_id)
    except NotFound as absent:
        raise Http404 from absent
    messages.success(request, "Signed out there.")
    return redirect("account")


@require_POST
def end_others(request: HttpRequest) -> HttpResponse:
    """Sign out in all other browsers."""
    count = sessions.end_other_sessions(request, _person(request))
    said = {0: "You are signed in nowhere else.", 1: "Signed out in one other place."}
    messages.success(request, said.get(count, f"Signed out in {count} other places."))
    return redirect("account")


def _person(request: HttpRequest) -> User:
    person = request.user
    assert isinstance(person, User), "Pages are for people who are signed in"
    return person
