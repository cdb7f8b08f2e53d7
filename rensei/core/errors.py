"""The errors that Rensei answers with, for people and for programs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, ClassVar, NotRequired, Self, TypedDict

import structlog
from django.db import InterfaceError, OperationalError

from rensei.core.limits import limit

# The database is unavailable, full, or locked for too long. A faulty statement raises another error.
DATABASE_FAULTS = (OperationalError, InterfaceError)
ERRORS_MAX = limit(
    100,
    "errors",
    what="Fields of a REST request that are refused at once",
    told="the caller: the first of them, in `errors` of 400 `VALIDATION_FAILED`",
)

logger = structlog.get_logger(__name__)


class Said(str):
    """The sentence of an error, whose halves are its cause and what to do about it."""

    cause: str
    fix: str

    def __new__(cls, cause: str, fix: str) -> Self:
        said = super().__new__(cls, f"{cause} {fix}")
        said.cause, said.fix = cause, fix
        return said


class RenseiError(Exception):
    """
    An expected error, with a code that programs can match on.

    Subclasses are defined beside the function that raises them and set the class attributes; they
    inherit one level deep, so that `__subclasses__` lists every code. Any other exception is a bug,
    and answers 500.

    `message` is a format string over the keyword arguments: the sentence of the documentation, and `Said` with what
    to do. A problem document has both in `detail`.
    `extra` is added to the problem document (`resetsAt`, `used`). `gateway_message` is the
    same in the words of the Messages API, where `message` names what only REST has.
    """

    code: ClassVar[str]
    status: ClassVar[int] = 400
    title: ClassVar[str]
    message: ClassVar[str]
    gateway_message: ClassVar[str] = ""
    retryable: bool = False

    def __init__(self, *, extra: Mapping[str, Any] | None = None, **details: object) -> None:
        self.extra = dict(extra or {})
        self.detail = self.message.format(**details)
        self.detail_for_gateway = self.gateway_message.format(**details) if self.gateway_message else self.detail
        self.cause = self.message.cause.format(**details) if isinstance(self.message, Said) else self.detail
        self.fix = self.message.fix.format(**details) if isinstance(self.message, Said) else ""
        super().__init__(self.detail)


class FieldError(RenseiError):
    """A value in the request is wrong. `pointer` is a JSON pointer to it, such as `/authModes/0`."""

    code = "VALIDATION_FAILED"
    status = 400
    title = "The request is not valid"
    message = "{reason}"

    def __init__(self, *, pointer: str, reason: str) -> None:
        super().__init__(reason=reason)
        self.errors = [{"pointer": pointer, "code": "invalid", "detail": reason}]

    @classmethod
    def several(cls, found: Sequence["FieldError"]) -> Self:
        """Report many wrong values at once; `detail` is the sentence of the first one."""
        refusal = cls(pointer="", reason=found[0].detail)
        refusal.errors = [error for one in found for error in one.errors]
        return refusal


class StoredError(TypedDict):
    """Why a run or a key failed, as its row stores it: a code, a sentence for people, and how to fix it."""

    code: str
    detail: str
    fix: str
    retryable: NotRequired[bool]
    providerStatus: NotRequired[int | None]
    providerRequestId: NotRequired[str]


def json_pointer(*steps: str | int) -> str:
    """Write the address of a value inside a JSON document, as RFC 6901 defines it."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


class NotFound(RenseiError):
    """The object does not exist, or belongs to another organization: the answer is the same."""

    code = "NOT_FOUND"
    status = 404
    title = "Not found"
    message = Said("Nothing is here under {what}.", "Check the id and the organization.")
    gateway_message = "There is no such model or profile for this token. GET /v1/models lists those that there are."

    def __init__(self, *, pointer: str = "") -> None:
        name = pointer.removeprefix("/")
        super().__init__(what=f"the id in {name}" if name else "that address")
        if name:
            self.errors = [{"pointer": pointer, "code": "not_found", "detail": self.cause}]


@contextmanager
def named_in(pointer: str) -> Iterator[None]:
    """
    Look up the object that a field of the request's body names.

    :raises NotFound: with the field added, where the lookup raised it without one
    """
    try:
        yield
    except NotFound as missing:
        raise NotFound(pointer=pointer) from missing


class NotPermitted(RenseiError):
    """The caller is authenticated, but may not do this."""

    code = "NOT_PERMITTED"
    status = 403
    title = "Not permitted"
    message = Said("Your role does not allow this.", "Ask an owner or admin of the organization.")


class AlreadyExists(RenseiError):
    """Another object of the same organization has that name or id."""

    code = "ALREADY_EXISTS"
    status = 409
    title = "Already exists"
    message = Said("{what} already exists.", "Choose another name, or change the existing one.")


class InUse(RenseiError):
    """Another object depends on this one, so it cannot be deleted."""

    code = "IN_USE"
    status = 409
    title = "In use"
    message = Said("{what} is used by {users}.", "Change or remove those first.")


class RateLimited(RenseiError):
    """The caller sent too many requests. `Retry-After` says when to retry."""

    code = "RATE_LIMITED"
    status = 429
    title = "Too many requests"
    message = Said("Too many requests.", "Try again in {seconds} s.")
    retryable = True


class DatabaseUnavailable(RenseiError):
    """The database is unavailable or full. The request was not carried out, and can be sent again."""

    code = "DATABASE_UNAVAILABLE"
    status = 503
    title = "The database does not answer"
    message = Said(
        "Rensei cannot use its database at the moment.", "What you asked for was not done. Try again in a few seconds."
    )
    retryable = True

    def __init__(self) -> None:
        super().__init__(extra={"retryAfter": 5})


def note_refused(refusal: RenseiError, **context: object) -> None:
    """Log that access was denied. The rate of such requests is limited, and so is the log."""
    if refusal.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        logger.info("access_refused", code=refusal.code, **context)


def database_refusal(fault: BaseException, **context: object) -> DatabaseUnavailable:
    """Log one of the `DATABASE_FAULTS`, and return the error that every endpoint answers it with."""
    logger.warning("database_unavailable", fault=type(fault).__name__, said=str(fault), **context)
    return DatabaseUnavailable()
