"""What the accounts at all capacity providers have in common: their test, and what an answer to it means."""

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from http import HTTPStatus

import httpx2
from django.conf import settings

from catalog.providers import ProviderSpec
from integrations.outbound import http as outbound
from integrations.outbound.destinations import BaseUrlRefused
from integrations.providers.base import Credential, Verdict
from rensei.core.errors import FieldError
from rensei.core.limits import limit
from rensei.core.secret import Secret

_TEST_SECONDS = 20.0
ANSWER_BYTES_MAX = limit(
    1024 * 1024,
    "bytes",
    what="Answer of the API of a capacity provider",
    told="the run: it ends with `SANDBOX_NOT_CREATED`",
)


class Unreachable(Exception):
    """A provider does not answer; `reason` is a sentence, if it is known why."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class CapacityAccount(ABC):
    """
    An account at a capacity provider, by its key. Each provider has a subclass.

    `refused` are the statuses by which the provider's list of sandboxes says that the key is wrong, as `KEY_REJECTED`
    says it to people.
    """

    spec: ProviderSpec
    refused: Collection[int]
    rejection = ""

    @abstractmethod
    def check_key(self, key: Secret, *, base_url: str = "") -> None:
        """:raises KeyKindRefused: if it is a key of another kind"""

    @abstractmethod
    def ask(self, credential: Credential, *, seconds: float) -> int:
        """
        Ask for one sandbox of the account, and return the status of the answer.

        :raises Unreachable: if there is none
        """

    def check_workspace(self, workspace_id: str) -> None:
        """:raises FieldError: if it is no workspace of the provider, as a key there is bound to"""
        if workspace_id:
            raise FieldError(pointer="/workspaceId", reason="This provider has no workspaces. Leave it empty.")

    def default_base_url(self) -> str:
        return str(getattr(settings, self.spec.default_base_url_setting))

    def test_connection(self, *, credential: Credential) -> Verdict:
        """Check whether the key may list the sandboxes of its account, which is free of charge."""
        name = self.spec.display_name
        try:
            status = self.ask(credential, seconds=_TEST_SECONDS)
        except Unreachable as fault:
            return _unknown("UNREACHABLE", fault.reason or f"{name} could not be reached.")
        if status in self.refused:
            return Verdict(
                ok=False,
                code="KEY_REJECTED",
                message=self.rejection,
                fix=f"Make a new one at {self.spec.key_page_url}",
            )
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            return _unknown("RATE_LIMITED", f"{name} answers no further requests of this account now.")
        if status != HTTPStatus.OK:
            return _unknown("SERVER_ERROR", f"{name} answered with status {status}.")
        return Verdict(
            ok=True,
            code="OK",
            message="Key works. It lists the sandboxes of its account.",
            fix=f"This check starts no sandbox. Dispatch a run to the pool '{self.spec.id}' to try one.",
        )


class HttpAccount(CapacityAccount):
    """An account at a provider with a REST API."""

    @abstractmethod
    def list_request(self, credential: Credential) -> tuple[str, Mapping[str, str]]:
        """Return the address and the headers of a request for one sandbox of the account."""

    def ask(self, credential: Credential, *, seconds: float) -> int:
        url, headers = self.list_request(credential)
        try:
            with outbound.http_client(
                credential.base_url,
                deadline=time.monotonic() + seconds,
                answer_bytes_max=ANSWER_BYTES_MAX,
                is_operators=True,
            ) as client:
                return client.get(url, headers=dict(headers)).status_code
        except (httpx2.HTTPError, BaseUrlRefused):
            raise Unreachable from None


def _unknown(code: str, message: str) -> Verdict:
    return Verdict(
        ok=False,
        code=code,
        message=f"{message} Whether the key works is not known.",
        fix="Try again in a moment.",
        conclusive=False,
    )
