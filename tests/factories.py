"""What tests make with few words: a connected key and a profile, as a member makes them."""

from typing import Any

from integrations.keys import services as integrations
from integrations.models import Integration
from profiles import services as profiles
from profiles.models import ModelProfile
from rensei.core.clock import database_now
from rensei.core.ids import new_id
from rensei.core.secret import Secret
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.orgs.models import Org, User

MODEL = "claude-opus-5-5"


def connect_key(access: Access, key: str, **fields: Any) -> Integration:
    return integrations.add_integration(
        access, **{"provider": "claude", "api_key": Secret(key), "name": "Main", **fields}
    )


def create_profile(access: Access, **fields: Any) -> ModelProfile:
    defaults = {"name": "deep", "provider": "claude", "model_id": MODEL, "auth_modes": ["byok"]}
    return profiles.create_profile(access, **{**defaults, **fields})


def past_run(org: Org, person: User, **fields: Any) -> Run:
    """A run that has ended just now, as its row says it. No call was made for it."""
    now = database_now()
    defaults = {
        "id": new_id("run"),
        "provider": "claude",
        "model_id": MODEL,
        "served_model_id": MODEL,
        "auth_mode": "byok",
        "payer": "organization",
        "max_tokens": 100,
        "state": "SUCCEEDED",
        "usage": {},
        "deadline_at": now,
        "created_at": now,
        "finished_at": now,
    }
    return Run.objects.bulk_create([Run(org=org, created_by=person, **{**defaults, **fields})])[0]
