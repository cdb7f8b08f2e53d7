"""A test message: a real, small run with one integration's key. Only this test detects missing credit."""

from integrations.models import Integration
from integrations.providers.base import ADAPTERS
from profiles.models import ModelProfile
from rensei.core.auth_modes import AuthMode
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest
from rensei.dispatch.models import Run
from rensei.orgs.access import Access

NAME = "Test message"
REQUEST = DispatchRequest(
    messages=[{"role": "user", "content": [{"type": "text", "text": "Answer with one word: hello."}]}], max_tokens=64
)


def send(access: Access, integration: Integration) -> Run:
    """
    Dispatch a test message with a stored key, to the cheapest model available to that key.

    :raises RenseiError: if the dispatch is refused
    """
    access.require_manager()
    return admit.dispatch_unsaved(access, profile_of(access, integration), REQUEST)


def profile_of(access: Access, integration: Integration) -> ModelProfile:
    """Make the profile of a test message, which is not saved."""
    return ModelProfile(
        org=access.org,
        name=NAME,
        provider=integration.provider,
        model_id=ADAPTERS[integration.provider].cheapest_model(integration.model_list),
        auth_modes=[AuthMode.BYOK.value],
        integration=integration,
        prompt_caching=ModelProfile.PromptCaching.OFF,
    )
