"""
E2B, the capacity provider: its address, its keys, and what its refusals mean.

Its API is documented at https://e2b.dev/docs/api-reference, and envd, which runs in each sandbox, at
https://github.com/e2b-dev/infra/tree/main/packages/envd/spec.
"""

import time
from http import HTTPStatus

import httpx2
from django.conf import settings

from catalog.providers import ProviderSpec
from integrations.outbound import http as outbound
from integrations.outbound.destinations import BaseUrlRefused
from integrations.providers.base import Credential, KeyKindRefused, Verdict
from rensei.core.limits import limit
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
KEY_HEADER = "X-API-KEY"
KEY_BEGINNING = "e2b_"
SANDBOXES_PATH = "/v2/sandboxes"
REFUSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_TEST_SECONDS = 20.0
ANSWER_BYTES_MAX = limit(
    1024 * 1024,
    "bytes",
    what="Answer of the API of a capacity provider",
    told="the run: it ends with `SANDBOX_NOT_CREATED`",
)


class E2BAccount:
    """An account at E2B, by its key."""

    def check_key(self, key: Secret, *, base_url: str = "") -> None:
        """:raises KeyKindRefused: if it is a key of another kind"""
        if not key.reveal().startswith(KEY_BEGINNING):
            raise KeyKindRefused(reason=f"A key of E2B begins with {KEY_BEGINNING}. Make one at {SPEC.key_page_url}")

    def default_base_url(self) -> str:
        return str(settings.RENSEI_E2B_BASE_URL)

    def test_connection(self, *, credential: Credential) -> Verdict:
        """Check whether the key may list the sandboxes of its account, which is free of charge."""
        url = f"{credential.base_url}{SANDBOXES_PATH}?limit=1"
        deadline = time.monotonic() + _TEST_SECONDS
        try:
            with outbound.http_client(
                credential.base_url, deadline=deadline, answer_bytes_max=ANSWER_BYTES_MAX, is_operators=True
            ) as client:
                status = client.get(url, headers={KEY_HEADER: credential.secret.reveal()}).status_code
        except (httpx2.HTTPError, BaseUrlRefused):
            return _unknown("UNREACHABLE", "E2B could not be reached.")
        if status in REFUSED:
            return Verdict(
                ok=False,
                code="KEY_REJECTED",
                message="E2B does not accept this key.",
                fix=f"Make a new one at {SPEC.key_page_url}",
            )
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            return _unknown("RATE_LIMITED", "E2B answers no further requests of this account now.")
        if status != HTTPStatus.OK:
            return _unknown("SERVER_ERROR", f"E2B answered with status {status}.")
        return Verdict(
            ok=True,
            code="OK",
            message="Key works. It lists the sandboxes of its account.",
            fix="This check starts no sandbox. Dispatch a run to the pool 'e2b' to try one.",
        )


def _unknown(code: str, message: str) -> Verdict:
    return Verdict(
        ok=False,
        code=code,
        message=f"{message} Whether the key works is not known.",
        fix="Try again in a moment.",
        conclusive=False,
    )
