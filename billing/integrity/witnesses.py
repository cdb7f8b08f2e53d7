"""
Witnesses outside the installation, which are notified of each anchor: an https address, and a mail address.

The content is not secret: an anchor is digests, numbers and a signature. `manage.py verify_ledger --witness FILE`
compares what a witness holds with the database.
"""

import json
import smtplib
from collections.abc import Callable, Sequence
from datetime import timedelta

import httpx2
import structlog
from django.conf import settings

from billing.integrity.anchor_files import content_of
from billing.models import LedgerAnchor, LedgerWitness
from rensei.core import mails
from rensei.core.clock import database_now
from rensei.core.transactions import leave_database
from rensei.layout import MANAGE

BATCH = 200
BATCHES_IN_A_TURN = 5
SECONDS_MAX = 10.0
MAIL_EVERY = timedelta(hours=1)

logger = structlog.get_logger(__name__)


class WitnessRefused(Exception):
    """The address did not accept the anchors."""


def tell() -> None:
    """Send each witness the anchors that it has not received. A failed delivery is repeated next time."""
    if settings.RENSEI_LEDGER_WITNESS_URL:
        for _ in range(BATCHES_IN_A_TURN):
            if not _tell(settings.RENSEI_LEDGER_WITNESS_URL, _post, newest_only=False):
                break
    if settings.RENSEI_LEDGER_WITNESS_EMAIL and _mail_is_due():
        _tell(settings.RENSEI_LEDGER_WITNESS_EMAIL, _mail, newest_only=True)


def _tell(name: str, send: Callable[[Sequence[LedgerAnchor]], None], *, newest_only: bool) -> bool:
    """Notify one witness, and return whether more anchors remain."""
    witness, _ = LedgerWitness.objects.get_or_create(name=name[:300])
    untold = LedgerAnchor.objects.filter(counter__gt=witness.counter)
    anchors = list(untold.order_by("-counter")[:1] if newest_only else untold.order_by("counter")[:BATCH])
    if not anchors:
        return False
    leave_database()
    known = LedgerWitness.objects.filter(name=witness.name)
    try:
        send(anchors)
    except (httpx2.HTTPError, httpx2.InvalidURL, WitnessRefused, OSError, smtplib.SMTPException) as fault:
        # Only our own text: a library's message may quote the address, which may contain a token.
        why = str(fault) if isinstance(fault, WitnessRefused) else type(fault).__name__
        logger.warning("ledger_witness_not_told", why=why)
        known.update(last_error=why[:200])
        return False
    known.update(counter=anchors[-1].counter, told_at=database_now(), last_error="")
    return len(anchors) == BATCH


def _post(anchors: Sequence[LedgerAnchor]) -> None:
    """:raises WitnessRefused: if the answer is not a success. A redirect is not a success."""
    address = settings.RENSEI_LEDGER_WITNESS_URL
    if httpx2.URL(address).scheme != "https" and not _is_loopback(address):
        raise WitnessRefused("the address is not https")
    body = "".join(f"{json.dumps(content_of(each))}\n" for each in anchors)
    headers = {"content-type": "application/x-ndjson"}
    answer = httpx2.post(address, content=body, headers=headers, timeout=SECONDS_MAX, follow_redirects=False)
    if not answer.is_success:
        raise WitnessRefused(f"the address answered {answer.status_code}")


def _is_loopback(address: str) -> bool:
    return httpx2.URL(address).host in {"127.0.0.1", "::1", "localhost"}


def _mail(anchors: Sequence[LedgerAnchor]) -> None:
    (newest,) = anchors
    mails.send(
        f"Rensei ledger: anchor {newest.counter}",
        "Keep this mail. It shows later that the ledger was not cut before this anchor: put the line below into a\n"
        f"file, and run `{MANAGE} verify_ledger --witness FILE`.\n\n"
        f"{json.dumps(content_of(newest))}\n",
        [settings.RENSEI_LEDGER_WITNESS_EMAIL],
    )


def _mail_is_due() -> bool:
    told = LedgerWitness.objects.filter(name=settings.RENSEI_LEDGER_WITNESS_EMAIL[:300])
    last = told.values_list("told_at", flat=True).first()
    return last is None or database_now() - last >= MAIL_EVERY
