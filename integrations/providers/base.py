"""The interface of an adapter to a provider. Each provider id has one adapter, in its own package."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Protocol

from catalog.models import CatalogEntry
from rensei.core.errors import RenseiError, StoredError
from rensei.core.secret import Secret
from rensei.core.usage import Usage, UsagePart, total


@dataclass(frozen=True, kw_only=True)
class Federation:
    """The ids at a provider by which it knows this server's identity. They take the place of a key; none is secret."""

    rule_id: str
    organization_id: str
    service_account_id: str

    def wire(self) -> dict[str, str]:
        return {
            "ruleId": self.rule_id,
            "organizationId": self.organization_id,
            "serviceAccountId": self.service_account_id,
        }

    def sealable(self) -> Secret:
        """Return the text that is sealed in place of a key."""
        return Secret(json.dumps(self.wire(), sort_keys=True))

    @classmethod
    def of_wire(cls, ids: Mapping[str, str]) -> "Federation":
        return cls(
            rule_id=ids["ruleId"], organization_id=ids["organizationId"], service_account_id=ids["serviceAccountId"]
        )

    @classmethod
    def of_sealed(cls, text: Secret) -> "Federation":
        return cls.of_wire(json.loads(text.reveal()))


# What is given to connect a provider: its key, or the federation that takes its place.
Given = Secret | Federation


@dataclass(frozen=True, kw_only=True)
class Credential:
    """
    An opened key and where it may be sent. Only a local variable of execution holds it.

    `org_slug` names the organization that chose the base URL. It is empty if the operator did. With a `federation`
    there is no secret: the adapter obtains a short token for `subject`, which is the identity that this server states.
    """

    id: str
    version: int
    secret: Secret
    base_url: str
    workspace_id: str = ""
    org_slug: str = ""
    federation: Federation | None = None
    subject: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """
    A request to a model, before it is converted to the provider's format.

    `messages` and `system` are in the format of the Messages API. `max_tokens` is what the caller or the
    profile requested, or None. `context_window_tokens` is the caller's limit, or None. An effort that was set by
    the profile or the catalog, not by the caller, yields to what the caller requested. `max_tokens_cap` is the most
    that the key pool allows for one answer, thinking included.
    """

    system: str | list[dict[str, Any]] | None
    messages: list[dict[str, Any]]
    effort: str | None
    max_tokens: int | None
    prompt_caching: str
    context_window_tokens: int | None
    effort_is_asked: bool = True
    max_tokens_is_asked: bool = True
    max_tokens_cap: int | None = None


@dataclass(frozen=True, kw_only=True)
class BuiltRequest:
    """
    A request in the provider's own parameters.

    `effort` is the level in use, chosen or by default. `effort_left_out` is a sentence that states why an effort was
    omitted. `input_tokens_at_least` is a local estimate that is never above the true count. `input_tokens_about` is
    close to it, to decide whether the provider should count exactly before the attempt.
    `input_tokens_at_most` is never below it, for what a call may cost. `price_factor_at_most` is an upper
    bound of the factor on its token prices, and `cache_writes` states which cache writes it may cause, as
    `prompt_caching` does: those of its breakpoints, the caller's and ours. `unknown` are the kinds and names of what
    it holds and the adapter does not know, and `provider_chooses` is True if any of it may run another model.
    """

    params: dict[str, Any]
    effort: str | None
    effort_applied: dict[str, Any]
    effort_left_out: str = ""
    max_tokens: int
    input_tokens_at_least: int
    input_tokens_about: int
    input_tokens_at_most: int
    price_factor_at_most: Fraction = Fraction(1)
    cache_writes: str = "static"
    unknown: frozenset[tuple[str, str]] = frozenset()
    provider_chooses: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """
    The result of a key's test, in text that states the remedy. `models` is `[{"id", "displayName"}]`.

    It is not `conclusive` if the provider was busy or unreachable: that says nothing about the key.
    """

    ok: bool
    code: str
    message: str
    fix: str
    models: list[dict[str, str]] = field(default_factory=list)
    conclusive: bool = True

    def as_error(self) -> StoredError:
        """Return a failed test as it is stored with the key."""
        return {"code": self.code, "detail": self.message, "fix": self.fix}


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """A piece of the answer, as it arrives."""

    text: str


