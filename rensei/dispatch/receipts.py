"""
The signed receipt of a run: which credential signed, who paid, where it ran, what it cost, and its place in the ledger.

The signature is made with a key that is derived from the key of the ledger's anchors, so that write access to the
database alone cannot make one. The public key is published, and a receipt is verified without this server.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from django.conf import settings

from billing.integrity import anchor_files, anchor_keys, receipts
from billing.integrity.anchor_keys import AnchorKeyUnavailable, Keys
from billing.integrity.chains import LEDGER
from billing.integrity.digests import START
from billing.models import CostEvent, LedgerAnchor, LedgerSeal
from integrations.models import Integration
from integrations.vault import signing
from rensei.core import periods
from rensei.core.api import camel
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError, Said
from rensei.core.money import dollars
from rensei.core.token_classes import TOKEN_CLASSES
from rensei.dispatch.models import Attempt, Run, RunInput
from rensei.dispatch.modes import MODES

FORMAT = "rensei-receipt-1"
PURPOSE = "rensei receipt 1"
PUBLIC_KEY_BYTES = 32
# How many ledger lines are read at a time while a part of the chain is compared.
PAGE = 500


class ReceiptNotReady(RenseiError):
    """The run has not ended, or its ledger lines are not sealed and anchored yet."""

    code = "RECEIPT_NOT_READY"
    status = 409
    title = "No receipt yet"
    message = Said("{reason}", "A receipt exists about a minute after the end of a run. Ask for it again then.")
    retryable = True


class ReceiptDisagrees(RenseiError):
    """The run's ledger lines are not what was sealed, so a receipt of them would be false."""

    code = "RECEIPT_DISAGREES"
    status = 409
    title = "The ledger differs from its seals"
    message = Said(
        "The ledger line {line} is not what was sealed, so no receipt is signed for this run.",
        "Ask your Rensei operator to run the audit of the ledger.",
    )


class ReceiptKeyUnavailable(RenseiError):
    """The key of the ledger's anchors cannot be read, so nothing can be signed."""

    code = "RECEIPT_KEY_UNAVAILABLE"
    status = 503
    title = "No key to sign receipts"
    message = Said(
        "This server cannot sign receipts: the key of the ledger's anchors is missing or unreadable.",
        "Ask your Rensei operator to make it readable for the web processes.",
    )


def receipt_of(run: Run) -> dict[str, Any]:
    """
    Sign the receipt of a run.

    :raises RenseiError: RECEIPT_NOT_READY, RECEIPT_DISAGREES or RECEIPT_KEY_UNAVAILABLE
    """
    attempts = list(Attempt.objects.filter(run=run).order_by("number"))
    if run.state not in Run.ENDED or any(attempt.state == Attempt.State.OPEN for attempt in attempts):
        raise ReceiptNotReady(reason="The run has not ended, or its last call is not settled.")
    lines = list(CostEvent.objects.for_org(run.org).of_calls().filter(run_id=run.id).order_by("id"))
    seals = _seals_of(run, lines)
    anchor = _proving_anchor(run, lines, seals)
    keys = _keys()
    for line in lines:
        # A run's row is not sealed, its lines are.
        if (line.auth_mode, line.payer, line.provider) != (run.auth_mode, run.payer, run.provider):
            raise ReceiptDisagrees(line=line.id)
    document = {
        "format": FORMAT,
        "alg": "EdDSA",
        "kid": kid_of(signing.public_key(keys.active, purpose=PURPOSE)),
        "receipt": {
            "issuer": settings.PUBLIC_URL,
            "issuedAt": _moment(database_now()),
            "organization": {"id": run.org_id, "slug": run.org.slug},
            **_run(run),
            "credential": _credential(run, attempts),
            "attempts": [_attempt(attempt) for attempt in attempts],
            "lines": [_line(line, seals[line.id]) for line in lines],
            "total": _total(lines),
            "ledger": {"chain": run.org_id, "anchor": _anchor(anchor)},
        },
    }
    signature = signing.sign(canonical(document), keys.active, purpose=PURPOSE)
    return {**document, "signature": encoded(signature)}


