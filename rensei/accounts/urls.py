"""The addresses for people: pages to sign in and to join, and under /api/v1/ members and invitations."""

from allauth.account import urls as allauth
from allauth.socialaccount import views as social
from django.urls import include, path
from django.views.generic import RedirectView

from rensei.accounts import account_views, invitation_views, invitations_api, members_api, single_sign_on, views

# People cannot change their own address: members are added by it, and the new one would be unverified.
CLOSED = {
    "account_confirm_email",
    "account_confirm_login_code",
    "account_email",
    "account_email_verification_sent",
}
# The library's sign-in too, behind a rate limit that says when to retry.
OURS = {"account_login"}
account_patterns = [
    path("login/", views.sign_in, name="account_login"),
    *(pattern for pattern in allauth.urlpatterns if pattern.name not in CLOSED | OURS),
    # The library's own overview is a part of the account's page.
    path("2fa/", RedirectView.as_view(pattern_name="account"), name="mfa_index"),
    path("2fa/", include("allauth.mfa.urls")),
    path("oidc/<slug:provider_id>/login/", single_sign_on.begin, name="openid_connect_login"),
    path("oidc/<slug:provider_id>/login/callback/", single_sign_on.complete, name="openid_connect_callback"),
    path("oidc/cancelled/", social.login_cancelled, name="socialaccount_login_cancelled"),
]

page_patterns = [
    path("setup", views.first_setup, name="setup"),
    path("device", views.device, name="device"),
    path("account", account_views.account, name="account"),
    path("account/details", account_views.save_details, name="account-details"),
    path("account/sessions/end", account_views.end_others, name="account-end-other-sessions"),
    path("account/sessions/<int:session_id>/end", account_views.end, name="account-end-session"),
    path("invitation", invitation_views.invitation, name="invitation"),
    path("invitations/<str:secret>", invitation_views.open_link, name="invitation-link"),
]

api_patterns = [
    path("members", members_api.Members.as_view(), name="api-members"),
    path("members/<str:member_id>", members_api.MemberDetail.as_view(), name="api-member"),
    path("invitations", invitations_api.Invitations.as_view(), name="api-invitations"),
    path("invitations/<str:invitation_id>", invitations_api.InvitationDetail.as_view(), name="api-invitation"),
    path(
        "invitations/<str:invitation_id>/resend",
        invitations_api.InvitationResend.as_view(),
        name="api-invitation-resend",
    ),
]
