"""The reply of the model: deterministic text that describes the request, thinking, tool calls, and their tokens."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from rensei.simulator.citations import cite_documents
from rensei.simulator.directives import Directives
from rensei.simulator.model_facts import Model
from rensei.simulator.prompt_cache import PromptUsage
from rensei.simulator.schemas import example_of
from rensei.simulator.signatures import sign_thinking
from rensei.simulator.tokens import count_json, count_text, image_size

# Words of at most four letters, so that a reply of N words is N tokens.
_SENTENCE = "the sun and the sea are calm this year and we go for a walk with our dog"
_THINKING_TOKENS = {"low": 16, "medium": 32, "high": 64, "xhigh": 96, "max": 128}


@dataclass(frozen=True, kw_only=True)
class Reply:
    content: list[dict[str, Any]]
    stop_reason: str
    stop_sequence: str | None = None
    output_tokens: int
    thinking_tokens: int


def compose_reply(
    body: dict[str, Any], *, model: Model, directives: Directives, prompt: PromptUsage, key_sha256: str
) -> Reply:
    """Compose the whole answer, cut at `max_tokens`, a stop sequence or the context window."""
    room = max(0, model.context_window - prompt.total)
    limit = min(body["max_tokens"], room)
    cut_reason = "max_tokens" if body["max_tokens"] <= room else "model_context_window_exceeded"

    content, thinking_tokens = _think(body, model=model, limit=limit, key_sha256=key_sha256)
    left = limit - thinking_tokens
    call = _call_tool(body, directives=directives)
    stop_sequence = None
    if call and count_json(call["input"]) <= left:
        content.append(call)
        tokens, stop_reason = count_json(call["input"]), "tool_use"
    else:
        text = _text(body, model=model, directives=directives, prompt=prompt)
        text, stop_sequence = _cut_at_sequence(text, sequences=body.get("stop_sequences") or [])
        text, tokens, is_whole = _cut_text(text, limit=left)
        stop_reason = "stop_sequence" if stop_sequence else "end_turn"
        if not is_whole:
            stop_reason, stop_sequence = cut_reason, None
        if text:
            citations = cite_documents(body["messages"])
            content.append({"type": "text", "text": text, **({"citations": citations} if citations else {})})
    return Reply(
        content=content,
        stop_reason=directives.stop_reason or stop_reason,
        stop_sequence=stop_sequence,
        output_tokens=thinking_tokens + tokens,
        thinking_tokens=thinking_tokens,
    )


def usage_of(body: dict[str, Any], *, prompt: PromptUsage, reply: Reply) -> dict[str, Any]:
    """Build the `usage` of a finished message."""
    geo = body.get("inference_geo")
    return {
        "input_tokens": prompt.input_tokens,
        "cache_creation_input_tokens": prompt.written_5m_tokens + prompt.written_1h_tokens,
        "cache_read_input_tokens": prompt.read_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": prompt.written_5m_tokens,
            "ephemeral_1h_input_tokens": prompt.written_1h_tokens,
        },
        "output_tokens": reply.output_tokens,
        "output_tokens_details": {"thinking_tokens": reply.thinking_tokens},
        "server_tool_use": None,
        "service_tier": "standard",
        "inference_geo": geo or "global",
        "speed": body.get("speed") or "standard",
    }


def falsify_usage(usage: dict[str, Any], *, fault: str) -> dict[str, Any]:
    """Return the false usage of a hostile provider."""
    false: dict[str, dict[str, Any]] = {
        "negativeusage": {"input_tokens": -5, "output_tokens": -1_000_000},
        "hugeusage": {"input_tokens": 2**63, "output_tokens": 10**30},
        "nanusage": {"input_tokens": float("nan"), "output_tokens": float("inf")},
    }
    return {**usage, **false[fault]}


def with_odd_text(content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to the texts what JSON allows and few databases can store: U+0000, and half of a surrogate pair."""
    return [
        {**block, "text": f"{block['text']} nul \0 half \ud83d end"} if block["type"] == "text" else block
        for block in content
    ]


def _think(body: dict[str, Any], *, model: Model, limit: int, key_sha256: str) -> tuple[list[dict[str, Any]], int]:
    """Create the thinking block, if the model thinks in this request; return it and its tokens."""
    display = _thinking_display(body, model=model)
    tokens = min(_thinking_wish(body, model=model), limit) if display else 0
    if not tokens:
        return [], 0
    shown = _words(tokens) if display == "summarized" else ""
    signature = sign_thinking(shown, key_sha256=key_sha256)
    return [{"type": "thinking", "thinking": shown, "signature": signature}], tokens


