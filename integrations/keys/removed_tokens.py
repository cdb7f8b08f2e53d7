"""The access tokens that this process holds of federated credentials which are no longer stored."""

from integrations.models import Integration, PlatformKey
from integrations.providers.anthropic.federation import tokens


def drop_removed_tokens() -> None:
    """Drop the tokens of credentials that were removed or replaced. Without tokens, the database is not read."""
    held = tokens.versions()
    if not held:
        return
    ids = [credential_id for credential_id, _ in held]
    stored = set(Integration.objects.filter(id__in=ids).values_list("id", "secret_version"))
    stored |= set(PlatformKey.objects.filter(id__in=ids).values_list("id", "secret_version"))
    tokens.drop(held - stored)
