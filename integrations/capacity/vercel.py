"""
Vercel Sandbox, the capacity provider: its address, its tokens, and the team and project to which its sandboxes belong.

Its API is documented at https://vercel.com/docs/rest-api/sandboxes.
"""

import re
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import urlencode

from catalog.providers import ProviderSpec
from integrations.capacity.account import HttpAccount
from integrations.providers.base import Credential, KeyKindRefused
from rensei.core.errors import FieldError
from rensei.core.secret import Secret

SPEC = ProviderSpec(
    id="vercel",
    display_name="Vercel",
    config_namespace="",
    auth_modes=(),
    requires_endpoint=False,
    category="Capacity",
    default_base_url_setting="RENSEI_VERCEL_BASE_URL",
    key_page_url="https://vercel.com/account/settings/tokens",
    dearest_search_picodollars=0,
    workspace_label="Team and project",
    workspace_help="Their ids with a slash between them, as team_…/prj_…: each is in its settings at Vercel.",
)
SANDBOXES_PATH = "/v2/sandboxes"
# 403 is the answer for a token that has expired or is not of the team: https://vercel.com/docs/sdk
REFUSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
# A token for deployments, which ends within hours, has dots.
_TOKEN = re.compile(r"[A-Za-z0-9_]+")
_TEAM_AND_PROJECT = re.compile(r"(team_[A-Za-z0-9]{1,50})/(prj_[A-Za-z0-9]{1,50})")


class VercelAccount(HttpAccount):
    """A team at Vercel and one of its projects, by a token of one of its members."""

    spec = SPEC
    refused = REFUSED | {HTTPStatus.NOT_FOUND}
    rejection = "Vercel does not accept this token for this team and project."

    def check_key(self, key: Secret, *, base_url: str = "") -> None:
        """:raises KeyKindRefused: if it is a key of another kind"""
        if not _TOKEN.fullmatch(key.reveal()):
            raise KeyKindRefused(
                reason=f"A token of Vercel has letters, digits and underscores only. Make one at {SPEC.key_page_url}"
            )

    def check_workspace(self, workspace_id: str) -> None:
        """:raises FieldError: if it does not name a team and a project"""
        if not _TEAM_AND_PROJECT.fullmatch(workspace_id):
            raise FieldError(
                pointer="/workspaceId", reason="It is the id of a team and of one of its projects: team_…/prj_…"
            )

    def list_request(self, credential: Credential) -> tuple[str, Mapping[str, str]]:
        team, project = team_and_project(credential.workspace_id)
        query = urlencode({"teamId": team, "project": project, "limit": 1})
        return f"{credential.base_url}{SANDBOXES_PATH}?{query}", signed(credential.secret)


def team_and_project(workspace_id: str) -> tuple[str, str]:
    team, _, project = workspace_id.partition("/")
    return team, project


def signed(key: Secret) -> Mapping[str, str]:
    """Return the headers of a request with a token."""
    return {"Authorization": f"Bearer {key.reveal()}"}
