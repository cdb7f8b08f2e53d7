"""What the tests of the pages need: a connected key, a profile, a run, and a reader of HTML."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from django.test import Client
from PIL import Image

from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.orgs.models import Org, User
from rensei.workflows import services as workflows
from rensei.workflows.models import WorkflowRun
from tests import factories


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
