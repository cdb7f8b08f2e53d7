"""
The simulator's count of tokens: a rule that can be computed by hand, not the tokenizer of any model.

Text is split at white space; each word costs one token for every 4 bytes begun. So `"word " * 1000` is 1000 tokens.
"""

import base64
import io
import json
import math
from typing import Any

from PIL import Image

from rensei.simulator.model_facts import Model

TOKENS_PER_MESSAGE = 4
TOKENS_OF_TOOL_USE = 300
TOKENS_OF_REMOTE_IMAGE = 1568
TOKENS_PER_PDF_PAGE = 1500
_PIXELS_PER_SIDE_OF_A_TOKEN = 28


def count_text(text: str) -> int:
    return sum((len(word.encode()) + 3) // 4 for word in text.split())


def count_json(value: Any) -> int:
    return math.ceil(len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()) / 4)


def count_image(*, width: int, height: int, model: Model) -> int:
    """
    Count an image after the resize that the API would do.

    Source: https://platform.claude.com/docs/en/build-with-claude/vision (28 px patches; two tiers of resolution)
    """
    long_edge_max, tokens_max = (2576, 4784) if model.high_resolution_vision else (1568, 1568)
    scale = min(1.0, long_edge_max / max(width, height))
    while (tokens := _patches(width * scale) * _patches(height * scale)) > tokens_max:
        scale *= 0.99
    return tokens


def image_size(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        return image.size


def count_block(block: dict[str, Any], *, model: Model) -> int:
    """Count one content block, including the blocks inside it."""
    match block["type"]:
        case "text":
            return count_text(block["text"])
        case "thinking":
            return count_text(block["thinking"])
        case "image":
            return _count_image_block(block["source"], model=model)
        case "document":
            return _count_document(block["source"], model=model)
        case "tool_result" | "search_result":
            return count_content(block.get("content", ""), model=model)
        case "tool_use" | "server_tool_use":
            return count_json(block["input"]) + count_text(block["name"])
        case _:
            return count_json(block)


def count_content(content: Any, *, model: Model) -> int:
    if isinstance(content, str):
        return count_text(content)
    return sum(count_block(block, model=model) for block in content)


def count_tool(tool: dict[str, Any]) -> int:
    return count_json({key: value for key, value in tool.items() if key != "cache_control"})


def _count_image_block(source: dict[str, Any], *, model: Model) -> int:
    if source["type"] != "base64":
        return TOKENS_OF_REMOTE_IMAGE
    width, height = image_size(base64.b64decode(source["data"]))
    return count_image(width=width, height=height, model=model)


def _count_document(source: dict[str, Any], *, model: Model) -> int:
    match source["type"]:
        case "text":
            return count_text(source["data"])
        case "content":
            return count_content(source["content"], model=model)
        case "base64":
            pages = base64.b64decode(source["data"]).count(b"/Type /Page\n") or 1
            return pages * TOKENS_PER_PDF_PAGE
        case _:
            return TOKENS_PER_PDF_PAGE


def _patches(pixels: float) -> int:
    return max(1, math.ceil(pixels / _PIXELS_PER_SIDE_OF_A_TOKEN - 1e-9))
