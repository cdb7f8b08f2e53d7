"""What dispatch tests need: a connected key, profiles, and a worker that runs what is queued."""

from collections.abc import Callable
from typing import Any

import pytest

from integrations.keys import services as integrations
from integrations.models import Integration
from profiles import services as profiles
from profiles.models import ModelProfile
from rensei.core.secret import Secret
from rensei.dispatch.execution.execute import execute
from rensei.dispatch.execution.lease_renewal import LeaseRenewal
from rensei.dispatch.models import Run
from rensei.dispatch.queue import claims
from rensei.orgs.access import Access
from rensei.orgs.models import Org, User


@pytest.fixture
def ada_access(acme: Org, ada: User, access_of: Callable[..., Access], catalog: None) -> Access:
    return access_of(ada)


@pytest.fixture
def connect(ada_access: Access, make_key: Callable[..., str]) -> Callable[..., Integration]:
    """Connect a key of Acme's. A word in it asks the simulator for a fault."""

    def connect_key(word: str = "", **fields: Any) -> Integration:
        return integrations.add_integration(
            ada_access,
            provider="claude",
            api_key=Secret(make_key(word)),
            name=fields.pop("name", word or "Main"),
            **fields,
        )

    return connect_key


@pytest.fixture
def make_profile(ada_access: Access) -> Callable[..., ModelProfile]:
    def make(**fields: Any) -> ModelProfile:
        defaults = {"name": "deep", "provider": "claude", "model_id": "claude-opus-5-5", "auth_modes": ["byok"]}
        return profiles.create_profile(ada_access, **{**defaults, **fields})

    return make


@pytest.fixture
def work(transactional_db: None) -> Callable[[], list[Run]]:
    """Execute everything that is queued, as a worker does, and give back the runs."""

    def run_queue() -> list[Run]:
        renewal = LeaseRenewal(owner="test-worker")
        done = []
        try:
            while (claim := claims.claim_next(owner=renewal.owner)) is not None:
                execute(claim, renewal)
                done.append(Run.objects.get(id=claim.run.id))
        finally:
            renewal.close()
        return done

    return run_queue
