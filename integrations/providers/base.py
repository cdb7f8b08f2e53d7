"""What an adapter to a provider offers. One adapter for each provider id, in a folder of its own."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Protocol

from catalog.models import CatalogEntry
from rensei.core.errors import RenseiError, StoredError
from rensei.core.secret import Secret
from rensei.core.usage import Usage, UsagePart


@dataclass(frozen=True, kw_only=True)
class Credential:
    """
    An opened key and where it may be sent. It lives in a local variable of execution, nowhere longer.

    `org_slug` names the organization that chose the base URL, and is empty where the operator did.
    """

    id: str
    version: int
    secret: Secret
    base_url: str
    workspace_id: str = ""
    org_slug: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """
    What to ask a model, before it takes the provider's shape.

    `messages` and `system` are in the shape of the Messages API. `max_tokens` is what the caller or the
    profile asked for, or None. `context_window_tokens` is the caller's limit, or None. An effort that the caller did
    not ask for, but the profile or the catalog, gives way to what the caller asked for.
    """

    system: str | list[dict[str, Any]] | None
    messages: list[dict[str, Any]]
    effort: str | None
    max_tokens: int | None
    prompt_caching: str
    context_window_tokens: int | None
    effort_is_asked: bool = True
    max_tokens_is_asked: bool = True


@dataclass(frozen=True, kw_only=True)
class BuiltRequest:
    """
    A request in the provider's own parameters. `effort` is the level that is used, chosen or by default, and
    `effort_left_out` a sentence that says why one is not, where it had to give way.

    `input_tokens_at_least` is a local estimate that is never above the true count; `input_tokens_about` one
    that is close to it, to decide whether the provider should count exactly before the attempt;
    `input_tokens_at_most` one that is never below it, for what a call may cost. `price_factor_at_most` is the most by
    which the prices of its tokens may be multiplied.
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


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """
    What a test of a key found, in words that say what to do. `models` is `[{"id", "displayName"}]`.

    It is not `conclusive` where the provider was busy or out of reach: that says nothing about the key.
    """

    ok: bool
    code: str
    message: str
    fix: str
    models: list[dict[str, str]] = field(default_factory=list)
    conclusive: bool = True

    def as_error(self) -> StoredError:
        """Write a failed test as the row of its key keeps it."""
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
    The whole answer. It comes last, and only of a stream that ended properly.

    `usage` is the whole of it. `parts` say which model used what; none: all of it is that of the model that was asked.
    `usage_estimated` says that the provider's account was missing or absurd, and that we counted ourselves.
    """

    text: str
    content: list[dict[str, Any]]
    stop_reason: str
    usage: Usage
    request_id: str
    usage_estimated: bool = False
    parts: tuple[UsagePart, ...] = ()


StreamEvent = TextDelta | UsageReport | Answer


class ProviderFailure(Exception):
    """
    A call to a provider that failed, translated once, in the adapter.

    `code` is one of the PROVIDER_… codes of the run's error, and `diagnosis` the finer one that a test of
    the key shows. `sent` says whether the request may have reached the provider. `usage` is what was
    reported before it failed, its output estimated from what had come, or None where nothing was;
    `output_seen` whether any byte of an answer had come. `message` and `fix` are ours, and never hold
    a header or a key. `provider_code` is `deadline` if the time for the whole call was over.
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
        retry_after_seconds: float | None = None,
        status: int | None = None,
        diagnosis: str = "",
        provider_code: str = "",
        request_id: str = "",
        usage: Usage | None = None,
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
        self.retry_after_seconds = retry_after_seconds
        self.status = status
        self.diagnosis = diagnosis
        self.provider_code = provider_code
        self.request_id = request_id
        self.usage = usage
        self.text = text
        self.parts = parts

    def as_error(self) -> StoredError:
        """Write the failure as a run's error."""
        return {
            "code": self.code,
            "detail": self.message,
            "fix": self.fix,
            "retryable": self.retryable,
            "providerStatus": self.status,
            "providerRequestId": self.request_id,
        }


class Interrupted(Exception):
    """There is no time left to make a request ready: its run was cancelled, or its deadline has passed."""


class ProviderStream(Protocol):
    """
    A call under way. Iterate it once, to the end; it raises `ProviderFailure`.

    `close` from another thread hangs up at once: the iteration then ends without an `Answer`, and
    `usage_so_far` tells what was reported until then, its output estimated, or None.
    """

    def __iter__(self) -> Iterator[StreamEvent]: ...

    def close(self) -> None: ...

    def usage_so_far(self) -> Usage | None: ...


class Adapter(Protocol):
    """
    How Rensei talks to one provider.

    `warm_up` loads what the first call would load. `build` is pure. `prepare` may fetch and shrink images, and runs
    in the worker before the attempt; it asks `seconds_left` before each and raises `Interrupted` at 0.
    `count_input_tokens` and `stream` make calls and raise `ProviderFailure`; `test_connection` makes calls and
    returns its verdict. `fit` makes the parameters fit once the input is counted exactly. `check_key` judges the
    form of a key that is already stripped of white space around it. `refusals` are those that `check_input`, `build`
    and `prepare` may raise.
    """

    provider: ClassVar[str]
    refusals: ClassVar[tuple[type[RenseiError], ...]]

    def warm_up(self) -> None: ...

    def check_key(self, key: Secret, *, base_url: str = "") -> None: ...

    def default_base_url(self) -> str: ...

    def check_input(self, *, messages: list[dict[str, Any]], entry: CatalogEntry) -> None: ...

    def build(self, request: ModelRequest, *, entry: CatalogEntry) -> BuiltRequest: ...

    def prepare(
        self, messages: list[dict[str, Any]], *, entry: CatalogEntry, seconds_left: Callable[[], float]
    ) -> list[dict[str, Any]]: ...

    def count_input_tokens(
        self, params: Mapping[str, Any], *, credential: Credential, context_window_tokens: int
    ) -> int: ...

    def fit(self, params: Mapping[str, Any], *, input_tokens: int, context_window_tokens: int) -> dict[str, Any]: ...

    def stream(
        self, params: Mapping[str, Any], *, credential: Credential, attempt_id: str, timeout_seconds: float
    ) -> ProviderStream: ...

    def test_connection(self, *, credential: Credential) -> Verdict: ...

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