def canonical(document: Mapping[str, Any]) -> bytes:
    """
    Write what is signed: sorted names, no spaces, UTF-8.

    It is the form of RFC 8785, because the documents have no fractions and no name outside of ASCII.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode(errors="surrogatepass")


def public_keys() -> list[dict[str, str]]:
    """List the public keys that verify receipts: the one in use, and those that operators have replaced."""
    before = [decoded(text) for text in settings.RENSEI_RECEIPT_KEYS_BEFORE]
    found = []
    with suppress(ReceiptKeyUnavailable):
        keys = _keys()
        found.append(_published(signing.public_key(keys.active, purpose=PURPOSE), status="active"))
        before = [*(signing.public_key(key, purpose=PURPOSE) for key in keys.replaced.values()), *before]
    return [*found, *(_published(public, status="replaced") for public in dict.fromkeys(before))]


def kid_of(public: bytes) -> str:
    """Return the id of a public key: its thumbprint of RFC 7638."""
    said = {"crv": "Ed25519", "kty": "OKP", "x": encoded(public)}
    return encoded(hashlib.sha256(canonical(said)).digest())


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def decoded(text: str) -> bytes:
    """:raises ValueError: if it is not base64url"""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _published(public: bytes, *, status: str) -> dict[str, str]:
    """Write a public key as RFC 8037 defines it."""
    key = {"kty": "OKP", "crv": "Ed25519", "x": encoded(public), "alg": "EdDSA", "use": "sig"}
    return {**key, "kid": kid_of(public), "status": status}


def _keys() -> Keys:
    """:raises ReceiptKeyUnavailable: if the key that signs cannot be read"""
    try:
        return receipts.keys_now()
    except AnchorKeyUnavailable as fault:
        raise ReceiptKeyUnavailable from fault


def _seals_of(run: Run, lines: Sequence[CostEvent]) -> dict[str, LedgerSeal]:
    """
    Find the seal of each line.

    :raises ReceiptNotReady: if a line has no seal yet
    """
    chain = LedgerSeal.objects.for_org(run.org).filter(event_id__in=[one.id for one in lines])
    found: dict[str, LedgerSeal] = {seal.event_id: seal for seal in chain}
    if len(found) < len(lines):
        raise ReceiptNotReady(reason="Its ledger lines are not sealed yet.")
    return found


def _proving_anchor(run: Run, lines: Sequence[CostEvent], seals: Mapping[str, LedgerSeal]) -> LedgerAnchor | None:
    """
    Compare the chain from each line to the first signed anchor after it, and return the last of these anchors.

    A seal alone proves nothing: who can write to the database can change a line together with its seal. The anchor's
    digest follows from all lines before it, so each line up to it is read. Anchors are at most a minute's lines apart.

    :raises ReceiptNotReady: if no anchor covers a seal yet
    :raises ReceiptDisagrees: if a line, a seal or an anchor was changed
    """
    anchor: LedgerAnchor | None = None
    for line in sorted(lines, key=lambda one: seals[one.id].seq):
        first = seals[line.id].seq
        if anchor is not None and first <= anchor.seq:
            continue
        anchor = LedgerAnchor.objects.for_org(run.org).filter(seq__gte=first).order_by("seq").first()
        if anchor is None:
            raise ReceiptNotReady(reason="Its ledger lines are sealed, and not signed yet.")
        if not anchor_keys.is_signed(anchor, _keys()) or _chain_digest(run, first, anchor.seq) != anchor.digest:
            raise ReceiptDisagrees(line=line.id)
    return anchor


def _chain_digest(run: Run, first: int, last: int) -> str:
    """
    Compute the digest of a part of the organization's chain from its lines.

    :raises ReceiptDisagrees: if a line or a seal is missing, or a line is not what was sealed
    """
    chain = LedgerSeal.objects.for_org(run.org)
    digest: str = chain.filter(seq=first - 1).values_list("digest", flat=True).first() or START
    for start in range(first, last + 1, PAGE):
        stop = min(start + PAGE - 1, last)
        page = {seal.seq: seal for seal in chain.filter(seq__range=(start, stop))}
        rows = CostEvent.objects.for_org(run.org).in_bulk([seal.event_id for seal in page.values()])
        for seq in range(start, stop + 1):
            seal = page.get(seq)
            row = rows.get(seal.event_id) if seal is not None else None
            if seal is None or row is None:
                raise ReceiptDisagrees(line=seal.event_id if seal is not None else f"number {seq}")
            digest = LEDGER.digest(row, seq=seq, previous=digest)
            if digest != seal.digest:
                raise ReceiptDisagrees(line=row.id)
    return digest


def _run(run: Run) -> dict[str, Any]:
    """The facts of a run that its ledger lines do not repeat."""
    given = RunInput.objects.filter(run=run).first()
    is_whole = given is not None and given.images_dropped_at is None
    said = {"messages": given.body.get("messages"), "system": given.body.get("system")} if given and is_whole else None
    return {
        "run": {
            "id": run.id,
            "state": run.state,
            "via": run.via,
            "profileId": run.profile_id or None,
            "projectId": run.project.slug if run.project else None,
            "createdAt": _moment(run.created_at),
            "startedAt": _moment(run.started_at),
            "finishedAt": _moment(run.finished_at),
        },
        "provider": run.provider,
        "model": {
            "asked": run.asked_model_id or run.model_id,
            "requested": run.model_id,
            "served": run.served_model_id,
        },
        "authMode": run.auth_mode,
        "payer": run.payer,
        "place": {
            "pool": run.pool,
            "host": {"id": run.host.id, "name": run.host.name} if run.host else None,
        },
        "promptSha256": hashlib.sha256(canonical(said)).hexdigest() if said else None,
        "answerSha256": hashlib.sha256(run.output_text.encode()).hexdigest() if run.output_text else None,
    }


def _credential(run: Run, attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Name the credential as the pages do. A key of the platform is named by its pool only."""
    if run.auth_mode == AuthMode.HOST_SESSION:
        return {"kind": "host-login", "id": run.host_id, "name": run.host.name if run.host else None, "keyHint": None}
    if run.auth_mode != AuthMode.BYOK:
        pool = MODES[AuthMode(run.auth_mode)].pool_id(run.provider)
        return {"kind": "platform-pool", "id": pool, "name": None, "keyHint": None}
    key = Integration.objects.for_org(run.org).filter(id=run.credential_id).first()
    # The hint is that of the present key, so it is given only where no attempt used an earlier one.
    is_same = (
        key is not None and bool(attempts) and all(one.credential_version == key.secret_version for one in attempts)
    )
    return {
        "kind": "integration",
        "id": run.credential_id,
        "name": key.name if key else None,
        "keyHint": key.key_hint if key and is_same else None,
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "id": attempt.id,
        "number": attempt.number,
        "state": attempt.state,
        "credentialVersion": attempt.credential_version,
        "providerRequestId": attempt.provider_request_id or None,
        "startedAt": _moment(attempt.started_at),
        "finishedAt": _moment(attempt.finished_at),
    }


