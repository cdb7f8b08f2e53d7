"""Settings → Members: the members of the organization, and its invitations."""

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from rensei.accounts import invitations
from rensei.accounts.invitations import Sent
from rensei.accounts.models import Invitation
from rensei.console.access import PageRequest, attempt, page, sensitive
from rensei.console.answers import confirm
from rensei.console.forms.members import InvitationForm
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError
from rensei.orgs import services
from rensei.orgs.models import Role


@require_http_methods(["GET", "HEAD", "POST"])
@page
@sensitive
def members(request: PageRequest) -> HttpResponse:
    """List the members and the invitations, and invite a person."""
    form = InvitationForm(request.POST if request.method == "POST" else None, access=request.access)
    sent = None
    if request.method == "POST" and form.is_valid():
        try:
            sent = invitations.invite(request.access, **form.cleaned_data)
        except RenseiError as refusal:
            form.refuse(refusal)
        else:
            form = InvitationForm(access=request.access)
    return _answer(request, form=form, sent=sent)


@require_POST
@page
@sensitive
def invitation_resend(request: PageRequest, invitation_id: str) -> HttpResponse:
    """Send a new link. If it cannot be mailed, only this answer shows it."""
    request.access.require_manager()
    sent = invitations.resend(request.access, _invitation(request, invitation_id))
    return _answer(request, form=InvitationForm(access=request.access), sent=sent)


@require_http_methods(["GET", "HEAD", "POST"])
@page
def invitation_revoke(request: PageRequest, invitation_id: str) -> HttpResponse:
    invitation = _invitation(request, invitation_id)
    if request.method == "POST":
        return attempt(
            request,
            lambda: invitations.revoke(request.access, invitation),
            done=f"The invitation to {invitation.email} was revoked.",
            back="members",
        )
    title, text = f"Revoke the invitation to {invitation.email}?", "Its link stops working immediately."
    return confirm(request, title=title, text=text, action="Revoke", section="Members", back="members")


@require_POST
@page
def member_role(request: PageRequest, member_id: str) -> HttpResponse:
    member = services.members(request.access).get_or_404(pk=member_id)
    role = request.POST.get("role", "")
    return attempt(
        request,
        lambda: services.change_role(request.access, member, role=role),
        done=f"{member.user.email} is {role} now.",
        back="members",
    )


@require_http_methods(["GET", "HEAD", "POST"])
@page
def member_remove(request: PageRequest, member_id: str) -> HttpResponse:
    member = services.members(request.access).get_or_404(pk=member_id)
    if request.method == "POST":
        answer = attempt(
            request,
            lambda: services.remove_member(request.access, member),
            done=f"{member.user.email} was removed.",
            back="members",
        )
        left = member.user_id == request.access.user.pk and member.pk is None
        return redirect("console:home") if left else answer
    text = "Their tokens and machines stop working immediately. Their runs are kept."
    title = f"Remove {member.user.get_full_name()}?"
    return confirm(request, title=title, text=text, action="Remove", section="Members", back="members")


def _answer(request: PageRequest, *, form: InvitationForm, sent: Sent | None) -> HttpResponse:
    if sent is not None and not sent.invitation.mailed and sent.link is None:
        messages.error(
            request,
            f"The mail to {sent.invitation.email} could not be sent. Send it again from the list when the "
            "server's mail works: your operator sees in the log what is wrong.",
        )
        return redirect("console:members", request.access.org.slug)
    if sent is not None and sent.link is None:
        # Without a secret, redirect so that a reload is harmless; a page with a link to copy must not be repeated.
        messages.success(request, f"{sent.invitation.email} was sent a link by mail. It expires in 7 days.")
        return redirect("console:members", request.access.org.slug)
    stored = services.members(request.access).order_by("created_at")
    context = {
        "members": stored,
        "invitations": invitations.open_invitations(request.access).order_by("-created_at"),
        "now": database_now(),
        "mails": invitations.are_mailed(),
        "form": form,
        "roles": Role.choices,
        "fresh": {"email": sent.invitation.email, "link": sent.link.reveal()} if sent and sent.link else None,
    }
    return render(request, "console/members.html", context, status=form.status)


def _invitation(request: PageRequest, invitation_id: str) -> Invitation:
    found: Invitation = invitations.open_invitations(request.access).get_or_404(pk=invitation_id)
    return found
