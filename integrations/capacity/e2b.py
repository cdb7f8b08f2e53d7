"""
E2B, the capacity provider: its address and its keys.

Its API is documented at https://e2b.dev/docs/api-reference, and envd, which runs in each sandbox, at
https://github.com/e2b-dev/infra/tree/main/packages/envd/spec.
"""

from collections.abc import Mapping
from http import HTTPStatus

from catalog.providers import ProviderSpec
from integrations.capacity.account import HttpAccount
from integrations.providers.base import Credential, KeyKindRefused
from rensei.core.secret import Secret

SPEC = ProviderSpec(
    id="e2b",
    display_name="E2B",
    config_namespace="",
    auth_modes=(),
    requires_endpoint=False,
    category="Capacity",
    default_base_url_setting="RENSEI_E2B_BASE_URL",
    key_page_url="https://e2b.dev/dashboard?tab=keys",
    dearest_search_picodollars=0,
)
KEY_BEGINNING = "e2b_"
SANDBOXES_PATH = "/v2/sandboxes"
# 403 is the answer for a template of another team, or for a team that is blocked: https://github.com/e2b-dev/infra
REFUSED = frozenset({HTTPStatus.UNAUTHORIZED})


class E2BAccount(HttpAccount):
    """An account at E2B."""

    spec = SPEC
    refused = REFUSED
    rejection = "E2B does not accept this key."

    def check_key(self, key: Secret, *, base_url: str = "") -> None:
        """:raises KeyKindRefused: if it is a key of another kind"""
        if not key.reveal().startswith(KEY_BEGINNING):
            raise KeyKindRefused(reason=f"A key of E2B begins with {KEY_BEGINNING}. Make one at {SPEC.key_page_url}")

    def list_request(self, credential: Credential) -> tuple[str, Mapping[str, str]]:
        return f"{credential.base_url}{SANDBOXES_PATH}?limit=1", signed(credential.secret)


def signed(key: Secret) -> Mapping[str, str]:
    """Return the headers of a request with a key."""
    return {"X-API-KEY": key.reveal()}
