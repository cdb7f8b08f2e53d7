"""How many bytes an answer may have: as its tokens need, unless something else may write into it."""

from collections.abc import Iterable, Mapping
from typing import Any

from integrations.providers.anthropic.server_tools import is_of_client
from rensei.core.limits import limit

ANSWER_BYTES_MAX = limit(
    64 * 1024 * 1024,
    "bytes",
    what="Provider's answer to a call with tools that the provider runs, or with parts that Rensei does not know",
    told="the caller: `PROVIDER_STREAM_BROKEN`, charged as far as reported",
)
ANSWER_BYTES_FIXED = limit(
    4 * 1024 * 1024,
    "bytes",
    what="Provider's answer to any other call, and to a count of tokens",
    told="the caller: `PROVIDER_STREAM_BROKEN`, charged as far as reported",
)
# An event of a stream has about 150 bytes besides its text, and may carry one token.
ANSWER_BYTES_PER_TOKEN = limit(
    512,
    "bytes",
    what="The same, in addition for each token of its `max_tokens`",
    told="the caller: `PROVIDER_STREAM_BROKEN`, charged as far as reported",
)
# With these, results of tools and summaries are parts of the answer.
_WRITTEN_BY_OTHERS = ("container", "context_management", "mcp_servers")


def answer_bytes_max(
    params: Mapping[str, Any], tools: Iterable[Mapping[str, Any]], *, max_tokens: int, has_unknown: bool
) -> int:
    """
    Bound the bytes of an answer, as they arrive and decompressed.

    :param has_unknown: whether the request has parts that are not known, which may bring anything in
    """
    is_by_tokens = (
        not has_unknown
        and not any(params.get(name) for name in _WRITTEN_BY_OTHERS)
        and all(is_of_client(tool) for tool in tools)
    )
    by_tokens = ANSWER_BYTES_FIXED + ANSWER_BYTES_PER_TOKEN * max_tokens
    return min(by_tokens, ANSWER_BYTES_MAX) if is_by_tokens else ANSWER_BYTES_MAX