@dataclass(frozen=True, kw_only=True)
class UsageReport:
    """The usage that the provider has reported so far. `parts` are as in an `Answer`."""

    usage: Usage
    parts: tuple[UsagePart, ...] = ()
    request_id: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """
    The whole answer. It is the last item, and only of a stream that ended properly.

    `usage` is the total. `parts` list the usage by model; if empty, all of it is the requested model's.
    `usage_estimated` means that the provider's report was missing or implausible, and that we counted ourselves.
    """

    text: str
    content: list[dict[str, Any]]
    stop_reason: str
    usage: Usage
    request_id: str
    usage_estimated: bool = False
    parts: tuple[UsagePart, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Told:
    """
    What an answer tells of the model that made it and of its usage, in the provider's own format.

    `reports` are its reports of usage in order, that at the start of the stream first. `is_refusal` is True if it ended
    as a refusal without any content.
    """

    model: str
    reports: Sequence[Mapping[str, Any]]
    is_refusal: bool = False


StreamEvent = TextDelta | UsageReport | Answer


class ProviderFailure(Exception):
    """
    A failed call to a provider, as translated by the adapter.

    `code` is one of the PROVIDER_… codes of the run's error, and `diagnosis` the more specific one that a test of
    the key shows. `sent` states whether the request may have reached the provider. `parts` are what was used before
    the failure, estimated where it was not reported, and `usage` is their total; nothing if no answer had begun.
    `output_seen` states whether any of an answer's content had arrived. `message` and `fix` are our own text, and never
    contain a header or a key. `provider_code` is `deadline` if the time limit of the whole call was reached, and
    `gave_up` is True if we stopped waiting for, or reading, an answer that the provider may complete.
    """

    def __init__(
        self,
        *,
        code: str,
        message: str,
        fix: str,
        retryable: bool,
        sent: bool = True,
        maybe_billed: bool = False,
        output_seen: bool = False,
        gave_up: bool = False,
        retry_after_seconds: float | None = None,
        status: int | None = None,
        diagnosis: str = "",
        provider_code: str = "",
        request_id: str = "",
        text: str = "",
        parts: tuple[UsagePart, ...] = (),
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.fix = fix
        self.retryable = retryable
        self.sent = sent
        self.maybe_billed = maybe_billed
        self.output_seen = output_seen
        self.gave_up = gave_up
        self.retry_after_seconds = retry_after_seconds
        self.status = status
        self.diagnosis = diagnosis
        self.provider_code = provider_code
        self.request_id = request_id
        self.text = text
        self.parts = parts

    @property
    def usage(self) -> Usage | None:
        return total(self.parts) if self.parts else None

    def as_error(self) -> StoredError:
        """Return the failure as a run's error."""
        return {
            "code": self.code,
            "detail": self.message,
            "fix": self.fix,
            "retryable": self.retryable,
            "providerStatus": self.status,
            "providerRequestId": self.request_id,
        }


class Interrupted(Exception):
    """No time is left to prepare a request: its run was cancelled, or its deadline has passed."""


class ProviderStream(Protocol):
    """
    A call in progress. Iterate it once, to the end; it raises `ProviderFailure`.

    Calling `close` from another thread closes the connection at once: the iteration then ends without an `Answer`,
    and `parts_so_far` returns what was used until then, estimated where it was not reported. Empty if nothing arrived.
    `is_under_way` tells whether any of the request was sent, and the provider has not refused it.
    """

    @property
    def is_under_way(self) -> bool: ...

    def __iter__(self) -> Iterator[StreamEvent]: ...

    def close(self) -> None: ...

    def parts_so_far(self) -> tuple[UsagePart, ...]: ...


class Adapter(Protocol):
    """
    The interface to one provider.

    `warm_up` loads what the first call would load. `build` is pure. `prepare` may fetch and shrink images, and runs
    in the worker before the attempt; it calls `seconds_left` before each and raises `Interrupted` at 0.
    `count_input_tokens` and `stream` make calls and raise `ProviderFailure`; `test_connection` makes calls and
    returns its verdict. `fit` adjusts the parameters once the input is counted exactly. `check_key` checks the
    format of a key that is already stripped of white space. `read_usage` reads what a machine passes on of an answer to
    its own call, as `stream` reads one of the server's. `check_federation` checks the ids of a federation, and is
    only called where the provider's spec offers it. `refusals` are the errors that `check_input`, `build`
    and `prepare` may raise.
    """

    provider: ClassVar[str]
    refusals: ClassVar[tuple[type[RenseiError], ...]]

    def warm_up(self) -> None: ...

    def check_key(self, key: Secret, *, base_url: str = "") -> None: ...

    def check_federation(self, federation: Federation) -> None: ...

    def default_base_url(self) -> str: ...

    def check_input(self, *, messages: list[dict[str, Any]], entry: CatalogEntry) -> None: ...

    def build(self, request: ModelRequest, *, entry: CatalogEntry) -> BuiltRequest: ...

    def prepare(
        self, messages: list[dict[str, Any]], *, org_id: str, entry: CatalogEntry, seconds_left: Callable[[], float]
    ) -> list[dict[str, Any]]: ...

    def count_input_tokens(
        self, params: Mapping[str, Any], *, credential: Credential, context_window_tokens: int
    ) -> int: ...

    def fit(self, params: Mapping[str, Any], *, input_tokens: int, context_window_tokens: int) -> dict[str, Any]: ...

    def stream(
        self, params: Mapping[str, Any], *, credential: Credential, attempt_id: str, timeout_seconds: float
    ) -> ProviderStream: ...

    def test_connection(self, *, credential: Credential) -> Verdict: ...

    def read_usage(self, told: Told, *, input_tokens_about: int) -> tuple[UsagePart, ...]: ...

    def output_tokens_about(self, text: str) -> int: ...

    def cheapest_model(self, models: list[dict[str, str]]) -> str: ...


class KeyKindRefused(RenseiError):
    """The pasted text is a key of another kind, which must not be stored."""

    code = "KEY_KIND_REFUSED"
    status = 422
    title = "Wrong kind of key"
    message = "{reason}"


ADAPTERS: dict[str, Adapter] = {}


def register(adapter: Adapter) -> Adapter:
    ADAPTERS[adapter.provider] = adapter
    return adapter
