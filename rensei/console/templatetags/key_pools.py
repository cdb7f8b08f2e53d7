"""The state of a key pool, beside each refusal that it has no key."""

from typing import Any

from django import template
from django.template import Context

from catalog.providers import PROVIDERS
from integrations.keys import outages
from integrations.models import PlatformKey
from rensei.core.clock import database_now

register = template.Library()
POOL_OF_CODE = {
    "METERED_KEY_NOT_CONFIGURED": PlatformKey.Pool.METERED,
    "SHARED_KEY_NOT_CONFIGURED": PlatformKey.Pool.SHARED,
}


@register.inclusion_tag("console/_key_pool.html", takes_context=True)
def key_pool(context: Context, code: str | None, provider: str, model_id: str | None) -> dict[str, Any]:
    """Say why the pool has no key and when it has one again. Nothing for any other code, or once it has a key."""
    pool = POOL_OF_CODE.get(code or "")
    if pool is None or model_id is None or provider not in PROVIDERS:
        return {}
    request = context["request"]
    # The keys are few, and several refusals on one page share them.
    if not hasattr(request, "platform_keys"):
        request.platform_keys = list(outages.known_keys())
        request.platform_keys_read_at = database_now()
    outage = outages.outage_of(
        request.platform_keys, provider=provider, pool=pool, model_id=model_id, now=request.platform_keys_read_at
    )
    return {
        "outage": outage,
        "pool": pool.value,
        "provider": PROVIDERS[provider].display_name,
        "model_id": model_id,
        "is_operator": request.user.is_staff,
    }
