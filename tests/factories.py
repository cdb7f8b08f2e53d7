"""What tests make with few words: a connected key and a profile, as a member makes them."""

from typing import Any

from integrations.keys import services as integrations
from integrations.models import Integration
from profiles import services as profiles
from profiles.models import ModelProfile
from rensei.core.secret import Secret
from rensei.orgs.access import Access

MODEL = "claude-opus-5-5"


def connect_key(access: Access, key: str, **fields: Any) -> Integration:
    return integrations.add_integration(
        access, **{"provider": "claude", "api_key": Secret(key), "name": "Main", **fields}
    )


def create_profile(access: Access, **fields: Any) -> ModelProfile:
    defaults = {"name": "deep", "provider": "claude", "model_id": MODEL, "auth_modes": ["byok"]}
    return profiles.create_profile(access, **{**defaults, **fields})
