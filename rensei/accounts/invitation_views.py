"""Pages for invited people."""

from typing import Any

from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from django.views.decorators.http import require_http_methods, require_safe

from rensei.accounts import invitations, known_browsers
from rensei.accounts.forms import NewAccountForm
from rensei.accounts.invitations import InvitationInvalid
from rensei.accounts.models import Invitation
from rensei.accounts.sessions import keep_for_a_while
from rensei.accounts.throttling import limit_sign_in
from rensei.core.errors import RenseiError
from rensei.core.proxies import client_address
from rensei.core.secret import Secret, token_digest
from rensei.orgs.models import Membership, User

SESSION_KEY = "invitation"


@login_not_required
@require_safe
@limit_sign_in("GET")
@sensitive_variables("secret")
def open_link(request: HttpRequest, secret: str) -> HttpResponse:
    """
    Remove the link's secret from the address, so that neither history nor referrers contain it.

    The session stores its hash while the person signs in. There is no look-up yet, so all links give the same answer.
    """
    request.session[SESSION_KEY] = token_digest(secret)
    keep_for_a_while(request)
    return redirect("invitation")


@login_not_required
@sensitive_post_parameters()
@require_http_methods(["GET", "HEAD", "POST"])
@limit_sign_in("POST")
def invitation(request: HttpRequest) -> HttpResponse:
    """Show who invites whom, and let the invited person accept."""
    digest = request.session.get(SESSION_KEY, "")
    try:
        found = invitations.find(digest=digest)
    except InvitationInvalid as refusal:
        return _refused(request, refusal, digest=digest)
    if isinstance(request.user, User):
        return _for_user(request, found, request.user)
    if User.objects.filter(email=found.email).exists():
        # They sign in first, with all the steps that their account requires, and come back.
        return render(request, "orgs/invitation.html", {"invitation": found, "known": True})
    return _for_newcomer(request, found)


def _for_user(request: HttpRequest, found: Invitation, user: User) -> HttpResponse:
    refusal = None
    if request.method == "POST":
        try:
            invitations.accept(found, user=user, address=client_address(request))
        except RenseiError as refused:
            refusal = refused
        else:
            return _welcome(request, found)
    shown: dict[str, Any] = {
        "invitation": found,
        "is_other_person": user.email != found.email,
        "member": Membership.objects.for_org(found.org).filter(user=user).exists(),
        "elsewhere": Membership.objects.filter(user=user).exclude(org=found.org).select_related("org"),
        "refusal": refusal,
    }
    return render(request, "orgs/invitation.html", shown, status=refusal.status if refusal else 200)


def _for_newcomer(request: HttpRequest, found: Invitation) -> HttpResponse:
    form = NewAccountForm(request.POST if request.method == "POST" else None)
    if form.is_valid():
        fields = form.cleaned_data
        try:
            user = invitations.accept_with_new_account(
                found, name=fields["name"], password=Secret(fields["password"]), address=client_address(request)
            )
        except RenseiError as refusal:
            form.show(refusal)
        else:
            # A new account has no second factor yet, so no step is skipped.
            login(request, user, backend="django.contrib.auth.backends.ModelBackend")
            answer = _welcome(request, found)
            known_browsers.remember(request, answer, email=user.email)
            return answer
    context = {"invitation": found, "form": form}
    return render(request, "orgs/invitation.html", context, status=400 if form.is_bound else 200)


def _welcome(request: HttpRequest, found: Invitation) -> HttpResponse:
    request.session.pop(SESSION_KEY, None)
    role = found.get_role_display().lower()
    article = "a" if role == "member" else "an"
    messages.success(request, f"Welcome to {found.org.name}. You joined as {article} {role}.")
    return redirect(f"/o/{found.org.slug}/")


def _refused(request: HttpRequest, refusal: InvitationInvalid, *, digest: str) -> HttpResponse:
    entered = invitations.accepted_org(digest, user=request.user) if isinstance(request.user, User) else None
    if entered is not None:
        return redirect(f"/o/{entered.slug}/")
    return render(request, "orgs/invitation.html", {"refusal": refusal}, status=refusal.status)
