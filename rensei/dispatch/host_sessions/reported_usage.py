"""Check the usage that a machine reports against the limits of the model."""

from collections.abc import Iterator

from catalog.lookup import find_named
from rensei.core.errors import FieldError
from rensei.core.limits import limit
from rensei.core.usage import UsagePart
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


def require_possible(run: Run, part: UsagePart, *, pointer: str = "") -> None:
    """
    Check the counts of one model against its window and its output limit, each as often as it was run.

    :param pointer: the field from which they were read, if each has none of its own
    :raises FieldError: if the usage exceeds a limit, with one error for each count that is too large
    """
    found = [_too_large(pointer or f"/usage/{name}", reason) for name, reason in _impossible(run, part)]
    if found:
        raise FieldError.several(found)


def _impossible(run: Run, part: UsagePart) -> Iterator[tuple[str, str]]:
    usage, times = part.usage, max(1, part.samplings)
    model = (run.provider, part.model_id or run.served_model_id)
    entry = find_named([model], org=run.org).get(model)
    window = min(TOKENS_MAX, times * ((entry and entry.context_window_tokens) or TOKENS_MAX))
    # An answer may have been asked to be longer than the catalog knows.
    longest = max((entry and entry.max_output_tokens) or TOKENS_MAX, run.max_tokens)
    output = min(TOKENS_MAX, times * longest)
    too_large = [name for name, attribute in PROMPT.items() if getattr(usage, attribute) > window]
    if not too_large and usage.prompt_tokens > window:
        too_large = [name for name, attribute in PROMPT.items() if getattr(usage, attribute)]
    for name in too_large:
        yield name, f"{model[1]} takes at most {window} prompt tokens in all."
    if usage.output_tokens > output:
        yield "outputTokens", f"{model[1]} gives at most {output} tokens."
    if usage.thinking_tokens > usage.output_tokens:
        yield "thinkingTokens", "Thinking is a part of the output tokens."


def _too_large(pointer: str, reason: str) -> FieldError:
    return FieldError(pointer=pointer, reason=reason)