def _thinking_display(body: dict[str, Any], *, model: Model) -> str | None:
    """Return how thinking is shown in this reply (`summarized`, `omitted`), or None if the model does not think."""
    thinking = body.get("thinking")
    kind = thinking["type"] if thinking else ("adaptive" if model.thinking_on_by_default else "disabled")
    if kind not in ("adaptive", "enabled"):
        return None
    return (thinking or {}).get("display") or model.thinking_display


def _thinking_wish(body: dict[str, Any], *, model: Model) -> int:
    """Return the number of thinking tokens: more with more effort, or a sixteenth of the budget."""
    thinking = body.get("thinking") or {}
    if thinking.get("type") == "enabled":
        return int(thinking["budget_tokens"]) // 16
    effort = (body.get("output_config") or {}).get("effort") or model.effort_default
    return _THINKING_TOKENS[effort or "high"]


def _text(body: dict[str, Any], *, model: Model, directives: Directives, prompt: PromptUsage) -> str:
    if directives.echo is not None:
        return directives.echo
    if directives.reply_words is not None:
        return _words(directives.reply_words)
    output_config = body.get("output_config") or {}
    if schema := (output_config.get("format") or body.get("output_format") or {}).get("schema"):
        return json.dumps(example_of(schema))

    digest = hashlib.sha256(directives.text.encode()).hexdigest()[:12]
    lines = [
        f"This is the Anthropic simulator, answering as {model.id}.",
        f"The prompt has {prompt.total} tokens and the digest {digest}.",
    ]
    if effort := output_config.get("effort"):
        lines.append(f"The effort is {effort}.")
    for number, description in enumerate(_describe_images(body["messages"]), start=1):
        lines.append(f"Image {number} is {description}.")
    return "\n".join(lines)


def _words(number: int) -> str:
    return " ".join(islice(cycle(_SENTENCE.split()), number))


def _describe_images(messages: list[dict[str, Any]]) -> list[str]:
    descriptions = []
    for block in _all_blocks([message["content"] for message in messages]):
        if block["type"] != "image":
            continue
        source = block["source"]
        if source["type"] == "base64":
            data = base64.b64decode(source["data"])
            width, height = image_size(data)
            digest = hashlib.sha256(data).hexdigest()
            descriptions.append(f"{source['media_type']} {len(data)} bytes {width}x{height} sha256={digest}")
        else:
            descriptions.append(f"from {source.get('url') or source.get('file_id')}")
    return descriptions


def _all_blocks(contents: list[Any]) -> list[dict[str, Any]]:
    found = []
    for content in contents:
        for block in content if isinstance(content, list) else []:
            found.append(block)
            found.extend(_all_blocks([block.get("content")]))
    return found


def _cut_text(text: str, *, limit: int) -> tuple[str, int, bool]:
    """Cut a text at a number of tokens; return it, its tokens, and whether it is complete."""
    tokens = 0
    for match in re.finditer(r"\S+", text):
        word_tokens = count_text(match.group())
        if tokens + word_tokens > limit:
            return text[: match.start()].rstrip(), tokens, False
        tokens += word_tokens
    return text, tokens, True


def _cut_at_sequence(text: str, *, sequences: list[str]) -> tuple[str, str | None]:
    """Cut a text at the first stop sequence in it, if there is one."""
    found = [sequence for sequence in sequences if sequence in text]
    if not found:
        return text, None
    first = min(found, key=text.index)
    return text[: text.index(first)], first


def _call_tool(body: dict[str, Any], *, directives: Directives) -> dict[str, Any] | None:
    """Call the tool that the request forces or the prompt requests by `[[use NAME]]` or `[[use NAME {…}]]`."""
    tools = {tool["name"]: tool for tool in body.get("tools") or [] if "input_schema" in tool}
    choice = body.get("tool_choice") or {"type": "auto"}
    match choice["type"]:
        case "tool":
            tool = tools.get(choice["name"])
        case "any":
            tool = next(iter(tools.values()), None)
        case "auto":
            tool = tools.get(directives.tool or "")
        case _:
            tool = None
    if tool is None:
        return None
    is_given = tool["name"] == directives.tool and directives.tool_input is not None
    values = directives.tool_input if is_given else example_of(tool["input_schema"])
    digest = hashlib.sha256(json.dumps([tool["name"], values]).encode()).hexdigest()
    return {"type": "tool_use", "id": f"toolu_{digest[:24]}", "name": tool["name"], "input": values}
