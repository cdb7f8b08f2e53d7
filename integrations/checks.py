"""Django system checks: whether the allow-list of addresses and the providers of outer keys can be read."""

from typing import Any

from django.conf import settings
from django.core.checks import Error, register

from integrations.outbound.destinations import faulty_entries
from integrations.vault import kek_providers


@register
def outbound_allowlist(app_configs: Any, **options: Any) -> list[Error]:
    """Report entries that would match nothing, such as a host without its scheme."""
    return [
        Error(
            f"RENSEI_OUTBOUND_ALLOWLIST: '{entry}' does not begin with scheme://host:port.",
            hint="Write http://llm.internal:8080, or https://llm.internal acme beta.",
            id="rensei.E003",
        )
        for entry in faulty_entries(settings.RENSEI_OUTBOUND_ALLOWLIST)
    ]


@register
def kek_url(app_configs: Any, **options: Any) -> list[Error]:
    """Report an address of a key service that cannot be used. No service is called."""
    return [
        Error(
            f"RENSEI_KEK_URL: {fault}.",
            hint="docs/vault.md lists the addresses, one for each kind of key service.",
            id="rensei.E004",
        )
        for fault in kek_providers.faults()
    ]
