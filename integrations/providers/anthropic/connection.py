"""
The SDK's client, for one call with one key, so that organizations never share a connection, key or header.

The SDK also reads ANTHROPIC_* environment variables, so the outgoing headers are set to exactly ours.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx2
from django.conf import settings

from integrations.outbound import http as outbound
from integrations.outbound.destinations import BaseUrlRefused
from integrations.providers.anthropic import diagnoses as d
from integrations.providers.anthropic.errors import failure_of_answer, failure_of_transport, make_failure
from integrations.providers.anthropic.federation import TOKEN_BETA, tokens
from integrations.providers.base import Credential, ProviderFailure
from rensei.core.secret import Secret

if TYPE_CHECKING:
    import anthropic

API_VERSION = "2026-10-21"
UNAUTHORIZED = 401
# The headers that HTTP itself needs. Every other header is set here or dropped.
_OF_HTTP = {"host", "connection", "content-length", "content-type", "transfer-encoding"}


def is_operators(credential: Credential, base_url: str) -> bool:
    """Return whether the operator chose a key's destination: no organization did, and all calls go there."""
    return not credential.org_slug and base_url == settings.RENSEI_ANTHROPIC_BASE_URL


def signing_headers(credential: Credential, secret: Secret, *, attempt_id: str, betas: str = "") -> dict[str, str]:
    """
    Return the headers that sign a call.

    :param betas: the beta names that the call has already
    :raises ProviderFailure: if the key has a character that no header may have
    """
    key = secret.reveal()
    if not key.isascii() or not key.isprintable() or " " in key:
        # An HTTP client would include it in its error about an illegal header.
        raise make_failure(d.KEY_REJECTED, sent=False)
    headers = {"authorization": f"Bearer {key}"}
    if attempt_id:
        headers["x-rensei-attempt"] = attempt_id
    if credential.federation is not None:
        # The token is one of its workspace already, and such a call must not name one.
        headers["anthropic-beta"] = f"{betas},{TOKEN_BETA}" if betas else TOKEN_BETA
    elif credential.workspace_id:
        headers["anthropic-workspace-id"] = credential.workspace_id
    return headers


def rejection_of(credential: Credential, secret: Secret, *, status: int) -> ProviderFailure | None:
    """
    Return the failure of an answer that rejects the token of a federated credential, and drop the token.

    :param secret: the token that signed the call; by now another one may be in use
    """
    if credential.federation is None or status != UNAUTHORIZED:
        return None
    always = make_failure(d.FEDERATION_TOKENS_REJECTED, status=status, sent=False)
    is_each = tokens.reject(credential, secret, always=always)
    return make_failure(d.FEDERATION_TOKENS_REJECTED if is_each else d.FEDERATION_TOKEN_REJECTED, status=status)


class Connection:
    """
    A client for one call.

    Every method raises ProviderFailure. Failures are raised `from None`: the SDK's errors contain the request,
    and with it the key.
    """

    def __init__(
        self,
        credential: Credential,
        *,
        deadline: float,
        answer_bytes_max: int,
        attempt_id: str = "",
        sockets: outbound.Sockets | None = None,
        secret: Secret | None = None,
    ) -> None:
        """:param secret: the token of a federated credential, if it was just obtained"""
        self._credential = credential
        secret = secret or (tokens.get(credential) if credential.federation is not None else credential.secret)
        self._secret, self._key = secret, secret.reveal()
        base_url = credential.base_url or settings.RENSEI_ANTHROPIC_BASE_URL
        self._headers = {
            "accept": "application/json",
            "accept-encoding": "identity",
            "anthropic-version": API_VERSION,
            "user-agent": "rensei",
            **signing_headers(credential, secret, attempt_id=attempt_id),
        }
        try:
            http_client = outbound.http_client(
                base_url,
                deadline=deadline,
                answer_bytes_max=answer_bytes_max,
                sockets=sockets,
                org_slug=credential.org_slug,
                is_operators=is_operators(credential, base_url),
            )
        except BaseUrlRefused:
            raise make_failure(d.ADDRESS_REFUSED, sent=False) from None
        http_client.event_hooks = {"request": [self._set_headers]}
        self._client = _make_sdk_client(key=self._key, base_url=base_url, http_client=http_client)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def get(self, path: str, query: Mapping[str, str]) -> httpx2.Response:
        """Return an answer with status 200."""
        return self._call(lambda: self._client.get(path, cast_to=httpx2.Response, options={"params": dict(query)}))

    def post(self, path: str, body: Mapping[str, Any], *, stream: bool = False) -> httpx2.Response:
        """Send a body, and return an answer with status 200. If it streams, its body has not been read yet."""
        import anthropic

        if stream:
            return self._call(
                lambda: self._client.post(
                    path, cast_to=httpx2.Response, body=dict(body), stream=True, stream_cls=anthropic.Stream[Any]
                )
            )
        return self._call(lambda: self._client.post(path, cast_to=httpx2.Response, body=dict(body)))

    def _call(self, send: Any) -> httpx2.Response:
        import anthropic

        try:
            response: httpx2.Response = send()
        except anthropic.APIStatusError as error:
            if rejection := rejection_of(self._credential, self._secret, status=error.status_code):
                raise rejection from None
            raise self._without_key(
                failure_of_answer(status=error.status_code, body=error.response.content, headers=error.response.headers)
            ) from None
        except (anthropic.APIConnectionError, httpx2.HTTPError) as error:
            raise failure_of_transport(error) from None
        return response

    def _set_headers(self, request: httpx2.Request) -> None:
        for name in list(request.headers):
            if name.lower() not in _OF_HTTP:
                del request.headers[name]
        request.headers.update(self._headers)

    def _without_key(self, failure: ProviderFailure) -> ProviderFailure:
        """Remove the key, in case the server quoted it."""
        failure.message = failure.message.replace(self._key, "***")
        failure.args = (f"{failure.code}: {failure.message}",)
        return failure


def _make_sdk_client(*, key: str, base_url: str, http_client: httpx2.Client) -> "anthropic.Anthropic":
    # Imported on the first call: it takes more than a second, and pages and commands do not need it.
    import anthropic

    return anthropic.Anthropic(
        api_key=key,
        base_url=base_url,
        max_retries=0,
        timeout=http_client.timeout,
        http_client=http_client,
        open_telemetry=False,
    )
