"""Check the usage that a machine reports against the limits of the model."""

from collections.abc import Iterator

from catalog.models import CatalogEntry
from rensei.core.errors import FieldError
from rensei.core.limits import limit
from rensei.core.usage import Usage
from rensei.dispatch.models import Run

# Higher than the limits of any model. It bounds the reported usage of a model whose limits are unknown.
TOKENS_MAX = limit(
    20_000_000,
    "tokens",
    what="Tokens of a class that a machine reports of a model whose limits are not known",
    told="the caller: 400 `VALIDATION_FAILED` with the field",
)
PROMPT = {
    "inputTokens": "input_tokens",
    "cacheReadTokens": "cache_read_tokens",
    "cacheWrite5mTokens": "cache_write_5m_tokens",
    "cacheWrite1hTokens": "cache_write_1h_tokens",
}


def require_possible(run: Run, usage: Usage) -> None:
    """
    Check the counts of one call against the window and the output limit of the model that served it.

    :raises FieldError: if the usage exceeds a limit, with one error for each field that is too large
    """
    found = list(_impossible(run, usage))
    if found:
        raise FieldError.several(found)


def _impossible(run: Run, usage: Usage) -> Iterator[FieldError]:
    entry = CatalogEntry.objects.visible_to(run.org).filter(provider=run.provider, model_id=run.served_model_id).first()
    window = (entry and entry.context_window_tokens) or TOKENS_MAX
    output = max((entry and entry.max_output_tokens) or TOKENS_MAX, run.max_tokens)
    too_large = [name for name, attribute in PROMPT.items() if getattr(usage, attribute) > window]
    if not too_large and usage.prompt_tokens > window:
        too_large = [name for name, attribute in PROMPT.items() if getattr(usage, attribute)]
    for name in too_large:
        yield _too_large(name, f"{run.served_model_id} takes at most {window} prompt tokens in all.")
    if usage.output_tokens > output:
        yield _too_large("outputTokens", f"{run.served_model_id} gives at most {output} tokens.")
    if usage.thinking_tokens > usage.output_tokens:
        yield _too_large("thinkingTokens", "Thinking is a part of the output tokens.")


def _too_large(name: str, reason: str) -> FieldError:
    return FieldError(pointer=f"/usage/{name}", reason=reason)
