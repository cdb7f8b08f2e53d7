"""
Access tokens of Anthropic in exchange for identity tokens of this server, so that no key is stored.

Anthropic calls it workload identity federation: a JWT of this server is exchanged at /v1/oauth/token (RFC 7523), for a
token that acts as a service account until its short life ends.
Source: https://platform.claude.com/docs/en/manage-claude/wif-reference and the `anthropic` SDK's `lib/credentials`.
"""

import re
import time
from typing import Any
from urllib.parse import urlsplit

import httpx2
from django.conf import settings

from catalog.providers import PROVIDERS
from integrations.outbound import http as outbound
from integrations.outbound.destinations import BaseUrlRefused
from integrations.providers.anthropic import diagnoses as d
from integrations.providers.anthropic.access_tokens import AccessToken, AccessTokens
from integrations.providers.anthropic.errors import failure_of_answer, failure_of_transport, make_failure, parse_object
from integrations.providers.base import Credential, Federation, ProviderFailure
from integrations.vault import issuer
from rensei.core.errors import DATABASE_FAULTS, FieldError, RenseiError
from rensei.core.secret import Secret
from rensei.core.transactions import leave_database

EXCHANGE_PATH = "/v1/oauth/token"
TOKEN_BETA = "oauth-2025-04-20"  # noqa: S105 - the name of a beta
_EXCHANGE_BETAS = f"{TOKEN_BETA},oidc-federation-2026-04-01"
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_EXCHANGE_SECONDS_MAX = 10.0
_ANSWER_BYTES_MAX = 64 * 1024
_TOKEN_SHAPE = re.compile(r"[\x21-\x7e]{16,8192}")
_TOKEN_SECONDS_MAX = 24 * 3600
_SHAPES = {
    "ruleId": (
        re.compile(r"fdrl_[A-Za-z0-9]{4,80}"),
        "The id of a federation rule begins with fdrl_, and letters and digits follow.",
    ),
    "organizationId": (
        re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"),
        "The id of the Anthropic organization is a UUID. The Console shows it under Settings, Organization.",
    ),
    "serviceAccountId": (
        re.compile(r"svac_[A-Za-z0-9]{4,80}"),
        "The id of a service account begins with svac_, and letters and digits follow.",
    ),
}


def check_federation(federation: Federation) -> None:
    """
    Check the form of the ids, without network access.

    :raises FieldError: if one is not such an id
    """
    for name, value in federation.wire().items():
        shape, reason = _SHAPES[name]
        if not shape.fullmatch(value):
            raise FieldError(pointer=f"/federation/{name}", reason=reason)


def exchange(credential: Credential) -> AccessToken:
    """
    Sign an identity token, and exchange it. A database connection is returned before the call.

    :raises ProviderFailure: if there is no token, with what to compare in the Console
    """
    assertion = _identity(credential)
    base_url = credential.base_url or settings.RENSEI_ANTHROPIC_BASE_URL
    began = time.monotonic()
    try:
        client = outbound.http_client(
            base_url,
            deadline=began + _EXCHANGE_SECONDS_MAX,
            answer_bytes_max=_ANSWER_BYTES_MAX,
            # No organization may choose where identities are sent: a federation has no base URL of its own.
            is_operators=base_url == settings.RENSEI_ANTHROPIC_BASE_URL,
        )
        with client:
            answer = client.post(
                base_url + EXCHANGE_PATH, json=_body(credential, assertion), headers={"anthropic-beta": _EXCHANGE_BETAS}
            )
    except BaseUrlRefused:
        raise make_failure(d.ADDRESS_REFUSED, sent=False) from None
    except httpx2.HTTPError as error:
        # `from None`: the exception contains the request, and with it the identity token.
        raise _never_sent(failure_of_transport(error)) from None
    if answer.status_code != httpx2.codes.OK:
        raise _refusal(credential, answer)
    return _token_of(answer, began=began)


