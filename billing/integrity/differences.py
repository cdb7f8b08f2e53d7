"""A finding of the verification of the ledger."""

from collections.abc import Iterator
from dataclasses import dataclass

import structlog
from django.db import DatabaseError

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """`kind` is a word from `docs/ledger.md`; `object` is the id or the place of what differs."""

    kind: str
    org: str
    object: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.kind} {self.org} {self.object}: expected {self.expected}, found {self.found}"


def as_far_as_readable(check: Iterator[Difference], *, org: str, place: str) -> Iterator[Difference]:
    """Yield what a check finds. Where it fails on a row, it has found an unreadable one, and other checks continue."""
    try:
        yield from check
    except DatabaseError:
        raise
    except Exception as fault:
        logger.exception("audit_check_broken_off", org_id=org, place=place)
        yield unreadable(org=org, place=place, fault=fault)


def unreadable(*, org: str, place: str, fault: BaseException) -> Difference:
    """Return the difference of what cannot be read, and so not be compared."""
    found = type(fault).__name__
    return Difference(kind="unreadable", org=org, object=place, expected="figures that can be read", found=found)
