"""Generated requests of the Messages API: most are valid by the simulator's checker, and each part varies."""

from typing import Any

from hypothesis import strategies as st

from rensei.simulator.betas import KNOWN_BETAS
from rensei.simulator.errors import ApiError
from rensei.simulator.keys import Account
from rensei.simulator.model_facts import Model, find_model
from rensei.simulator.signatures import sign_thinking
from rensei.simulator.validation import check_request

ACCOUNT = Account(key_sha256="0" * 64, words=frozenset({"verified"}))
MARKS = st.sampled_from([{"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}])
# Words that no model caches, and so many that each model does.
TEXTS = st.sampled_from(["Hi.", "word " * 600, "word " * 5000, " Well "])
SERVER_TOOLS = ["bash_20250124", "code_execution_20260120", "memory_20250818", "web_search_20250305"]


def is_valid(body: Any, *, version: str = "2023-06-01", betas: frozenset[str] = KNOWN_BETAS) -> bool:
    """Tell whether the simulator takes a body."""
    try:
        check_request(body, account=ACCOUNT, version=version, betas=betas)
    except ApiError:
        return False
    return True


@st.composite
def requests(draw: st.DrawFn, model_id: str) -> dict[str, Any]:
    """Make a request for a model. What it asks for is what the model is likely to take."""
    model = find_model(model_id)
    assert model is not None
    body: dict[str, Any] = {
        "model": model_id,
        "max_tokens": draw(st.sampled_from([0, 1, 500, 1025, 2049, 5000, 20_000, model.max_tokens])),
        "messages": draw(conversations(model)),
    }
    tools = draw(st.lists(tools_of_all_kinds(), max_size=4, unique_by=lambda tool: tool.get("name")))
    optional: dict[str, st.SearchStrategy[Any]] = {
        "system": st.one_of(TEXTS, st.lists(texts(), max_size=2)),
        "thinking": thinking(model),
        "output_config": output_configs(model),
        "output_format": st.just({"type": "json_schema", "schema": {"type": "object"}}),
        "cache_control": MARKS,
        "temperature": st.sampled_from([1, 0.5, None]),
        "top_k": st.just(5),
        "stream": st.booleans(),
        "stop_sequences": st.just(["zz"]),
        "metadata": st.just({"user_id": "x"}),
        "service_tier": st.just("auto"),
        "context_management": st.just({"edits": [{"type": "clear_tool_uses_20250919"}]}),
        "fallbacks": st.just([{"model": "claude-opus-4-8"}]),
        "thread": st.just({"type": "create"}),
    }
    likely = {"system", "thinking", "output_config", "stream"}
    for name, values in optional.items():
        if draw(st.integers(0, 2 if name in likely else 9)) == 0:
            body[name] = draw(values)
    if tools:
        body["tools"] = tools
        if draw(st.integers(0, 3)) == 0:
            body["tool_choice"] = draw(st.sampled_from([{"type": "auto"}, {"type": "any"}, {"type": "none"}]))
    return body


@st.composite
def conversations(draw: st.DrawFn, model: Model) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for number in range(draw(st.integers(0, 2))):
        turns += [{"role": "user", "content": draw(said())}, *draw(answers(number))]
    turns.append({"role": "user", "content": draw(said())})
    ends = ["user", "user", "called", *(["begun"] if model.prefill else [])]
    ends += ["system"] if model.mid_conversation_system else []
    match draw(st.sampled_from(ends)):
        case "begun":
            turns.append({"role": "assistant", "content": draw(st.sampled_from(["The answer is", [_text("So")]]))})
        case "called":
            turns += draw(calls(9))
        case "system":
            turns.append({"role": "system", "content": draw(st.sampled_from(["Be kind.", [_text("Be kind.")]]))})
    return turns


def answers(number: int) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.one_of(
        st.just([{"role": "assistant", "content": "Well."}]),
        st.just([{"role": "assistant", "content": [_thought(), _text("Well.")]}]),
        calls(number).map(lambda turns: [*turns, {"role": "assistant", "content": "Done."}]),
    )


@st.composite
def calls(draw: st.DrawFn, number: int) -> list[dict[str, Any]]:
    """A tool is called, perhaps twice in one turn, and perhaps after some thinking."""
    turns: list[dict[str, Any]] = []
    for step in range(draw(st.integers(1, 2))):
        call = {"type": "tool_use", "id": f"toolu_{number}_{step}", "name": "look", "input": {"cache_control": 1}}
        result: dict[str, Any] = {"type": "tool_result", "tool_use_id": call["id"]}
        if draw(st.booleans()):
            result["content"] = draw(st.one_of(TEXTS, st.lists(texts(), min_size=1, max_size=2)))
        thought = [_thought()] if step == 0 and draw(st.booleans()) else []
        turns += [{"role": "assistant", "content": [*thought, call]}, {"role": "user", "content": [result]}]
    return turns


def said() -> st.SearchStrategy[Any]:
    document = {"type": "document", "source": {"type": "content", "content": [_text("A fact.")]}}
    marked = {"type": "document", "source": {"type": "content", "content": [{**_text("A"), "cache_control": None}]}}
    found = {"type": "search_result", "source": "s", "title": "t", "content": [_text("Rain.")]}
    blocks = st.one_of(texts(), st.sampled_from([document, marked, found]))
    return st.one_of(TEXTS, st.lists(blocks, min_size=1, max_size=3))


@st.composite
def texts(draw: st.DrawFn) -> dict[str, Any]:
    block = _text(draw(TEXTS))
    if draw(st.integers(0, 9)) == 0:
        block["cache_control"] = draw(MARKS)
    return block


@st.composite
def tools_of_all_kinds(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from(["look", "hear", "find", "call"]))
    tool: dict[str, Any] = draw(
        st.sampled_from(
            [
                {"name": name, "input_schema": {"type": "object"}},
                {"name": name, "description": "word " * 3000, "input_schema": {"type": "object"}, "type": "custom"},
                {"name": name, "type": draw(st.sampled_from(SERVER_TOOLS))},
                {"type": "mcp_toolset", "mcp_server_name": "maps"},
            ]
        )
    )
    if draw(st.booleans()) and tool.get("type") != "mcp_toolset":
        tool = {**tool, "defer_loading": True}
    if draw(st.integers(0, 9)) == 0:
        tool = {**tool, "cache_control": draw(MARKS)}
    return tool


def thinking(model: Model) -> st.SearchStrategy[Any]:
    forms = [
        {"type": "enabled", "budget_tokens": 1024} if kind == "enabled" else {"type": kind}
        for kind in model.thinking_types
    ]
    return st.sampled_from([None, *forms])


def output_configs(model: Model) -> st.SearchStrategy[Any]:
    form = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    return st.sampled_from([None, {}, form, *({"effort": level} for level in model.efforts)])


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _thought() -> dict[str, Any]:
    return {"type": "thinking", "thinking": "", "signature": sign_thinking("", key_sha256=ACCOUNT.key_sha256)}
