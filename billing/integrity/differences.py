"""A finding of the verification of the ledger."""

from dataclasses import dataclass


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
