"""What an examination of the ledger finds: one thing that is not as it must be."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Difference:
    """`kind` is a word of `docs/ledger.md`, `object` the id or the place of what differs."""

    kind: str
    org: str
    object: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.kind} {self.org} {self.object}: expected {self.expected}, found {self.found}"
