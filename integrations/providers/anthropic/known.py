"""
What is known of requests of the Messages API: their fields, blocks, tools and members.

Each name here is one whose effect on the cost of a call is known. `unknown` finds all others. The names are those of
the `anthropic` SDK 2.14.0, and those that Claude Code 2.1.332 sends besides.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, eq=False, kw_only=True)
class Table:
    """
    The members of objects, by the object's `type`. An object without one is found by the member that has it, after a
    dot. `kind` says under which kind an unknown type is counted.
    """

    kind: str
    members: Mapping[str, frozenset[str]]


def _table(kind: str, members: Mapping[str, str]) -> Table:
    return Table(kind=kind, members={name: frozenset(f"type {known}".split()) for name, known in members.items()})


FIELDS = frozenset(
    [
        "billing_policy",
        "cache_control",
        "compaction",
        "container",
        "context_management",
        "diagnostics",
        "fallback_credit_token",
        "fallbacks",
        "inference_geo",
        "max_tokens",
        "mcp_servers",
        "messages",
        "metadata",
        "model",
        "output_config",
        "output_format",
        "safeguards",
        "service_tier",
        "speed",
        "stop_sequences",
        "stream",
        "system",
        "tags",
        "temperature",
        "thinking",
        "thread",
        "tool_choice",
        "tools",
        "top_k",
        "top_p",
    ]
)
MESSAGE = frozenset({"clear_at", "content", "output_config", "role"})
# Values that have another price than others of the same field.
VALUES: Mapping[str, frozenset[str]] = {
    "inference_geo": frozenset({"global", "us"}),
    "service_tier": frozenset({"auto", "standard_only"}),
    "speed": frozenset({"fast", "standard"}),
    "ttl": frozenset({"1h", "5m"}),
}
# Members that hold any JSON, or settings of tools that do not change what a call costs.
FREE = frozenset(
    [
        "configs",
        "default_config",
        "input",
        "input_examples",
        "input_schema",
        "schema",
        "state_changes",
        "tabs",
        "tools",
        "url_sources",
        "user_location",
    ]
)

_EPHEMERAL = {"ephemeral": "scope ttl"}
TEXTS = _table("block_type", {"text": "cache_control citations text"})
# What the results of tools may hold. Nothing in it changes the tools or the model of the call.
RESULTS = _table(
    "block_type",
    _RESULTS := {
        "text": "cache_control citations text",
        "image": "cache_control source transformations",
        "document": "cache_control citations context source title",
        "search_result": "cache_control citations content source title",
        "tool_reference": "cache_control tool_name",
        "browser_state": "cache_control state_changes tabs",
    },
)
CHANGES = _table(
    "block_type", _CHANGES := {"tool_addition": "cache_control tool", "tool_removal": "cache_control tool"}
)
SERVER_RESULTS = frozenset(
    {
        "advisor_tool_result",
        "bash_code_execution_tool_result",
        "code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "web_fetch_tool_result",
        "web_search_tool_result",
    }
)
BLOCKS = _table(
    "block_type",
    {
        **_RESULTS,
        **_CHANGES,
        "thinking": "signature thinking",
        "redacted_thinking": "data",
        "tool_use": "cache_control caller id input name toolset_name",
        "tool_result": "cache_control content is_error tool_use_id toolset_name",
        "server_tool_use": "cache_control caller id input name",
        "mcp_tool_use": "cache_control id input name server_name",
        "mcp_tool_result": "cache_control content is_error tool_use_id",
        "mcp_tool_listing": "mcp_server_name tools",
        **dict.fromkeys(SERVER_RESULTS, "cache_control caller content tool_use_id"),
        "container_upload": "cache_control file_id",
        "compaction": "cache_control content encrypted_content signature tool_changes",
        "fallback": "from to trigger",
    },
)
SOURCES = _table(
    "block_type",
    {
        "base64": "data media_type",
        "content": "content",
        "file": "file_id",
        "text": "data media_type",
        "url": "url",
    },
)
_CITED = "cited_text document_index document_title file_id"
# Everything else within a block.
WITHIN = _table(
    "block_type",
    {
        **_EPHEMERAL,
        "advisor_redacted_result": "encrypted_content stop_reason",
        "advisor_result": "stop_reason text",
        "advisor_tool_result_error": "error_code",
        "bash_code_execution_output": "file_id",
        "bash_code_execution_result": "content return_code stderr stdout",
        "bash_code_execution_tool_result_error": "error_code",
        "char_location": f"{_CITED} end_char_index start_char_index",
        "code_execution_20250825": "tool_id",
        "code_execution_20260120": "tool_id",
        "code_execution_20260521": "tool_id",
        "code_execution_output": "file_id",
        "code_execution_result": "content return_code stderr stdout",
        "code_execution_tool_result_error": "error_code",
        "content_block_location": f"{_CITED} end_block_index start_block_index",
        "direct": "",
        "document": "cache_control citations context source title",
        "encrypted_code_execution_result": "content encrypted_stdout return_code stderr",
        "mcp_tool_reference": "name server_name",
        "mcp_toolset_reference": "server_name",
        "page_location": f"{_CITED} end_page_number start_page_number",
        "refusal": "category",
        "search_result_location": "cited_text end_block_index search_result_index source start_block_index title",
        "text_editor_code_execution_create_result": "is_file_update",
        "text_editor_code_execution_str_replace_result": "lines new_lines new_start old_lines old_start",
        "text_editor_code_execution_tool_result_error": "error_code error_message",
        "text_editor_code_execution_view_result": "content file_type num_lines start_line total_lines",
        "tool_definition": "definition",
        "tool_reference": "cache_control name tool_name",
        "tool_search_tool_result_error": "error_code error_message",
        "tool_search_tool_search_result": "tool_references",
        "web_fetch_result": "content retrieved_at url",
        "web_fetch_tool_result_error": "error_code",
        "web_search_result": "encrypted_content page_age title url",
        "web_search_result_location": "cited_text encrypted_index title url",
        "web_search_tool_result_error": "error_code",
        ".citations": "enabled",
        ".from": "model",
        ".to": "model",
        ".transformations": "oversized_image",
    },
)

_TOOL = "allowed_callers cache_control defer_loading name strict"
_OWN_TOOL = f"{_TOOL} input_examples"
_SEARCH = f"{_TOOL} allowed_domains blocked_domains max_uses user_location"
_FETCH = f"{_TOOL} allowed_domains blocked_domains citations max_content_tokens max_uses url_sources"
_SCREEN = f"{_OWN_TOOL} display_height_px display_number display_width_px"
# The caller runs these, so their results are part of the next request.
_CLIENT_TOOLS = {
    "custom": f"{_OWN_TOOL} description eager_input_streaming input_schema",
    "bash_20241022": _OWN_TOOL,
    "bash_20250124": _OWN_TOOL,
    "computer_20241022": _SCREEN,
    "computer_20250124": _SCREEN,
    "computer_20251124": f"{_SCREEN} enable_zoom",
    "memory_20250818": _OWN_TOOL,
    "text_editor_20241022": _OWN_TOOL,
    "text_editor_20250124": _OWN_TOOL,
    "text_editor_20250429": _OWN_TOOL,
    "text_editor_20250728": f"{_OWN_TOOL} max_characters",
}
# An advisor is paid by its model's tokens, the others by the call's tokens or by their searches.
_PRICED_SERVER_TOOLS = {
    "advisor_20260301": f"{_TOOL} caching max_tokens max_uses model",
    "tool_search_tool_bm25": _TOOL,
    "tool_search_tool_bm25_20251119": _TOOL,
    "tool_search_tool_regex": _TOOL,
    "tool_search_tool_regex_20251119": _TOOL,
    "web_fetch_20250910": _FETCH,
    "web_fetch_20260209": _FETCH,
    "web_fetch_20260309": f"{_FETCH} use_cache",
    "web_fetch_20260318": f"{_FETCH} response_inclusion use_cache",
    "web_search_20250305": _SEARCH,
    "web_search_20260209": _SEARCH,
    "web_search_20260318": f"{_SEARCH} response_inclusion",
}
CLIENT_TOOLS = frozenset(_CLIENT_TOOLS)
PRICED_TOOLS = CLIENT_TOOLS | frozenset(_PRICED_SERVER_TOOLS)
TOOLS = _table(
    "tool_type",
    {
        **_CLIENT_TOOLS,
        **_PRICED_SERVER_TOOLS,
        "browser_toolset_20260801": "cache_control configs",
        "code_execution_20250522": _TOOL,
        "code_execution_20250825": _TOOL,
        "code_execution_20260120": _TOOL,
        "code_execution_20260521": _TOOL,
        "computer_toolset_20260801": "cache_control configs",
        "mcp_toolset": "cache_control configs default_config mcp_server_name tools",
    },
)

_EDITS = _table(
    "context_edit",
    {
        "clear_thinking_20251015": "keep",
        "clear_tool_uses_20250919": "clear_at_least clear_tool_inputs exclude_tools keep trigger",
        "compact_20260112": "instructions pause_after_compaction trigger",
    },
)
_OPTIONS = _table(
    "option",
    {
        **_EPHEMERAL,
        "adaptive": "block_binding display",
        "all": "",
        "any": "disable_parallel_tool_use",
        "auto": "disable_parallel_tool_use",
        "between_tools": "block_binding display",
        "disabled": "",
        "enabled": "block_binding budget_tokens display",
        "input_tokens": "value",
        "json_schema": "schema",
        "none": "",
        "thinking_turns": "value",
        "tokens": "remaining total",
        "tool": "disable_parallel_tool_use name",
        "tool_uses": "value",
        ".block_binding": "prefix_mismatch_behavior",
        ".context_management": "edits",
        ".fallbacks": "max_tokens model output_config speed thinking",
        ".metadata": "user_id",
        ".output_config": "effort format task_budget",
    },
)
# The fields that are objects, or lists of objects, whose members are known.
OPTIONS: Mapping[str, Table] = dict.fromkeys(
    [
        "cache_control",
        "context_management",
        "fallbacks",
        "metadata",
        "output_config",
        "output_format",
        "thinking",
        "tool_choice",
    ],
    _OPTIONS,
)
# Where the members of an object are looked up, by the member that holds it.
TABLES: Mapping[str, Table] = {"definition": TOOLS, "edits": _EDITS, "source": SOURCES, "tool_changes": CHANGES}
# The same for `content`, by the type of the object.
TABLES_OF_CONTENT: Mapping[str, Table] = {
    "content": RESULTS,
    "mcp_tool_result": RESULTS,
    "search_result": TEXTS,
    "tool_result": RESULTS,
}
