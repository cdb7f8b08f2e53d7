"""What tests of federated credentials need: ids of the right shape, and a stand-in that trusts this server."""

import secrets
import uuid
from typing import Any

from integrations.keys import credentials
from integrations.providers.base import Federation
from integrations.vault import issuer
from rensei.orgs.models import Org

AUDIENCE = "https://api.anthropic.com"


def published_keys() -> list[dict[str, str]]:
    return [issuer.public_key(key_id) for key_id in issuer.key_ids()]


def make_federation() -> Federation:
    return Federation(
        rule_id=f"fdrl_{secrets.token_hex(12)}",
        organization_id=str(uuid.uuid4()),
        service_account_id=f"svac_{secrets.token_hex(12)}",
    )


def rule_for(federation: Federation, *, subject: str, **changes: Any) -> dict[str, Any]:
    """Make the rule, as an admin makes it in the Console."""
    rule = {
        "id": federation.rule_id,
        "organization_id": federation.organization_id,
        "service_account_id": federation.service_account_id,
        "subject": subject,
        "audience": AUDIENCE,
        "workspaces": ["default"],
    }
    return {**rule, **changes}


def trust(simulator: Any, org: Org, federation: Federation, **changes: Any) -> None:
    """Register the keys of this process inline, with a rule for an organization."""
    issuer.require_key()
    simulator.trust(
        issuer=changes.pop("issuer", issuer.issuer_url()),
        keys=changes.pop("keys", None) or published_keys(),
        rules=[rule_for(federation, **{"subject": credentials.subject_of(org), **changes})],
    )
