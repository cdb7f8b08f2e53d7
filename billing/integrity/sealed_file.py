"""
`python -m billing.integrity.sealed_file EXPORT --witness FILE`: verify an exported chain against witnesses.

It needs no database, key or settings: an outside person uses it to verify an export received from an operator.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from billing.integrity import digests

FORMAT = "rensei-chain-1"
# The name of the chain in digests of audit events. A ledger's chain is named by the id of its organization.
AUDIT_CHAIN = "audit-seal"


class NotAnExport(Exception):
    """The file is not a chain as written by `export_ledger`."""


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """One line of a file of anchors."""

    counter: int | None
    previous: str
    # None: it covers the audit log of all organizations.
    org: str | None
    seq: int
    digest: str
    anchored_at: str
    signature: str
    # The id of the key that signs after this anchor, where it hands over to another one.
    next_key: str = ""
    # Whether others know the key that it hands over from.
    old_key_known: bool = False

    @classmethod
    def read(cls, content: dict[str, Any]) -> "Anchor":
        """:raises NotAnExport: if the content is not an anchor"""
        try:
            counter, org = content.get("counter"), content["org"]
            return cls(
                counter=None if counter is None else int(counter),
                previous=str(content.get("previous", "")),
                org=None if org is None else str(org),
                seq=int(content["lines"]),
                digest=str(content["digest"]),
                anchored_at=str(content["anchoredAt"]),
                signature=str(content["signature"]),
                next_key=str(content.get("nextKey", "")),
                old_key_known=bool(content.get("oldKeyKnown", False)),
            )
        except (KeyError, TypeError, ValueError):
            raise NotAnExport("a line is not an anchor") from None

    def own_digest(self) -> str:
        """Return the digest that the next anchor holds."""
        said = digests.said_by_anchor(
            counter=self.counter,
            previous=self.previous,
            org=self.org,
            seq=self.seq,
            digest=self.digest,
            anchored_at=self.anchored_at,
            next_key=self.next_key,
            old_key_known=self.old_key_known,
        )
        return digests.of_anchor(said, self.signature)


@dataclass(kw_only=True)
class Findings:
    """The faults found, at most one for each source, and the last anchor that each witness confirms."""

    noun: str
    org: str | None
    rows: int = 0
    wrong: list[str] = field(default_factory=list)
    vouched: list[str] = field(default_factory=list)


def verify(export: Iterable[str], witnesses: Mapping[str, Iterable[str]]) -> Findings:
    """
    Recompute every digest of an export, and compare it with the anchors that each witness holds.

    :raises NotAnExport: if it was not written by `export_ledger`, or a witness holds anything but anchors
    """
    documents = _documents(export)
    head = next(documents, None)
    if not head or head.get("format") != FORMAT:
        raise NotAnExport(f"it does not begin with the line of an export in the format {FORMAT}")
    found = Findings(noun=str(head.get("rows")), org=head.get("org"))
    held = {name: list(_held(found, lines, name)) for name, lines in witnesses.items()}
    # Only the digests of these places are stored, so a long chain takes no more memory than a short one.
    known = dict.fromkeys(anchor.seq for anchors in held.values() for anchor in anchors)
    _walk(found, documents, chain=str(head.get("chain")), known=known)
    for name, anchors in held.items():
        found.wrong += islice(_unmet(found, anchors, known, name), 1)
        found.vouched.append(_vouches(found, anchors, name))
    return found


def _held(found: Findings, lines: Iterable[str], name: str) -> Iterator[Anchor]:
    """Read a witness's anchors of this chain. A witness may hold all anchors or only some."""
    before: Anchor | None = None
    is_broken = False
    for document in _documents(lines):
        anchor = Anchor.read(document)
        follows = before is not None and before.counter is not None and anchor.counter == before.counter + 1
        if before is not None and follows and anchor.previous != before.own_digest() and not is_broken:
            is_broken = True
            found.wrong.append(f"{name}: anchor {anchor.counter} does not continue the one before it")
        before = anchor
        if anchor.org == found.org:
            yield anchor


