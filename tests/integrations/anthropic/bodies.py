"""Generated bodies of the Messages API: what is known, what is made up, and both nested in one another."""

import base64
import io
import os
from functools import cache
from typing import Any

from hypothesis import strategies as st
from PIL import Image

# `RENSEI_BODIES=10000` makes the large run.
NUMBER = int(os.environ.get("RENSEI_BODIES", "150"))
SIDES = (1, 28, 200, 1568, 2576)

texts = st.one_of(
    st.text(max_size=200),
    st.text(alphabet="ab =\n\t—漢🙂ﷺ㌀¼ſ\u0344", max_size=200),
    st.builds(
        lambda word, times: word * times, st.sampled_from(["word ", "=", "a b ", "漢字", "\\n"]), st.integers(0, 400)
    ),
)
visible_texts = texts.map(lambda text: text if text.strip() else f"{text}x")
names = st.text(alphabet="abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=24)


@cache
def png(width: int, height: int) -> str:
    """An image of one colour: few bytes, and as many tokens as any of its size."""
    data = io.BytesIO()
    Image.new("1", (width, height)).save(data, "png")
    return base64.b64encode(data.getvalue()).decode()


def pdf(pages: int) -> str:
    return base64.b64encode(b"%PDF-1.4\n" + b"<< /Type /Page\n>>\n" * pages).decode()


images = st.builds(
    lambda width, height: {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": png(width, height)},
    },
    st.sampled_from(SIDES),
    st.sampled_from(SIDES),
)
remote_images = st.just({"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}})
text_blocks = st.builds(lambda text: {"type": "text", "text": text}, visible_texts)
text_documents = st.builds(
    lambda text: {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": text}}, texts
)
pdfs = st.builds(
    lambda pages: {
        "type": "document",
        "source": {"type": "base64", "media_type": "application/pdf", "data": pdf(pages)},
    },
    st.integers(0, 40),
)
remote_documents = st.just({"type": "document", "source": {"type": "url", "url": "https://example.com/a.pdf"}})
documents_of_blocks = st.builds(
    lambda content: {"type": "document", "title": "T", "source": {"type": "content", "content": content}},
    st.lists(text_blocks, min_size=1, max_size=3),
)
search_results = st.builds(
    lambda title, content: {"type": "search_result", "source": "https://a.example", "title": title, "content": content},
    texts,
    st.lists(text_blocks, min_size=1, max_size=3),
)
user_blocks = st.one_of(
    text_blocks, images, remote_images, text_documents, pdfs, remote_documents, documents_of_blocks, search_results
)

# Anything that JSON can say, with the names that blocks use for what is elsewhere.
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts | images,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            names | st.sampled_from(["source", "url", "file_id", "content", "text", "data"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
objects = st.dictionaries(names, values, max_size=4)
made_up_blocks = st.builds(
    lambda kind, members, inner: {**members, "type": f"made_up_{kind}", "content": inner},
    names,
    objects,
    values | st.lists(user_blocks, max_size=2),
)
# What is known, with members that are not.
added_to_blocks = st.builds(lambda block, members: {**members, **block}, user_blocks, objects)
history_blocks = st.one_of(
    st.builds(lambda text, more: {"type": "thinking", "thinking": text, "signature": more}, texts, texts),
    st.builds(lambda data: {"type": "redacted_thinking", "data": data}, texts),
    st.builds(lambda content: {"type": "compaction", "content": content}, texts),
    st.builds(lambda name, value: {"type": "tool_use", "id": "t", "name": name, "input": value}, names, objects),
    st.builds(lambda name, value: {"type": "server_tool_use", "id": "t", "name": name, "input": value}, names, objects),
    st.builds(
        lambda content: {
            "type": "web_search_tool_result",
            "tool_use_id": "t",
            "content": [{"type": "web_search_result", "url": "https://a.example", "encrypted_content": content}],
        },
        texts,
    ),
    st.builds(
        lambda document: {
            "type": "web_fetch_tool_result",
            "tool_use_id": "t",
            "content": {"type": "web_fetch_result", "url": "https://a.example", "content": document},
        },
        text_documents | pdfs,
    ),
    st.builds(
        lambda name, value: {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": value}},
        names,
        objects,
    ),
)
tool_results = st.builds(
    lambda content: {"type": "tool_result", "tool_use_id": "t", "content": content},
    texts | st.lists(user_blocks | made_up_blocks, max_size=3),
)
any_blocks = user_blocks | history_blocks | tool_results | made_up_blocks | added_to_blocks
tools = st.one_of(
    st.builds(
        lambda name, text, schema: {"name": name, "description": text, "input_schema": {"type": "object", **schema}},
        names,
        texts,
        st.builds(
            lambda members: {"properties": {name: {"enum": [text]} for name, text in members.items()}},
            st.dictionaries(names, texts, max_size=4),
        ),
    ),
    st.builds(
        lambda kind: {"type": kind, "name": kind[:-9]},
        st.sampled_from(["web_search_20250305", "bash_20250124", "memory_20250818"]),
    ),
)
own_tools = tools.filter(lambda tool: "input_schema" in tool)
formats = st.builds(
    lambda members: {
        "format": {
            "type": "json_schema",
            "schema": {"type": "object", "properties": {name: {"enum": [text]} for name, text in members.items()}},
        }
    },
    st.dictionaries(names, texts, max_size=4),
)


def _body(content: list[Any], system: Any, declared: list[Any], config: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "claude-opus-5-5", "messages": content}
    if system:
        body["system"] = system
    if declared:
        body["tools"] = list({tool["name"]: tool for tool in declared}.values())
    if config:
        body["output_config"] = config
    return body


def _messages(blocks: st.SearchStrategy[Any]) -> st.SearchStrategy[list[dict[str, Any]]]:
    content = visible_texts | st.lists(blocks, min_size=1, max_size=4)
    return st.lists(content.map(lambda content: {"role": "user", "content": content}), min_size=1, max_size=3)


any_bodies = st.builds(
    _body,
    _messages(any_blocks),
    texts | st.lists(text_blocks, max_size=2),
    st.lists(tools, max_size=3),
    st.none() | formats,
)
# What the API takes.
valid_bodies = st.builds(
    _body,
    _messages(user_blocks),
    texts | st.lists(text_blocks, max_size=2),
    st.lists(own_tools, max_size=3),
    st.none() | formats,
)
# What is known, with blocks that the API takes as a part of a conversation only.
known_bodies = st.builds(
    _body,
    _messages(user_blocks | history_blocks.filter(lambda block: block["type"] != "tool_addition")),
    texts | st.lists(text_blocks, max_size=2),
    st.lists(tools, max_size=3),
    st.none() | formats,
)
