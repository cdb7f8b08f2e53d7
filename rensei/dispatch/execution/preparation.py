"""Build the provider's request from the stored input of a run, for the server's workers and for machines."""

from collections.abc import Callable

from catalog.services import find_entry
from integrations.providers.base import Adapter, BuiltRequest, ModelRequest
from rensei.dispatch import withheld
from rensei.dispatch.models import Run
from rensei.dispatch.settlement.own_entries import require_allowed


def build_request(run: Run, adapter: Adapter, *, seconds_left: Callable[[], float]) -> BuiltRequest:
    """
    Build the provider's parameters, and fetch the images that the messages refer to.

    :raises RenseiError: if the model is no longer in the catalog or is found to be a denied one, if an image cannot
        be fetched, or the prompt does not fit, or the vault cannot open an input with a key in it
    :raises Interrupted: if there is no time left to fetch
    """
    # The model may have been removed from the catalog while the run was queued.
    entry = find_entry(org=run.org, provider=run.provider, model_id=run.served_model_id)
    require_allowed(run, entry)
    asked = withheld.body_of(run)
    request = ModelRequest(
        system=asked["system"],
        messages=adapter.prepare(asked["messages"], org_id=run.org_id, entry=entry, seconds_left=seconds_left),
        # The input has the requested effort. Runs dispatched before it was stored there have only the applied one.
        effort=asked.get("effort", run.effort or None),
        effort_is_asked=asked.get("effortIsAsked", True),
        max_tokens=asked["maxTokens"],
        max_tokens_is_asked=asked.get("maxTokensIsAsked", True),
        # Of runs dispatched before it was stored, the number itself was capped.
        max_tokens_cap=asked.get("maxTokensCap"),
        prompt_caching=asked["promptCaching"],
        context_window_tokens=run.context_window_tokens,
    )
    return adapter.build(request, entry=entry)
