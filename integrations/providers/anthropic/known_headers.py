"""
The headers and betas that are known, with their effect on the cost of a call.

The betas are those of the `anthropic` SDK 2.14.0, and those that Claude Code 2.1.332, LangChain, LiteLLM, pydantic-ai
and Vercel's SDK add by themselves.
"""

from collections.abc import Iterator, Mapping

VERSIONS = frozenset({"2023-01-01", "2023-06-01", "2026-10-21"})
HEADERS = frozenset(
    {
        "anthropic-beta",
        "anthropic-client-platform",
        "anthropic-client-version",
        "anthropic-dangerous-direct-browser-access",
        "anthropic-user-profile-id",
        "anthropic-version",
        "anthropic-workspace-id",
    }
)
QUERY = frozenset({"beta"})
# A beta opens fields, blocks or tools, which are looked at themselves. Those that change a limit are in `LONG_OUTPUT`
# and `LONG_WINDOW`.
BETAS = frozenset(
    [
        "admin-user-sign-out-2026-10-08",
        "advanced-tool-use-2025-11-20",
        "advisor-tool-2026-03-01",
        "afk-mode-2026-01-31",
        "agent-memory-2026-07-22",
        "analytics-usage-cost-2026-08-24",
        "cache-diagnosis-2026-04-07",
        "ce-claude-code-managed-settings-2026-10-06",
        "ce-plugins-2026-09-01",
        "ce-user-management-2026-07-13",
        "claude-code-20250219",
        "code-execution-2025-05-22",
        "code-execution-2025-08-25",
        "code-execution-web-tools-2026-02-09",
        "compact-2026-01-12",
        "compact-2026-09-04",
        "computer-use-2024-10-22",
        "computer-use-2025-01-24",
        "computer-use-2025-11-24",
        "context-1m-2025-08-07",
        "context-management-2025-06-27",
        "dangerous-tool-use-2026-09-03",
        "dev-full-thinking-2025-05-14",
        "dreaming-2026-04-21",
        "effort-2025-11-24",
        "efs-2026-10-01",
        "experimental-claude-tag-2026-10-21",
        "extended-cache-ttl-2025-04-11",
        "fallback-credit-2026-06-01",
        "fallback-credit-2026-07-01",
        "fast-mode-2026-02-01",
        "files-api-2025-04-14",
        "fine-grained-tool-streaming-2025-05-14",
        "google-managed-data-controls-2026-09-01",
        "inline-tools-2026-09-15",
        "interleaved-thinking-2025-05-14",
        "managed-agents-2026-04-01",
        "mcp-client-2025-04-04",
        "mcp-client-2025-11-20",
        "mcp-client-2026-09-15",
        "mcp-servers-2025-12-04",
        "mcp-tunnels-2026-06-22",
        "message-batches-2024-09-24",
        "message-threads-2026-08-12",
        "mid-conversation-output-config-2026-07-01",
        "mid-conversation-system-2026-04-07",
        "mid-conversation-system-clear-at-2026-08-21",
        "mid-conversation-tool-changes-2026-07-01",
        "model-context-window-exceeded-2025-08-26",
        "oauth-2025-04-20",
        "oidc-federation-2026-04-01",
        "output-128k-2025-02-19",
        "output-300k-2026-03-24",
        "pdfs-2024-09-25",
        "per-turn-control-2026-07-01",
        "prompt-caching-2024-07-31",
        "prompt-caching-scope-2026-01-05",
        "redact-thinking-2026-02-12",
        "request-tags-2026-08-21",
        "server-side-fallback-2026-06-01",
        "server-side-fallback-2026-07-01",
        "skills-2025-10-02",
        "spend-limit-reads-2026-09-26",
        "structured-outputs-2025-11-13",
        "structured-outputs-2025-12-15",
        "task-budgets-2026-03-13",
        "telemetry-destinations-2026-08-11",
        "thinking-binding-controls-2026-08-01",
        "thinking-display-updates-2026-08-18",
        "thinking-token-count-2026-05-13",
        "token-counting-2024-11-01",
        "token-efficient-tools-2025-02-19",
        "tool-examples-2025-10-29",
        "tool-search-tool-2025-10-19",
        "user-profiles-2026-03-24",
        "user-profiles-2026-08-18",
        "user-profiles-2026-09-04",
        "user-profiles-billing-2026-10-01",
        "web-fetch-2025-09-10",
        "web-search-2025-03-05",
        "webhooks-2026-10-07",
    ]
)
# Betas that only the program of Claude Code names. What they switch on is documented nowhere, and one that keeps a
# cache alive or has another model review may cost more than the request shows. They are counted, and left out of the
# header where the cost of a call is held, or where a policy denies some models.
UNDOCUMENTED = frozenset(
    [
        "auto-mode-classifier-2026-07-16",
        "cache-keepalive-2026-09-03",
        "ccr-byoc-2025-07-29",
        "ccr-triggers-2026-01-30",
        "claude-code-side-query-2026-09-29",
        "context-hint-2026-04-09",
        "environments-2025-11-01",
        "program-use-case-ids-2026-09-17",
        "prompt-caching-evict-2026-05-12",
        "resumption-2026-10-08",
        "subagent-review-2026-11-17",
        "thinking-resumption-2026-07-17",
        "timing-2026-09-09",
        "tool-provenance-2026-10-26",
        "web-search-results-only-2026-11-15",
    ]
)
LONG_OUTPUT: Mapping[str, int] = {"output-128k-2025-02-19": 128_000, "output-300k-2026-03-24": 300_000}
LONG_WINDOW: Mapping[str, int] = {"context-1m-2025-08-07": 1_000_000}


def unknown_headers(headers: Mapping[str, str], query: str) -> Iterator[tuple[str, str]]:
    """
    List what is not known in headers (names in lower case) and a query, each with its kind.

    Only what is forwarded to the provider counts.
    """
    for name in headers:
        if name.startswith("anthropic-") and name not in HEADERS:
            yield "header", name
    if (version := headers.get("anthropic-version")) and version not in VERSIONS:
        yield "header", f"anthropic-version: {version}"
    for beta in betas_in(headers) - BETAS:
        yield "header", f"anthropic-beta: {beta}"
    for part in filter(None, query.split("&")):
        if (name := part.partition("=")[0]) not in QUERY:
            yield "query_parameter", name


def betas_in(headers: Mapping[str, str]) -> frozenset[str]:
    """Return the betas that a request asks for."""
    value = headers.get("anthropic-beta")
    return frozenset(filter(None, map(str.strip, value.split(",")))) if value else frozenset()


def without_undocumented(betas: str) -> str:
    """Return an `anthropic-beta` header without the betas of which nothing is documented."""
    return ",".join(beta for beta in map(str.strip, betas.split(",")) if beta not in UNDOCUMENTED)
