"""The counts in a report of usage, by their names, sorted into the classes that have prices."""

from collections.abc import Mapping

from rensei.core.usage import Usage

# Far above what any model accepts or produces, and far below what would overflow a ledger.
TOKENS_MAX = 20_000_000
COUNTED = frozenset(
    {
        "input_tokens",
        "output_tokens",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
        "cache_creation.ephemeral_5m_input_tokens",
        "cache_creation.ephemeral_1h_input_tokens",
        "output_tokens_details.thinking_tokens",
        "server_tool_use.web_search_requests",
    }
)


def usage_of(counts: Mapping[str, int]) -> Usage:
    """Sort counts into priced classes. An unknown count goes to the most expensive class that it may belong to."""
    five = counts.get("cache_creation.ephemeral_5m_input_tokens", 0)
    hour = counts.get("cache_creation.ephemeral_1h_input_tokens", 0)
    split = five + hour
    others: dict[str, int] = {}
    for name in counts.keys() - COUNTED:
        token_class = _dearest_class(name)
        others[token_class] = others.get(token_class, 0) + counts[name]
        split += counts[name] if name.startswith("cache_creation.") else 0
    rest = max(0, counts.get("cache_creation_input_tokens", 0) - split)
    output = counts.get("output_tokens", 0) + others.get("output_tokens", 0)
    return Usage(
        input_tokens=counts.get("input_tokens", 0),
        output_tokens=output,
        cache_read_tokens=counts.get("cache_read_input_tokens", 0),
        # Tokens without a lifetime have the default of five minutes, unless an hour was requested.
        cache_write_5m_tokens=five + (0 if hour else rest),
        cache_write_1h_tokens=hour + (rest if hour else 0) + others.get("cache_write_1h_tokens", 0),
        thinking_tokens=min(counts.get("output_tokens_details.thinking_tokens", 0), output),
        web_search_requests=counts.get("server_tool_use.web_search_requests", 0) + others.get("web_search_requests", 0),
    )


def bounded(usage: Usage) -> Usage:
    """Limit sums of many iterations or fields to plausible values."""
    if max(vars(usage).values()) <= TOKENS_MAX:
        return usage
    return Usage(**{name: min(count, TOKENS_MAX) for name, count in usage.as_dict().items()})


def _dearest_class(name: str) -> str:
    if "request" in name:
        return "web_search_requests"
    if "output" not in name and any(word in name for word in ("input", "cache", "prompt")):
        return "cache_write_1h_tokens"
    return "output_tokens"
