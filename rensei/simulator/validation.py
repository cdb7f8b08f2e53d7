"""
What the API refuses, in the order in which it does: headers, fields, their values, the model, what the model takes.

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
_BETA_FIELDS = {"context_management", "mcp_servers"}
_SERVER_TOOL = re.compile(r"(bash|browser_toolset|code_execution|computer_toolset|memory|text_editor|web_[a-z]+)_\d{8}")
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
    _check_values(body, version=version, account=account)
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
    require_fields(body, required=required, optional=optional | (_BETA_FIELDS if betas else set()), path="")


def _check_values(body: dict[str, Any], *, version: str, account: Account) -> None:
    if not require_string(body["model"], path="model"):
        raise invalid("model", "String should have at least 1 character")
    if "max_tokens" in body:
        require_integer(body["max_tokens"], path="max_tokens", minimum=0)
    check_messages(body["messages"], version=version, key_sha256=account.key_sha256)
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
    _check_thinking(body)
    _check_output_config(body)
    _check_tools(body)
    check_cache_control(body)


def _check_thinking(body: dict[str, Any]) -> None:
    if body.get("thinking") is None:
        return
    thinking = require_dict(body["thinking"], path="thinking")
    kinds = ("adaptive", "enabled", "disabled", "between_tools")
    require_one_of(thinking.get("type"), kinds, path="thinking.type")
    display = {"display"} if thinking["type"] in ("adaptive", "enabled") else set()
    budget = {"budget_tokens"} if thinking["type"] == "enabled" else set()
    require_fields(thinking, required={"type"} | budget, optional=display, path="thinking")
    if thinking.get("display") is not None:
        require_one_of(thinking["display"], ("summarized", "omitted"), path="thinking.display")
    if budget:
        require_integer(thinking["budget_tokens"], path="thinking.enabled.budget_tokens", minimum=1024)


def _check_output_config(body: dict[str, Any]) -> None:
    if body.get("output_config") is None:
        return
    config = require_dict(body["output_config"], path="output_config")
    require_fields(config, required=set(), optional={"effort", "format"}, path="output_config")
    if config.get("effort") is not None:
        levels = ("low", "medium", "high", "xhigh", "max")
        require_one_of(config["effort"], levels, path="output_config.effort")
    if config.get("format") is not None:
        form = require_dict(config["format"], path="output_config.format")
        require_fields(form, required={"type", "schema"}, optional=set(), path="output_config.format")
        require_one_of(form["type"], ("json_schema",), path="output_config.format.type")
        check_schema(form["schema"], path="output_config.format.schema")


def _check_tools(body: dict[str, Any]) -> None:
    tools = require_list(body.get("tools", []), path="tools")
    for index, value in enumerate(tools):
        _check_tool(require_dict(value, path=f"tools.{index}"), path=f"tools.{index}")
    names = [tool["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise invalid("tools", "Tool names must be unique.")
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
    if "name" not in tool:
        raise invalid(f"{path}.name", "Field required")
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
