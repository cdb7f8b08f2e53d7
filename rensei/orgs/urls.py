"""The addresses of this room: its pages, and under /api/v1/ its REST views."""

from allauth.account import urls as allauth
from django.urls import path

from rensei.orgs import api, device_api, views

# People do not change their address by themselves: members are added by it, and nobody would have checked the new one.
CLOSED = {
    "account_confirm_email",
    "account_confirm_login_code",
    "account_email",
    "account_email_verification_sent",
}
# Signing in is the library's too, behind a rate limit that says when to come back.
OURS = {"account_login"}
account_patterns = [
    path("login/", views.sign_in, name="account_login"),
    *(pattern for pattern in allauth.urlpatterns if pattern.name not in CLOSED | OURS),
]

page_patterns = [
    path("setup", views.first_setup, name="setup"),
    path("device", views.device, name="device"),
]

api_patterns = [
    path("me", api.Me.as_view(), name="api-me"),
    path("projects", api.Projects.as_view(), name="api-projects"),
    path("projects/<str:project_id>", api.ProjectDetail.as_view(), name="api-project"),
    path("members", api.Members.as_view(), name="api-members"),
    path("members/<str:member_id>", api.MemberDetail.as_view(), name="api-member"),
    path("tokens", api.Tokens.as_view(), name="api-tokens"),
    path("tokens/<str:token_id>", api.TokenDetail.as_view(), name="api-token"),
    path("hosts", api.Hosts.as_view(), name="api-hosts"),
    path("hosts/<str:host_id>", api.HostDetail.as_view(), name="api-host"),
    path("device-codes", device_api.DeviceCodes.as_view(), name="api-device-codes"),
    path("device-codes/token", device_api.DeviceCodeToken.as_view(), name="api-device-code-token"),
]
