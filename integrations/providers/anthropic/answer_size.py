"""How many bytes an answer may have: as its tokens need, unless something else may write into it."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from integrations.providers.anthropic.server_tools import is_of_client
from integrations.providers.anthropic.tokens import objects_in
from rensei.core.limits import limit

ANSWER_BYTES_MAX = limit(
    64 * 1024 * 1024,
    "bytes",
    what="Provider's answer to a call with citations, tools that the provider runs, or parts that Rensei does not know",
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
    what="Provider's answer to any other call, in addition for each token of its `max_tokens`",
    told="the caller: `PROVIDER_STREAM_BROKEN`, charged as far as reported",
)
# With these, results of tools and summaries are parts of the answer.
_WRITTEN_BY_OTHERS = ("container", "context_management", "mcp_servers")


def answer_bytes_max(
    params: Mapping[str, Any],
    tools: Iterable[Mapping[str, Any]],
    *,
    max_tokens: int,
    has_unknown: bool,
    may_cite: bool,
) -> int:
    """
    Bound the bytes of an answer, as they arrive and decompressed.

    :param has_unknown: whether the request has parts that are not known, which may bring anything in
    :param may_cite: as `may_cite` says
    """
    is_by_tokens = (
        not has_unknown
        and not any(params.get(name) for name in _WRITTEN_BY_OTHERS)
        and all(is_of_client(tool) for tool in tools)
        and not may_cite
    )
    by_tokens = ANSWER_BYTES_FIXED + ANSWER_BYTES_PER_TOKEN * max_tokens
    return min(by_tokens, ANSWER_BYTES_MAX) if is_by_tokens else ANSWER_BYTES_MAX


def may_cite(params: Mapping[str, Any]) -> bool:
    """Return whether an answer may quote its documents, which takes no tokens."""
    return any(
        block.get("citations") for message in objects_in(params.get("messages")) for block in _blocks_of(message)
    )


def _blocks_of(value: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """List the blocks of a message, and those in the results of its tools."""
    content = value.get("content")
    for block in objects_in(content) if not isinstance(content, str) else ():
        yield block
        inner = block.get("content")
        if not isinstance(inner, str):
            yield from objects_in(inner)
