"""The organizations of a chaos run, with their keys, their profiles and what they may spend."""

import secrets
from typing import Any

from django.core.management import call_command

from billing.models import Entitlement
from catalog.services import load_catalog
from integrations.keys import platform
from integrations.keys import services as integrations
from integrations.vault import keyring
from profiles import services as profiles
from rensei.core.secret import Secret
from rensei.orgs import services as orgs
from rensei.orgs.access import Access, for_member
from rensei.orgs.models import User
from tests.chaos.plan import MODES, ORGS

MODEL = "claude-opus-5-5"
POOL_KEYS = 3
PLENTY = 1_000_000
# One of the organizations comes to the end of its shared runs.
SHORT_OF_SHARED = ORGS[-1]


def build(*, shared_runs: int) -> dict[str, Access]:
    """Make everything in an empty database, and give the access of each organization's owner."""
    from django.conf import settings

    call_command("migrate", interactive=False, verbosity=0)
    load_catalog()
    keyring.ensure(settings.RENSEI_VAULT_KEYRING)
    for pool in ("metered", "shared"):
        for number in range(POOL_KEYS):
            _add_pool_key(pool, f"{pool} {number}")
    return {slug: _build_org(slug, shared_runs if slug == SHORT_OF_SHARED else PLENTY) for slug in ORGS}


def profile_of(mode: str) -> str:
    """The public id of each organization's profile for a mode."""
    return f"prof_{mode}"


def _build_org(slug: str, shared_runs: int) -> Access:
    owner = User.objects.create_user(f"owner@{slug}.test", secrets.token_hex(12), name=slug)
    org = orgs.create_org(name=slug.title(), slug=slug, owner=owner)
    Entitlement.objects.filter(org=org).update(metered_enabled=True, shared_runs_per_day=shared_runs)
    access = for_member(user=owner, slug=slug)
    assert access is not None
    integrations.add_integration(access, provider="claude", api_key=_key(), name="Main")
    for mode in MODES:
        fields: dict[str, Any] = {"provider": "claude", "model_id": MODEL, "auth_modes": [mode], "max_tokens": 1000}
        profiles.create_profile(access, name=mode, **fields)
    return access


def _add_pool_key(pool: str, name: str) -> None:
    platform.add_platform_key(
        actor=None, provider="claude", pool=pool, name=name, api_key=_key(), model_ids=[MODEL], max_tokens_cap=2000
    )


def _key() -> Secret:
    """A key of the right shape, made here and now."""
    return Secret("-".join(["sk-ant-api03", secrets.token_hex(24)]))
