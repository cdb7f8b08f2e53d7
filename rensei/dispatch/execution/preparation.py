"""What is asked of the provider, made of what the dispatch stored: for the server's workers and for machines alike."""

from collections.abc import Callable

from catalog.services import find_entry
from integrations.providers.base import Adapter, BuiltRequest, ModelRequest
from rensei.dispatch.models import Run
from rensei.dispatch.settlement.own_entries import require_allowed


def build_request(run: Run, adapter: Adapter, *, seconds_left: Callable[[], float]) -> BuiltRequest:
    """
    Build the provider's parameters, fetching what the messages point to.

    :raises RenseiError: if the model has left the catalog or has turned out to be a denied one, if an image cannot be
        had, or the prompt does not fit
    :raises Interrupted: if no time is left for that
    """
    # It may have left the catalog while the run waited.
    entry = find_entry(org=run.org, provider=run.provider, model_id=run.served_model_id)
    require_allowed(run, entry)
    asked = run.input.body
    request = ModelRequest(
        system=asked["system"],
        messages=adapter.prepare(asked["messages"], entry=entry, seconds_left=seconds_left),
        # What was asked for is in the input. A run that was dispatched before it was kept there has what was chosen.
        effort=asked.get("effort", run.effort or None),
        effort_is_asked=asked.get("effortIsAsked", True),
        max_tokens=asked["maxTokens"],
        max_tokens_is_asked=asked.get("maxTokensIsAsked", True),
        prompt_caching=asked["promptCaching"],
        context_window_tokens=run.context_window_tokens,
    )
    return adapter.build(request, entry=entry)
