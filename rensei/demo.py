"""
The demo's data: an organization, two people, keys that the simulator accepts, a profile, a first run, and an agent.
"""

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from integrations.keys import platform
from integrations.keys import services as integrations
from integrations.models import Integration, PlatformKey
from profiles import services as profiles
from profiles.models import ModelProfile
from rensei.core.auth_modes import AuthMode
from rensei.core.money import PICODOLLARS_PER_DOLLAR
from rensei.core.secret import Secret
from rensei.dispatch import agents, pools
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Run
from rensei.orgs import access as org_access
from rensei.orgs import services as orgs
from rensei.orgs.access import Access
from rensei.orgs.models import Org, Project, User
from rensei.tokens.models import ApiToken
from rensei.tokens.services import create_token

OWNER = "ada@example.com"
OPERATOR = "grace@example.com"
ORG = "acme"
PROJECT = "my-project"
PROVIDER = "claude"
MODEL = "claude-sonnet-5-5"
SHARED_MODELS = (MODEL, "claude-haiku-5-5")
SHARED_MAX_TOKENS = 1024
PROMPT = "In one sentence: what does Rensei decide for every call to a language model?"
NAME = "Demo"
# The agent edits the notes that it is given.
AGENT = Path(__file__).with_name("demo_agent.py")
AGENT_TASK = "Give the notes a title and a summary."
AGENT_PICODOLLARS = PICODOLLARS_PER_DOLLAR // 4
NOTES = """\
- An agent is a run whose program calls the model as often as it needs.
- It works in a sandbox, without a network and without a key.
- It cannot spend more than it was given.
"""


@dataclass(kw_only=True)
class ShownOnce:
    """What was generated at this start, to be printed now and never again."""

    passwords: dict[str, str] = field(default_factory=dict, repr=False)
    token: Secret | None = None


def create() -> ShownOnce:
    """
    Add the missing parts of the demo's data, and dispatch its first run.

    The next start completes an interrupted one. Passwords and the token come last, so that everything
    generated is also printed.
    """
    access = _owner_access()
    if not Project.objects.for_org(access.org).filter(slug=PROJECT).exists():
        orgs.create_project(access, slug=PROJECT, name="My Project")
    _create_keys(access)
    if not ModelProfile.objects.for_org(access.org).exists():
        profiles.create_profile(
            access,
            name="First steps",
            provider=PROVIDER,
            model_id=MODEL,
            auth_modes=[AuthMode.BYOK, AuthMode.SHARED],
            is_default=True,
        )
    if not Run.objects.for_org(access.org).exists():
        request = DispatchRequest(messages=messages_from(text=PROMPT, messages=None))
        admit.dispatch(access, request)

    shown_once = ShownOnce()
    for user in User.objects.filter(email__in=[OWNER, OPERATOR]).order_by("email"):
        if not user.has_usable_password():
            shown_once.passwords[user.email] = _set_password(user)
    if not ApiToken.objects.for_org(access.org).filter(name=NAME).exists():
        _, shown_once.token = create_token(access, name=NAME)
    return shown_once


def first_run() -> Run:
    """Find the run that the first start dispatched."""
    run: Run = Run.objects.filter(org__slug=ORG).earliest("id")
    return run


def agent_run() -> Run | None:
    """Find the agent that an earlier start dispatched, or dispatch it. None where this machine starts no sandboxes."""
    earlier: Run | None = Run.objects.filter(org__slug=ORG, is_agent=True).order_by("id").first()
    access = _owner_access()
    if earlier is not None or pools.find_pool(access.org, pools.SANDBOX).refusal:
        return earlier
    files = [{"path": "notes.md", "content": NOTES}, {"path": "edit.py", "content": AGENT.read_text()}]
    request = DispatchRequest(
        pool=pools.SANDBOX,
        messages=messages_from(text=AGENT_TASK, messages=None),
        max_cost_picodollars=AGENT_PICODOLLARS,
        agent=agents.checked({"program": ["python3", "edit.py"], "files": files, "outputs": ["notes.md"]}),
    )
    return admit.dispatch(access, request)


def sample_key() -> str:
    """Make a key of the right form, which is valid nowhere: the simulator accepts every such key."""
    return f"sk-ant-api{3:02d}-demo-{secrets.token_hex(24)}"


def _owner_access() -> Access:
    owner = User.objects.filter(email=OWNER).first() or User.objects.create_user(OWNER, name="Ada")
    if not User.objects.filter(email=OPERATOR).exists():
        User.objects.create_superuser(OPERATOR, name="Grace")
    if not Org.objects.filter(slug=ORG).exists():
        orgs.create_org(name="Acme", slug=ORG, owner=owner)
    access = org_access.for_member(user=owner, slug=ORG)
    assert access is not None
    return access


def _create_keys(access: Access) -> None:
    if not Integration.objects.for_org(access.org).exists():
        key = Secret(sample_key())
        verdict = integrations.check_connection(access, provider=PROVIDER, api_key=key)
        integrations.add_integration(access, provider=PROVIDER, api_key=key, verdict=verdict)
    for pool in PlatformKey.Pool:
        if not PlatformKey.objects.filter(pool=pool).exists():
            shared = pool is PlatformKey.Pool.SHARED
            platform.add_platform_key(
                actor=None,
                provider=PROVIDER,
                pool=pool,
                name=NAME,
                api_key=Secret(sample_key()),
                model_ids=SHARED_MODELS if shared else (),
                max_tokens_cap=SHARED_MAX_TOKENS if shared else None,
            )


def _set_password(user: User) -> str:
    password = secrets.token_urlsafe(12)
    user.set_password(password)
    user.save(update_fields=["password"])
    return password
