"""What the tests of the pages need: a connected key, a profile, a run, and a reader of HTML."""

from collections.abc import Callable
from datetime import timedelta
from io import BytesIO
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from PIL import Image

from billing.limits.entitlement import set_metered
from integrations.keys import platform
from integrations.keys import services as integrations
from integrations.models import Integration, PlatformKey
from profiles import services as profiles
from profiles.models import ModelProfile
from rensei.core.secret import Secret
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.orgs.models import Org, User
from rensei.policies import documents
from rensei.workflows import services as workflows
from rensei.workflows.models import WorkflowRun
from tests import factories
from tests.console.states import MODEL, SUBSETS, name_of


@pytest.fixture
def page(acme: Org, ada: User, page_as: Callable[[User], Client]) -> Client:
    """The browser of Acme's owner."""
    return page_as(ada)


@pytest.fixture
def integration(ada_access: Access, key: str) -> Integration:
    return factories.connect_key(ada_access, key, name="Production")


@pytest.fixture
def profile(make_profile: Callable[..., ModelProfile]) -> ModelProfile:
    return make_profile(auth_modes=["byok", "metered"])


@pytest.fixture
def make_run(ada_access: Access, integration: Integration, profile: ModelProfile) -> Callable[..., Run]:
    def make(text: str = "Hello?", **fields: Any) -> Run:
        messages = messages_from(text=text, messages=None)
        return admit.dispatch(
            ada_access, DispatchRequest(**{"profile_id": profile.public_id, "messages": messages, **fields})
        )

    return make


@pytest.fixture
def run(make_run: Callable[..., Run]) -> Run:
    return make_run()


@pytest.fixture
def workflow_run(ada_access: Access, integration: Integration, profile: ModelProfile) -> WorkflowRun:
    document = {
        "nodeId": "only",
        "nodeType": "action/llm.inference",
        "config": {"profileId": profile.public_id, "prompt": "Hello {{ input.name }}"},
    }
    workflow, _ = workflows.apply_document(ada_access, document)
    return workflows.start(ada_access, workflow, given={"name": "Ada"})


@pytest.fixture
def png() -> bytes:
    """The smallest picture: one pixel."""
    picture = BytesIO()
    Image.new("RGB", (1, 1)).save(picture, "PNG")
    return picture.getvalue()


@pytest.fixture
def every_profile(ada_access: Access) -> list[ModelProfile]:
    return [
        profiles.create_profile(
            ada_access, name=name_of(modes), provider="claude", model_id=MODEL, auth_modes=list(modes)
        )
        for modes in SUBSETS
    ]


@pytest.fixture
def arrange(ada_access: Access, acme: Org, grace: User, make_key: Callable[..., str]) -> Callable[..., None]:
    """Bring the organization, its key and the key pools into a state."""

    def into(*, entitled: bool, metered: str, shared: str, key: str, byok_denied: bool) -> None:
        set_metered(org_ids=[acme.pk], enabled=entitled, actor_user=grace)
        PlatformKey.objects.all().delete()
        for pool, health in (("metered", metered), ("shared", shared)):
            if health != "none":
                pooled = platform.add_platform_key(
                    actor=None,
                    provider="claude",
                    pool=pool,
                    name="one",
                    api_key=Secret(make_key()),
                    model_ids=[MODEL],
                    max_tokens_cap=1024,
                )
                until = timezone.now() + timedelta(days=3) if health == "cooling" else None
                PlatformKey.objects.filter(pk=pooled.pk).update(health=health, cooling_until=until)
        Integration.objects.all().delete()
        if key != "none":
            own = integrations.add_integration(ada_access, provider="claude", api_key=Secret(make_key()), name="Main")
            status = Integration.Status.FAILING if key == "failing" else Integration.Status.OK
            Integration.objects.filter(pk=own.pk).update(status=status)
        denied = {"claude": {"byok": {"allowed": False}}} if byok_denied else {}
        documents.set_policy(ada_access, matrix=denied)

    return into