def _line(line: CostEvent, seal: LedgerSeal) -> dict[str, Any]:
    """One ledger line. `unitPrices` are picodollars for each token or search, so counts times prices is exact."""
    return {
        "id": line.id,
        "kind": line.kind,
        "adjusts": line.adjusts_id,
        "attemptId": line.attempt_id,
        "servedModel": line.served_model_id,
        "billingClass": line.billing_class,
        "counts": {camel(one.count): getattr(line, one.count) for one in TOKEN_CLASSES},
        "unitPrices": {camel(one.count): getattr(line, one.column) for one in TOKEN_CLASSES},
        "amountUsd": dollars(line.amount_picodollars),
        "billedUsd": dollars(line.billed_picodollars),
        "estimated": line.estimated,
        "occurredAt": _moment(line.occurred_at),
        "seal": {"seq": seal.seq, "digest": seal.digest, "sealedAt": _moment(seal.sealed_at)},
    }


def _total(lines: Sequence[CostEvent]) -> dict[str, Any]:
    amounts = [line.amount_picodollars for line in lines]
    known = [amount for amount in amounts if amount is not None]
    return {
        "amountUsd": dollars(sum(known)) if len(known) == len(amounts) else None,
        "billedUsd": dollars(sum(line.billed_picodollars for line in lines)),
        "estimated": any(line.estimated for line in lines),
    }


def _anchor(anchor: LedgerAnchor | None) -> dict[str, Any] | None:
    if anchor is None:
        return None
    return {
        "counter": anchor.counter,
        "lines": anchor.seq,
        "digest": anchor.digest,
        "anchoredAt": anchor_files.text_of(anchor.anchored_at),
    }


def _moment(value: datetime | None) -> str | None:
    return periods.written(value) if value else None