def _identity(credential: Credential) -> Secret:
    try:
        return issuer.identity_token(
            subject=credential.subject,
            audience=PROVIDERS["claude"].federation_audience,
            claims={"credential": credential.id} if credential.id else {},
        )
    except (RenseiError, *DATABASE_FAULTS):
        raise make_failure(d.IDENTITY_NOT_SIGNED, sent=False) from None
    finally:
        leave_database()


def _body(credential: Credential, assertion: Secret) -> dict[str, str]:
    assert credential.federation is not None
    body = {
        "grant_type": _GRANT,
        "assertion": assertion.reveal(),
        "federation_rule_id": credential.federation.rule_id,
        "organization_id": credential.federation.organization_id,
        "service_account_id": credential.federation.service_account_id,
    }
    return {**body, "workspace_id": credential.workspace_id} if credential.workspace_id else body


def _refusal(credential: Credential, answer: httpx2.Response) -> ProviderFailure:
    document = parse_object(answer.content)
    error = document.get("error")
    if isinstance(error, str):
        # The form of RFC 6749 in place of Anthropic's own.
        error = {"type": error, "message": document.get("error_description")}
    said = error if isinstance(error, dict) else {}
    match answer.status_code:
        case 400 | 422:
            return make_failure(d.FEDERATION_INVALID, error=said, status=400, sent=False)
        case 401 | 403 if _signs_by_a_new_key():
            return make_failure(d.FEDERATION_KEY_NEW, error=said, status=401, sent=False)
        case 401 | 403:
            failure = make_failure(d.FEDERATION_REFUSED, error=said, status=401, sent=False)
            failure.fix = f"{failure.fix} {_to_compare(credential)}"
            return failure
        case 404 | 405:
            return make_failure(d.NOT_THE_API, status=answer.status_code, sent=False)
    return _never_sent(failure_of_answer(status=answer.status_code, body=answer.content, headers=answer.headers))


def _signs_by_a_new_key() -> bool:
    try:
        return issuer.signs_by_a_new_key()
    except DATABASE_FAULTS:
        return False
    finally:
        leave_database()


def _to_compare(credential: Credential) -> str:
    """State what this server says of itself, for a comparison with the issuer and the rule in the Console."""
    told = (
        f"Compare there, letter by letter: issuer {issuer.issuer_url()}, subject {credential.subject}, "
        f"audience {PROVIDERS['claude'].federation_audience}."
    )
    if not _is_public(issuer.issuer_url()):
        told += (
            " Anthropic cannot fetch the keys of this issuer, because its address is not https on port 443: paste "
            f"those of {issuer.KEYS_PATH} into the Console (inline), or set RENSEI_PUBLIC_URL."
        )
    if not credential.workspace_id:
        told += " If the rule is enabled for several workspaces, fill in the Workspace ID (wrkspc_…)."
    return told


def _is_public(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" and parts.port in (None, 443) and "." in (parts.hostname or "")


def _token_of(answer: httpx2.Response, *, began: float) -> AccessToken:
    document: dict[str, Any] = parse_object(answer.content)
    token, seconds = document.get("access_token"), document.get("expires_in")
    kind = document.get("token_type", "Bearer")
    if (
        not isinstance(token, str)
        or not _TOKEN_SHAPE.fullmatch(token)
        or type(seconds) is not int
        or seconds <= 0
        or str(kind).lower() != "bearer"
    ):
        raise make_failure(d.NOT_THE_API, status=answer.status_code, sent=False)
    return AccessToken.lasting(Secret(token), seconds=min(seconds, _TOKEN_SECONDS_MAX), since=began)


def _never_sent(failure: ProviderFailure) -> ProviderFailure:
    """Mark a failure of the exchange: no model was called, and the outcome of the exchange may be unknown."""
    failure.sent = failure.maybe_billed = False
    if failure.provider_code == "deadline":
        # The deadline of the exchange is not that of the run.
        failure.provider_code, failure.retryable = "", True
    return failure


tokens = AccessTokens(exchange)
