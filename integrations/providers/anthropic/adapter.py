"""The adapter to Anthropic: the modules of this package behind the interface common to all providers."""

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, ClassVar

from django.conf import settings

from catalog.models import CatalogEntry
from catalog.services import EffortNotSupported
from integrations.providers.anthropic import diagnoses as d
from integrations.providers.anthropic import images, keys, messages
from integrations.providers.anthropic.connection import Connection
from integrations.providers.anthropic.errors import make_failure, parse_object
from integrations.providers.anthropic.federation import check_federation, exchange
from integrations.providers.anthropic.messages import check_last_turn, too_long
from integrations.providers.anthropic.reply import Reply
from integrations.providers.anthropic.stream import MessageStream
from integrations.providers.anthropic.tokens import tokens_about, tokens_about_text
from integrations.providers.base import (
    BuiltRequest,
    Credential,
    Federation,
    KeyKindRefused,
    ModelRequest,
    ProviderFailure,
    Told,
    Verdict,
)
from rensei.core.errors import FieldError, RenseiError
from rensei.core.limits import limit
from rensei.core.secret import Secret
from rensei.core.usage import UsagePart

_TEST_SECONDS_MAX = limit(
    20.0, "seconds", what="Test of a key", told="the caller: the fault that the page and REST show"
)
_COUNT_SECONDS_MAX = 30.0
_LIST_BYTES_MAX = limit(
    8 * 1024 * 1024,
    "bytes",
    what="Page of a provider's list of models",
    told="the caller: the fault that the test of the key shows",
)
_COUNT_BYTES_MAX = 1024 * 1024
_PAGES_MAX = limit(
    20, "pages", what="Pages of a provider's list of models", told="the caller: models beyond them are not listed"
)
_MODELS_PER_PAGE = 1000
_NAME_CHARACTERS_MAX = 128
_TOO_LONG_TO_COUNT = (d.TOO_LARGE.name, d.PROMPT_TOO_LONG.name)
_COUNTED = ("model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "cache_control")


class AnthropicAdapter:
    """Anthropic's API, at its own address, the operator's, or that of an organization's gateway."""

    provider: ClassVar[str] = "claude"
    refusals: ClassVar[tuple[type[RenseiError], ...]] = (
        EffortNotSupported,
        images.ImagesNotSupported,
        images.InvalidImage,
        messages.ContextWindowExceeded,
    )

    def warm_up(self) -> None:
        import_module("anthropic")

    def check_key(self, key: Secret, *, base_url: str = "") -> None:
        keys.check_key(key, base_url=base_url)

    def check_federation(self, federation: Federation) -> None:
        check_federation(federation)

    def default_base_url(self) -> str:
        return str(settings.RENSEI_ANTHROPIC_BASE_URL)

    def check_input(self, *, messages: list[dict[str, Any]], entry: CatalogEntry) -> None:
        check_last_turn(messages, entry=entry)
        images.check_images(messages, entry=entry)

    def build(self, request: ModelRequest, *, entry: CatalogEntry) -> BuiltRequest:
        return messages.build(request, entry=entry)

    def prepare(
        self, messages: list[dict[str, Any]], *, org_id: str, entry: CatalogEntry, seconds_left: Callable[[], float]
    ) -> list[dict[str, Any]]:
        return images.prepare_images(messages, org_id=org_id, entry=entry, seconds_left=seconds_left)

    def fit(self, params: Mapping[str, Any], *, input_tokens: int, context_window_tokens: int) -> dict[str, Any]:
        return messages.fit(params, input_tokens=input_tokens, context_window_tokens=context_window_tokens)

    def count_input_tokens(
        self, params: Mapping[str, Any], *, credential: Credential, context_window_tokens: int
    ) -> int:
        """
        Request the exact size of a prompt from Anthropic, which is free.

        :raises ContextWindowExceeded: if it is too long even to be counted
        :raises ProviderFailure: if Anthropic returns no count
        """
        try:
            return _count(params, credential)
        except ProviderFailure as failure:
            # Large images also make a body too large, but then the prompt is rarely too long.
            about = tokens_about(params)
            if failure.diagnosis in _TOO_LONG_TO_COUNT and about > context_window_tokens:
                raise too_long(input_tokens=about, window=context_window_tokens, counted="about") from failure
            raise

    def stream(
        self, params: Mapping[str, Any], *, credential: Credential, attempt_id: str, timeout_seconds: float
    ) -> MessageStream:
        return MessageStream(params, credential=credential, attempt_id=attempt_id, timeout_seconds=timeout_seconds)

    def test_connection(self, *, credential: Credential) -> Verdict:
        """
        Check whether a key is accepted and which models it may call. This is free of charge.

        A federated credential is exchanged anew, whether or not a token is in memory.
        """
        try:
            secret = _checked_key(credential) if credential.federation is None else exchange(credential).secret
            models = _list_models(credential, secret)
        except (KeyKindRefused, FieldError) as refused:
            return Verdict(ok=False, code=refused.code, message=refused.detail, fix="Paste another key.")
        except ProviderFailure as failure:
            # A connection failure says nothing about the key, so the key must not be reported as bad.
            unknown = " Whether the key works is not known." if failure.retryable else ""
            return Verdict(
                ok=False,
                code=failure.diagnosis,
                message=failure.message + unknown,
                fix=failure.fix,
                conclusive=not failure.retryable,
            )
        if not models:
            return Verdict(
                ok=True,
                code="NO_MODELS",
                message="Anthropic accepts this key, but opens no model to it.",
                fix="Check the model access of the key's workspace in the Claude Console.",
            )
        return Verdict(
            ok=True,
            code="OK",
            message=f"{'Key' if credential.federation is None else 'Identity'} works. {len(models)} models available.",
            fix="This check does not cover credit. Send a test message to confirm it.",
            models=models,
        )

    def read_usage(self, told: Told, *, input_tokens_about: int) -> tuple[UsagePart, ...]:
        """Read what a machine passes on of an answer. Empty if the provider has reported nothing."""
        if not told.reports:
            return ()
        reply = Reply(input_tokens_about=input_tokens_about, keeps_content=False)
        at_start, *later = told.reports
        reply.take({"type": "message_start", "message": {"model": told.model, "usage": at_start}})
        for report in later:
            reply.take({"type": "message_delta", "usage": report})
        if told.is_refusal:
            reply.take({"type": "message_delta", "delta": {"stop_reason": "refusal"}})
        return reply.parts_so_far()

    def output_tokens_about(self, text: str) -> int:
        """Estimate the tokens of a text that a model has written so far, to show before the provider reports them."""
        return tokens_about_text(text)

    def cheapest_model(self, models: list[dict[str, str]]) -> str:
        """Choose the model for a test message: the newest of the smallest line. Anthropic lists the newest first."""
        ids = [model["id"] for model in models]
        for line in ("haiku", "sonnet"):
            if of_line := [model_id for model_id in ids if line in model_id]:
                return of_line[0]
        return ids[0] if ids else "claude-haiku-5-5"


def _count(params: Mapping[str, Any], credential: Credential) -> int:
    body = {name: params[name] for name in _COUNTED if name in params}
    deadline = time.monotonic() + _COUNT_SECONDS_MAX
    with Connection(credential, deadline=deadline, answer_bytes_max=_COUNT_BYTES_MAX) as connection:
        found = parse_object(connection.post("/v1/messages/count_tokens", body).content).get("input_tokens")
    if type(found) is not int or found < 0:
        raise make_failure(d.NOT_THE_API)
    return found


def _own_base_url(credential: Credential) -> str:
    return "" if credential.base_url in ("", settings.RENSEI_ANTHROPIC_BASE_URL) else credential.base_url


def _checked_key(credential: Credential) -> Secret:
    """:raises KeyKindRefused, FieldError: if the stored text is no key that a server may use"""
    keys.check_key(credential.secret, base_url=_own_base_url(credential))
    return credential.secret


def _list_models(credential: Credential, secret: Secret) -> list[dict[str, str]]:
    """List every model that a key may call, page by page."""
    deadline = time.monotonic() + _TEST_SECONDS_MAX
    models: list[dict[str, str]] = []
    query = {"limit": str(_MODELS_PER_PAGE)}
    with Connection(credential, deadline=deadline, answer_bytes_max=_LIST_BYTES_MAX, secret=secret) as connection:
        for _ in range(_PAGES_MAX):
            page = parse_object(connection.get("/v1/models", query).content)
            rows = page.get("data")
            if not isinstance(rows, list):
                raise make_failure(d.NOT_THE_API)
            models += [found for found in map(_read_model, rows) if found]
            if page.get("has_more") is not True or not isinstance(page.get("last_id"), str):
                break
            query["after_id"] = page["last_id"]
    return models


def _read_model(row: object) -> dict[str, str] | None:
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        return None
    model_id = row["id"][:_NAME_CHARACTERS_MAX]
    name = row.get("display_name")
    return {"id": model_id, "displayName": name[:_NAME_CHARACTERS_MAX] if isinstance(name, str) else model_id}
