"""Calls to a key service over its REST interface: JSON, one connection pool for each process, short timeouts."""

import os
import ssl
import threading
from typing import Any

import httpx2

from integrations.vault.key_services.base import silent, unexpected

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 3.0
ANSWER_BYTES_MAX = 256 * 1024
NO_CONTENT = 204
TOO_MANY_REQUESTS = 429
SERVER_ERRORS = 500


class Rest:
    """A client for one base URL. It follows no redirect and reads no proxy from the environment."""

    def __init__(self, base_url: str, *, authority: str = "") -> None:
        """:param authority: a file with the certificates to trust; without it, those of the system"""
        self._base_url = base_url
        self._authority = authority
        self._lock = threading.Lock()
        self._client: tuple[int, httpx2.Client] | None = None

    def call(
        self, method: str, path: str, *, headers: dict[str, str], body: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """
        Make one call and return its status and document.

        :raises KeyServiceSilent: if it does not answer in time, or is overloaded or faulty
        :raises KekUnavailable: if the answer is no JSON object
        """
        try:
            answer = self._own_client().request(method, path, headers=headers, json=body)
        except httpx2.TimeoutException:
            raise silent("timeout") from None
        except httpx2.HTTPError as fault:
            raise silent(type(fault).__name__) from None
        except OSError:
            raise unexpected("its certificates cannot be read") from None
        if answer.status_code == TOO_MANY_REQUESTS or answer.status_code >= SERVER_ERRORS:
            raise silent(f"status {answer.status_code}")
        if len(answer.content) > ANSWER_BYTES_MAX:
            raise unexpected("a long answer")
        return answer.status_code, {} if answer.status_code == NO_CONTENT else _document(answer)

    def close(self) -> None:
        """Close the connections. The next call opens another one."""
        with self._lock:
            if self._client is not None:
                self._client[1].close()
                self._client = None

    def _own_client(self) -> httpx2.Client:
        """Return this process's client. Connections must not be shared with a process that was forked from this one."""
        with self._lock:
            if self._client is None or self._client[0] != os.getpid():
                self._client = os.getpid(), self._make()
            return self._client[1]

    def _make(self) -> httpx2.Client:
        return httpx2.Client(
            base_url=self._base_url,
            timeout=httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            follow_redirects=False,
            trust_env=False,
            verify=ssl.create_default_context(cafile=self._authority or None),
        )


def _document(answer: httpx2.Response) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise unexpected(f"status {answer.status_code} without a document")
    return document
