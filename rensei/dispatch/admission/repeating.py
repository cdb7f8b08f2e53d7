"""Repeat a run: rebuild its request so that the provider gets the same input again."""

from catalog.providers import PROVIDERS
from rensei.core.errors import FieldError, NotFound, RenseiError, Said
from rensei.dispatch import agents
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest
from rensei.dispatch.models import Run, RunQuerySet
from rensei.orgs.access import Access


class ProfileDeleted(RenseiError):
    """The profile of a run that is to be repeated was deleted, alone or with its project."""

    code = "NOT_FOUND"
    status = 404
    title = "The profile was deleted"
    message = Said("The profile '{profile_id}' of this run was deleted.", "Run its input again with another profile.")


def repeatable(runs: RunQuerySet) -> RunQuerySet:
    """Filter runs to those with complete input. The gateway stores no input, and images expire earlier."""
    kept = runs.filter(input__isnull=False, input__images_dropped_at=None)
    return kept.select_related("project", "input")


def repeat(access: Access, run: Run) -> Run:
    """
    Dispatch the input of a run again, by its profile's modes and the current policies.

    :raises ProfileDeleted: if the run's profile is not there any more
    :raises FieldError: if it had a deploy token, which is not kept
    :raises RenseiError: as any dispatch
    """
    asked = repeated_request(run)
    if agents.lacks_token(asked.agent):
        reason = "The deploy token of this run was not kept. Dispatch its input again with a token."
        raise FieldError(pointer="/agent/git/token", reason=reason)
    try:
        return admit.dispatch(access, asked)
    except NotFound as absent:
        raise ProfileDeleted(profile_id=run.profile_id) from absent


def repeated_request(run: Run) -> DispatchRequest:
    """
    Return the request of a stored run, with the values as requested, before the limits of the model were applied.

    The metadata belongs to the original run only and is left out.
    """
    asked, window = run.input.body, run.context_window_tokens
    namespace = PROVIDERS[run.provider].config_namespace
    return DispatchRequest(
        profile_id=run.profile_id or None,
        project_id=run.project.slug if run.project else None,
        pool=run.pool,
        host_id=run.host_id,
        system=asked["system"],
        messages=asked["messages"],
        effort=asked.get("effort", run.effort or None),
        effort_is_asked=asked.get("effortIsAsked", True),
        max_tokens=asked["maxTokens"],
        max_tokens_is_asked=asked.get("maxTokensIsAsked", True),
        max_cost_picodollars=run.max_cost_picodollars,
        agent=asked.get("agent"),
        prompt_caching=asked["promptCaching"],
        provider_config={namespace: {"contextWindow": window}} if window else {},
        is_complete=True,
    )
