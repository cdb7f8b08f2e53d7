"""What has to be entered at a provider, so that it trusts this server's identity in place of a stored key."""

from dataclasses import dataclass

from catalog import providers
from integrations.keys import credentials
from integrations.vault import issuer
from rensei.core.errors import NotFound
from rensei.orgs.access import Access


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a provider has to know about this server to trust the identity of an organization. None of it is secret."""

    issuer: str
    jwks_url: str
    subject: str
    audience: str


def identity_of(access: Access, *, provider: str) -> Identity:
    """
    State who this server says that the organization is, to be entered at the provider before it is connected.

    The first use makes the signing key, because a provider checks that the issuer has one.

    :raises NotFound: if the provider is unknown, or offers no federation
    :raises CredentialUnreadable: if the vault cannot seal now
    """
    access.require_org_manager()
    spec = providers.PROVIDERS.get(provider)
    if spec is None or not spec.federation_audience:
        raise NotFound
    issuer.require_key()
    return Identity(
        issuer=issuer.issuer_url(),
        jwks_url=f"{issuer.issuer_url()}{issuer.KEYS_PATH}",
        subject=credentials.subject_of(access.org),
        audience=spec.federation_audience,
    )
