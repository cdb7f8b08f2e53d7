"""A chain as a file: its rows with seals and anchors, so that it can be verified without the database."""

import json
from collections.abc import Iterator

from billing.integrity.anchor_files import content_of
from billing.integrity.chains import Record
from billing.integrity.sealed_file import FORMAT
from billing.integrity.verification import sealed_rows
from billing.models import LedgerAnchor
from rensei.core.transactions import snapshot

BATCH = 500


def write(record: Record, org_id: str | None) -> Iterator[str]:
    """Write a chain as of one moment, one JSON object a line. Rows without a seal are left out."""
    with snapshot():
        yield _line({"format": FORMAT, "chain": record.name_of(org_id), "org": org_id, "rows": record.noun})
        signed = LedgerAnchor.objects.filter(org_id=org_id).order_by("seq", "pk").iterator(chunk_size=BATCH)
        anchor = next(signed, None)
        for seal, row in sealed_rows(record, org_id):
            content = None if row is None else record.content(row)
            yield _line({"seq": seal.seq, "digest": seal.digest, "row": content})
            while anchor is not None and anchor.seq <= seal.seq:
                yield _line(content_of(anchor))
                anchor = next(signed, None)
        while anchor is not None:
            yield _line(content_of(anchor))
            anchor = next(signed, None)


def _line(content: object) -> str:
    return json.dumps(content) + "\n"
