"""Django's checks at the start: that the public keys of earlier receipts can be read."""

import binascii
from typing import Any

from django.conf import settings
from django.core.checks import Error, register

from rensei.dispatch import receipts


@register
def earlier_receipt_keys(app_configs: Any, **options: Any) -> list[Error]:
    """Reject what is no public key, which would make the list of keys unreadable, and with it every receipt."""
    return [
        Error(
            f"Entry {number} of RENSEI_RECEIPT_KEYS_BEFORE is not the `x` of a key as /api/v1/receipt-keys shows it.",
            id="rensei.E006",
        )
        for number, text in enumerate(settings.RENSEI_RECEIPT_KEYS_BEFORE, start=1)
        if not _is_public_key(text)
    ]


def _is_public_key(text: str) -> bool:
    try:
        key = receipts.decoded(text)
    except (ValueError, binascii.Error):
        return False
    return len(key) == receipts.PUBLIC_KEY_BYTES and receipts.encoded(key) == text
