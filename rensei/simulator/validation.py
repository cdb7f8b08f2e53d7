"""
The checks of the API, in its order: headers, fields, their values, the model, what the model accepts.

Source: https://platform.claude.com/docs/en/api/messages and the types of the `anthropic` SDK.
"""

import re
from typing import Any

from rensei.simulator.betas import KNOWN_BETAS
from rensei.simulator.content import all_blocks, check_cache_control, check_messages, check_system
from rensei.simulator.errors import ApiError, invalid
from rensei.simulator.images import check_images_together
from rensei.simulator.keys import Account
from rensei.simulator.model_facts import Model
from rensei.simulator.model_rules import check_model_rules
from rensei.simulator.schemas import check_schema
from rensei.simulator.shapes import (
    require_dict,
    require_fields,
    require_integer,
    require_list,
    require_one_of,
    require_string,
)

VERSIONS = ("2023-06-01", "2026-10-21")
_PROMPT_FIELDS = {"cache_control", "output_config", "speed", "system", "thinking", "tool_choice", "tools"}
_MESSAGE_FIELDS = _PROMPT_FIELDS | {
    "container",
    "diagnostics",
    "inference_geo",
    "metadata",
    "service_tier",
    "stop_sequences",
    "stream",
    "temperature",
    "top_k",
    "top_p",
}
# Fields that need a beta of this name, and fields that any beta enables.
_FIELDS_OF_BETAS = {
    "message-threads-2026-08-12": {"thread"},
    "structured-outputs-2025-11-13": {"output_format"},
}
_BETA_FIELDS = {"context_management", "fallback_credit_token", "fallbacks", "mcp_servers"}
_SERVER_TOOL = re.compile(
    r"(advisor|bash|browser_toolset|code_execution|computer|computer_toolset|memory|text_editor|web_[a-z]+)_\d{8}"
    r"|tool_search_tool_(bm25|regex)(_\d{8})?"
)
_BINDING_BETA, _UPDATES_BETA = "thinking-binding-controls-2026-08-01", "thinking-display-updates-2026-08-18"
_TASK_BUDGET_BETA = "task-budgets-2026-03-13"
_CUSTOM_TOOL_FIELDS = {
    "allowed_callers",
    "cache_control",
    "defer_loading",
    "description",
    "eager_input_streaming",
    "input_examples",
    "strict",
    "type",
}


def check_headers(headers: dict[str, str]) -> str:
    """
    Check the version and the beta names, and return the version.

    :raises ApiError: 400
    """
    version = headers.get("anthropic-version")
    if version is None:
        raise invalid("anthropic-version", "header is required")
    if version not in VERSIONS:
        raise invalid("anthropic-version", f'"{version}" is not a valid version')
    unknown = sorted(beta_names(headers) - KNOWN_BETAS)
    if unknown:
        names = ", ".join(f"`{name}`" for name in unknown)
        raise ApiError(400, f"Unexpected value(s) {names} for the `anthropic-beta` header.")
    return version


def beta_names(headers: dict[str, str]) -> frozenset[str]:
    return frozenset(name.strip() for name in headers.get("anthropic-beta", "").split(",") if name.strip())


def check_request(
    body: Any, *, account: Account, version: str, betas: frozenset[str], counts_only: bool = False
) -> Model:
    """
    Check the whole body of a request for a message or a count of tokens, and return the model that serves it.

    :raises ApiError: 400, or 404 for the model
    """
    if not isinstance(body, dict):
        raise ApiError(400, "Input should be a valid dictionary")
    _check_fields(body, betas=betas, counts_only=counts_only)
    _check_values(body, version=version, account=account, betas=betas)
    model = account.model_to_serve(body["model"])
    if model.retention_required and "zdr" in account.words:
        raise ApiError(
            400,
            "In order to access this model, your organization or workspace must have data retention enabled.",
            on_purpose=True,
        )
    check_model_rules(body, model=model, version=version, betas=betas)
    sources = [(path, block["source"]) for path, block in all_blocks(body) if block.get("type") == "image"]
    check_images_together(sources, model=model)
    return model


def _check_fields(body: dict[str, Any], *, betas: frozenset[str], counts_only: bool) -> None:
    required = {"model", "messages"} if counts_only else {"model", "messages", "max_tokens"}
    optional = _PROMPT_FIELDS if counts_only else _MESSAGE_FIELDS
    opened = set().union(_BETA_FIELDS if betas else (), *(_FIELDS_OF_BETAS.get(beta, ()) for beta in betas))
    require_fields(body, required=required, optional=optional | opened, path="")


def _check_values(body: dict[str, Any], *, version: str, account: Account, betas: frozenset[str]) -> None:
    if not require_string(body["model"], path="model"):
        raise invalid("model", "String should have at least 1 character")
    if "max_tokens" in body:
        require_integer(body["max_tokens"], path="max_tokens", minimum=0)
    check_messages(body["messages"], version=version, key_sha256=account.key_sha256, betas=betas)
    if "system" in body:
        check_system(body["system"])
    if "stream" in body:
        require_one_of(body["stream"], (True, False), path="stream")
    if "service_tier" in body:
        require_one_of(body["service_tier"], ("auto", "standard_only"), path="service_tier")
    if body.get("speed") is not None:
        require_one_of(body["speed"], ("standard", "fast"), path="speed")
    if body.get("inference_geo") is not None:
        require_one_of(body["inference_geo"], ("us", "global"), path="inference_geo")
    for index, sequence in enumerate(require_list(body.get("stop_sequences", []), path="stop_sequences")):
        if not require_string(sequence, path=f"stop_sequences.{index}").strip():
            raise invalid("stop_sequences", "each stop sequence must contain non-whitespace")
    if "metadata" in body:
        metadata = require_dict(body["metadata"], path="metadata")
        require_fields(metadata, required=set(), optional={"user_id"}, path="metadata")
    _check_thinking(body, betas=betas)
    _check_output_config(body, betas=betas)
    _check_tools(body)
    check_cache_control(body)