def _walk(found: Findings, documents: Iterable[dict[str, Any]], *, chain: str, known: dict[int, str | None]) -> None:
    """Check the rows and anchors of the export up to the first mismatch, and record the digests of `known`."""
    previous = digests.START
    for document in documents:
        if "seq" not in document:
            anchor = Anchor.read(document)
            here = {found.rows: previous}
            found.wrong += islice(_unmet(found, [anchor], here, "the export"), 1)
        else:
            found.rows += 1
            fault, previous = _examine(found, document, chain=chain, previous=previous)
            if fault:
                found.wrong.append(f"{found.noun} {found.rows}: {fault}")
            elif found.rows in known:
                known[found.rows] = previous
        if found.wrong:
            return


def _examine(found: Findings, document: dict[str, Any], *, chain: str, previous: str) -> tuple[str, str]:
    """Return what is wrong with a row, or an empty text, and the recomputed digest."""
    row = document.get("row")
    if document["seq"] != found.rows:
        return f"the next one in the file is {document['seq']}", previous
    if not isinstance(row, dict):
        return "it is missing, and its seal is not", previous
    digest = digests.of_row(row, chain=chain, seq=found.rows, previous=previous)
    is_of_chain = row.get("org_id") == chain if found.org is not None else chain == AUDIT_CHAIN
    if digest != document.get("digest") or not is_of_chain or found.org not in (chain, None):
        return "it is not what was sealed", digest
    return "", digest


def _unmet(found: Findings, anchors: Iterable[Anchor], known: Mapping[int, str | None], name: str) -> Iterator[str]:
    """Find the anchors of a source that do not match the rows."""
    for anchor in anchors:
        if anchor.org != found.org:
            yield f"{name}: anchor {anchor.counter} is of another chain"
        elif anchor.seq > found.rows:
            yield f"{name}: anchor {anchor.counter} is about {anchor.seq} {found.noun}(s), and here are {found.rows}"
        elif known.get(anchor.seq) != anchor.digest:
            yield f"{name}: anchor {anchor.counter} knows another {found.noun} {anchor.seq}"


def _vouches(found: Findings, anchors: Sequence[Anchor], name: str) -> str:
    if not anchors:
        return f"{name} holds no anchor of this chain, and vouches for nothing."
    last = max(anchors, key=lambda anchor: anchor.seq)
    rest = found.rows - last.seq
    said = f"{name} vouches up to {found.noun} {last.seq}, by anchor {last.counter} of {last.anchored_at}"
    return f"{said}, and not for the {rest} after it." if rest else f"{said}, which is the last one."


def _documents(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise NotAnExport(f"line {number} is not a JSON object")
        yield document


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m billing.integrity.sealed_file", description=(__doc__ or "").strip()
    )
    parser.add_argument("export", type=Path, help="a file of `manage.py export_ledger`")
    parser.add_argument(
        "--witness", type=Path, action="append", default=[], help="a file of anchors, one a line; may be repeated"
    )
    asked = parser.parse_args()
    try:
        with ExitStack() as files:
            witnesses = {str(path): files.enter_context(path.open()) for path in asked.witness}
            found = verify(files.enter_context(asked.export.open()), witnesses)
    except (OSError, UnicodeDecodeError, NotAnExport) as fault:
        sys.stderr.write(f"It could not be verified: {fault}.\n")
        return 2
    if found.wrong:
        sys.stdout.write("".join(f"WRONG {sentence}\n" for sentence in found.wrong))
        return 1
    none = "No witness was given, and a chain that was computed anew as a whole fits in itself, too."
    said = [f"{found.rows} {found.noun}(s): the chain fits in itself.", *(found.vouched or [none])]
    sys.stdout.write("".join(f"{sentence}\n" for sentence in said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
