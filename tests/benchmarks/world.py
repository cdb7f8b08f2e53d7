"""The database of a benchmark, and the organization whose token sends the load."""

import os
import secrets
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.answers import MODEL
from tests.benchmarks.contenders import upstream_key
from tests.benchmarks.processes import ROOT

ORG = "acme"
OWNER = "ada@acme.test"
# What a run may take is checked each time, and never runs out.
SHARED_RUNS_A_DAY = 1_000_000_000
BUDGET_PICODOLLARS = 10**18
MODES = ("shared", "metered", "byok")


@dataclass(frozen=True, kw_only=True)
class World:
    """Who is there. `profiles` are the public ids of the profiles by mode; the first is the default."""

    access: Any
    token: str = field(repr=False)
    profiles: dict[str, str]


def environment_for(*, database_url: str, upstream: str, folder: Path) -> dict[str, str]:
    """Make the environment of every process of this Rensei, and of the driver itself."""
    without_limit = "1000000000/min"
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "rensei.settings",
        "DATABASE_URL": database_url,
        "CELERY_BROKER_URL": "",
        "RENSEI_ANTHROPIC_BASE_URL": upstream,
        "RENSEI_DATA_DIR": str(folder),
        "RENSEI_LOG_LEVEL": "WARNING",
        "RENSEI_RATE_API": without_limit,
        "RENSEI_GATEWAY_CALLS_AT_ONCE": "1000000",
        "RENSEI_GATEWAY_RATE_ORG": without_limit,
        "RENSEI_GATEWAY_RATE_TOKEN": without_limit,
        "RENSEI_GATEWAY_TOKENS_ORG": without_limit,
        "RENSEI_GATEWAY_TOKENS_TOKEN": without_limit,
        "RENSEI_PLATFORM_TOKENS_ORG": without_limit,
        "RENSEI_VAULT_KEYRING": str(folder / "keyring.json"),
        "SECRET_KEY": secrets.token_urlsafe(50),
    }


def prepare(environment: dict[str, str]) -> None:
    """Do what every installation does before its first start."""
    command = [sys.executable, "manage.py", "prepare"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)


def build() -> World:
    """Make an organization with a key for each mode, a policy at each level, and a token. Django is set up."""
    from billing.models import BillingSetting, Entitlement
    from integrations.keys import platform
    from integrations.keys import services as integrations
    from profiles import services as profiles
    from rensei.core.secret import Secret
    from rensei.orgs import services as orgs
    from rensei.orgs.access import for_member
    from rensei.orgs.models import User
    from rensei.policies import services as policies
    from rensei.tokens.services import create_token

    owner = User.objects.create_user(OWNER, secrets.token_hex(12), name="Ada")
    org = orgs.create_org(name="Acme", slug=ORG, owner=owner)
    access = for_member(user=owner, slug=ORG)
    assert access is not None
    Entitlement.objects.filter(org=org).update(
        metered_enabled=True,
        shared_runs_per_day=SHARED_RUNS_A_DAY,
        shared_picodollars_per_day=BUDGET_PICODOLLARS,
        monthly_budget_picodollars=BUDGET_PICODOLLARS,
    )
    BillingSetting.objects.update_or_create(pk=1, defaults={"shared_platform_picodollars_per_day": BUDGET_PICODOLLARS})
    project = orgs.create_project(access, slug="my-project", name="My Project")
    policies.set_policy(access, matrix={"*": {"host-session": {"allowed": False}}})
    policies.set_policy(access, matrix={"claude": {"shared": {"allowed": True}}}, project=project)
    for pool in ("metered", "shared"):
        platform.add_platform_key(
            actor=None,
            provider="claude",
            pool=pool,
            name=pool,
            api_key=Secret(upstream_key()),
            model_ids=[MODEL],
            max_tokens_cap=2000,
        )
    integrations.add_integration(access, provider="claude", api_key=Secret(upstream_key()), name="Main")
    for number, mode in enumerate(MODES):
        profiles.create_profile(
            access, name=mode, provider="claude", model_id=MODEL, auth_modes=[mode], is_default=number == 0
        )
    _, token = create_token(access, name="benchmark", project=project)
    return World(access=access, token=token.reveal(), profiles={mode: f"prof_{mode}" for mode in MODES})