def _check_thinking(body: dict[str, Any], *, betas: frozenset[str]) -> None:
    if body.get("thinking") is None:
        return
    thinking = require_dict(body["thinking"], path="thinking")
    kinds = ("adaptive", "enabled", "disabled", "between_tools")
    require_one_of(thinking.get("type"), kinds, path="thinking.type")
    optional = {"display"} if thinking["type"] in ("adaptive", "enabled") else set()
    if optional and _BINDING_BETA in betas:
        optional.add("block_binding")
    budget = {"budget_tokens"} if thinking["type"] == "enabled" else set()
    require_fields(thinking, required={"type"} | budget, optional=optional, path="thinking")
    if thinking.get("display") is not None:
        updates = ("updates",) if _UPDATES_BETA in betas else ()
        require_one_of(thinking["display"], ("summarized", "omitted", *updates), path="thinking.display")
    if thinking.get("block_binding") is not None:
        binding = require_dict(thinking["block_binding"], path="thinking.block_binding")
        name = "prefix_mismatch_behavior"
        require_fields(binding, required=set(), optional={name}, path="thinking.block_binding")
        if binding.get(name) is not None:
            require_one_of(binding[name], ("error", "drop_block"), path=f"thinking.block_binding.{name}")
    if budget:
        require_integer(thinking["budget_tokens"], path="thinking.enabled.budget_tokens", minimum=1024)


def _check_output_config(body: dict[str, Any], *, betas: frozenset[str]) -> None:
    if body.get("output_format") is not None:
        _check_output_format(body["output_format"], path="output_format")
    if body.get("output_config") is None:
        return
    config = require_dict(body["output_config"], path="output_config")
    budget = {"task_budget"} if _TASK_BUDGET_BETA in betas else set()
    require_fields(config, required=set(), optional={"effort", "format"} | budget, path="output_config")
    if config.get("effort") is not None:
        levels = ("low", "medium", "high", "xhigh", "max")
        require_one_of(config["effort"], levels, path="output_config.effort")
    if config.get("format") is not None:
        if body.get("output_format") is not None:
            raise invalid("output_format", "may not be given together with output_config.format")
        _check_output_format(config["format"], path="output_config.format")
    if config.get("task_budget") is not None:
        task = require_dict(config["task_budget"], path="output_config.task_budget")
        require_fields(task, required={"type", "total"}, optional={"remaining"}, path="output_config.task_budget")
        require_one_of(task["type"], ("tokens",), path="output_config.task_budget.type")
        require_integer(task["total"], path="output_config.task_budget.total", minimum=1)


def _check_output_format(value: Any, *, path: str) -> None:
    form = require_dict(value, path=path)
    require_fields(form, required={"type", "schema"}, optional=set(), path=path)
    require_one_of(form["type"], ("json_schema",), path=f"{path}.type")
    check_schema(form["schema"], path=f"{path}.schema")


def _check_tools(body: dict[str, Any]) -> None:
    tools = require_list(body.get("tools", []), path="tools")
    for index, value in enumerate(tools):
        _check_tool(require_dict(value, path=f"tools.{index}"), path=f"tools.{index}")
    names = [tool["name"] for tool in tools if "name" in tool]
    if len(set(names)) < len(names):
        raise invalid("tools", "Tool names must be unique.")
    if tools and all(tool.get("defer_loading") is True for tool in tools):
        raise ApiError(400, "All tools have defer_loading set. At least one tool must be non-deferred.")
    if body.get("tool_choice") is None:
        return
    choice = require_dict(body["tool_choice"], path="tool_choice")
    require_one_of(choice.get("type"), ("auto", "any", "tool", "none"), path="tool_choice.type")
    required = {"type", "name"} if choice["type"] == "tool" else {"type"}
    optional = set() if choice["type"] == "none" else {"disable_parallel_tool_use"}
    require_fields(choice, required=required, optional=optional, path="tool_choice")
    if not tools:
        raise invalid("tool_choice", "tool_choice may only be specified while providing tools")
    if choice["type"] == "tool" and choice["name"] not in names:
        raise ApiError(400, f"Tool '{choice['name']}' not found in provided tools")


def _check_tool(tool: dict[str, Any], *, path: str) -> None:
    if tool.get("type") == "mcp_toolset":
        optional = {"cache_control", "configs", "default_config", "tools"}
        require_fields(tool, required={"type", "mcp_server_name"}, optional=optional, path=path)
        return
    if "name" not in tool and "toolset" in str(tool.get("type")) and _SERVER_TOOL.fullmatch(str(tool["type"])):
        return
    if "name" not in tool:
        raise invalid(f"{path}.name", "Field required")
    if tool.get("defer_loading") and tool.get("cache_control") is not None:
        raise ApiError(400, f"Tool '{tool['name']}' cannot have both defer_loading=true and cache_control set.")
    name = require_string(tool["name"], path=f"{path}.name")
    if _SERVER_TOOL.fullmatch(str(tool.get("type"))):
        return
    require_one_of(tool.get("type", "custom"), ("custom",), path=f"{path}.type")
    require_fields(tool, required={"name", "input_schema"}, optional=_CUSTOM_TOOL_FIELDS, path=path)
    if not re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", name):
        raise invalid(f"{path}.name", "String should match pattern '^[a-zA-Z0-9_-]{1,128}$'")
    schema = require_dict(tool["input_schema"], path=f"{path}.input_schema")
    require_one_of(schema.get("type"), ("object",), path=f"{path}.input_schema.type")
    check_schema(schema, path=f"{path}.input_schema")
