"""A test message: the only test that shows missing credit. A real, tiny, ledgered run of one integration's key."""

from integrations.models import Integration
from integrations.providers.base import ADAPTERS
from profiles.models import ModelProfile
from rensei.core.auth_modes import AuthMode
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest
from rensei.dispatch.models import Run
from rensei.orgs.access import Access

NAME = "Test message"
MAX_TOKENS = 64


def send(access: Access, integration: Integration) -> Run:
    """
    Dispatch a test message with a stored key, to the cheapest model that it may use.

    :raises RenseiError: as any dispatch does
    """
    access.require_manager()
    profile = ModelProfile(
        org=access.org,
        name=NAME,
        provider=integration.provider,
        model_id=ADAPTERS[integration.provider].cheapest_model(integration.model_list),
        auth_modes=[AuthMode.BYOK.value],
        integration=integration,
        prompt_caching=ModelProfile.PromptCaching.OFF,
    )
    hello = {"role": "user", "content": [{"type": "text", "text": "Answer with one word: hello."}]}
    return admit.dispatch_unsaved(access, profile, DispatchRequest(messages=[hello], max_tokens=MAX_TOKENS))
