"""Documents, good and bad: what is read, and what is refused with which line, node and field."""

import json
import time

import pytest

from rensei.dispatch import agents
from rensei.workflows.documents import AGENT, INFERENCE, Document, read_document, wanted_input
from rensei.workflows.reading import WorkflowInvalid
from tests.workflows.conftest import DOCUMENTED

NODE = "- nodeId: {id}\n  nodeType: action/llm.inference\n"


def flow(*nodes: str) -> str:
    """Write a document whose nodes are `id: fields`, from line 3 on."""
    return "name: flow\nnodes:\n" + "".join(NODE.format(id=one.split(":")[0]) + one.partition(":")[2] for one in nodes)


def an_agent(*fields: str) -> str:
    """Write a document of one agent with these fields in its config, from line 4 on."""
    return "nodeId: a\nnodeType: action/agent.run\nconfig:\n" + "".join(f"  {field}\n" for field in fields)


def refused(document: object) -> list[dict]:
    with pytest.raises(WorkflowInvalid) as fault:
        read_document(document)  # type: ignore[arg-type]
    return fault.value.errors


def ids(document: Document) -> list[str]:
    return [node.node_id for node in document.nodes]


class TestADocument:
    def test_of_the_documentation_is_a_workflow_of_one(self):
        found = read_document(DOCUMENTED)

        (node,) = found.nodes
        assert (found.name, node.node_id, node.prompt, node.needs) == ("llm_call_1", "llm_call_1", None, [])
        assert node.profile_id == "prof_anthropic_deep_reasoning"
        assert node.system_prompt == "You are an expert problem solver. Think deeply."

    def test_in_json_says_the_same(self):
        config = {
            "profileId": "prof_anthropic_deep_reasoning",
            "systemPrompt": "You are an expert problem solver. Think deeply.",
        }
        node = {"nodeId": "llm_call_1", "nodeType": INFERENCE, "config": config}

        for document in (json.dumps(node), json.dumps(node, indent="\t"), node):
            assert read_document(document).nodes == read_document(DOCUMENTED).nodes

    def test_may_be_an_agent(self):
        agent = {"program": ["python3", "a.py"], "outputs": ["out/**"]}
        config = {"prompt": "Do it, {{ input.name }}.", "maxCostUsd": "1.50", "agent": agent}

        (node,) = read_document({"nodeId": "a", "nodeType": AGENT, "config": config}).nodes

        assert (node.pool, node.max_cost_picodollars) == ("sandbox", 15 * 10**11)
        assert node.agent == agents.checked(agent)
        assert wanted_input([node]).names == ["name"]

    def test_may_be_written_in_snake_case(self):
        snake = DOCUMENTED.replace("nodeId", "node_id").replace("nodeType", "node_type")
        snake = snake.replace("profileId", "profile_id").replace("systemPrompt", "system_prompt")

        assert read_document(snake).nodes == read_document(DOCUMENTED).nodes

    def test_sorts_its_nodes_after_what_they_need(self):
        found = read_document(
            flow(
                "d:  needs: [c]\n",
                "c:  config: {prompt: '{{ nodes.a.output }}'}\n",
                "b:  config: {systemPrompt: 'x {{ nodes.a.output }}', images: ['{{ nodes.c.output }}']}\n",
                "a:",
            )
        )

        assert ids(found)[:2] == ["a", "c"]
        assert {node.node_id: node.needs for node in found.nodes} == {"a": [], "b": ["a", "c"], "c": ["a"], "d": ["c"]}

    def test_reads_words_as_words(self):
        config = "  config:\n    systemPrompt: {value}\n"
        for word in ("no", "on", "2026-11-23", "1_000", "0x10", "12:30"):
            assert read_document(flow("a:" + config.format(value=word))).nodes[0].system_prompt == word

    def test_keeps_emoji_written_as_json_does(self):
        text = json.dumps({"nodeId": "a", "nodeType": INFERENCE, "config": {"prompt": "😀"}}, ensure_ascii=True)

        assert read_document(text).nodes[0].prompt == "😀"

    def test_tells_what_input_it_wants(self):
        wanted = wanted_input(
            read_document(flow("a:  config: {prompt: '{{ input.y }} {{ input.x }} {{ input.y }}'}\n")).nodes
        )

        assert (wanted.whole, wanted.names) == (False, ["y", "x"])
        assert wanted_input(read_document(DOCUMENTED).nodes).whole


GOOD = "a:  config:\n    profileId: prof_x\n    prompt: Hi\n"
FAULTS = {
    # Each with the line, the node and the field of its first fault, and words of it.
    "unknown-field": (flow(GOOD) + "retries: 3\n", 8, None, "retries", "is not known here"),
    "unknown-node-field": (flow("a:  retry: 3\n"), 5, "a", "retry", "is not known here"),
    "misspelt": (flow("a:  config:\n    efort: high\n"), 6, "a", "config.efort", "Did you mean 'effort'?"),
    "both-spellings": (
        flow("a:  config:\n    profileId: x\n    profile_id: x\n"),
        7,
        "a",
        "config.profile_id",
        "twice",
    ),
    "duplicate-key": (flow("a:  config:\n    prompt: x\n    prompt: y\n"), 7, None, None, "twice, first on line 6"),
    "duplicate-node": (flow(GOOD, "a:"), 8, "a", "nodeId", "Another node"),
    "no-name": ("nodes:\n" + NODE.format(id="a"), 1, None, "name", "printable characters"),
    "bad-name": ('name: "a\\u200bb"\nnodes:\n' + NODE.format(id="a"), 1, None, "name", "printable characters"),
    "long-name": (f"name: {'x' * 64}\nnodes:\n" + NODE.format(id="a"), 1, None, "name", "printable characters"),
    "name-is-a-number": ("name: 7\nnodes:\n" + NODE.format(id="a"), 1, None, "name", "printable characters"),
    "no-nodes": ("name: flow\n", 1, None, "nodes", "at least one node"),
    "empty-nodes": ("name: flow\nnodes: []\n", 2, None, "nodes", "at least one node"),
    "nodes-no-list": ("name: flow\nnodes: {a: 1}\n", 2, None, "nodes", "at least one node"),
    "node-no-object": ("name: flow\nnodes:\n- hello\n", 3, None, None, "set of fields"),
    "bad-node-id": (flow("a b:"), 3, None, "nodeId", "letters, digits"),
    "no-node-id": ("name: flow\nnodes:\n- nodeType: action/llm.inference\n", 3, None, "nodeId", "letters, digits"),
    "other-node-type": (flow("a:").replace("llm.inference", "http"), 4, "a", "nodeType", "there is no other"),
    "config-no-object": (flow("a:  config: [1]\n"), 5, "a", "config", "set of fields"),
    "prompt-no-text": (flow("a:  config:\n    prompt: 7\n"), 6, "a", "config.prompt", "a text"),
    "prompt-empty": (flow("a:  config:\n    prompt: ' '\n"), 6, "a", "config.prompt", "not empty"),
    "profile-no-text": (flow("a:  config:\n    profileId: [x]\n"), 6, "a", "config.profileId", "a text"),
    "unknown-effort": (flow("a:  config:\n    effort: extreme\n"), 6, "a", "config.effort", "low, medium, high"),
    "provider-config-no-object": (
        flow("a:  config:\n    providerConfig: 7\n"),
        6,
        "a",
        "config.providerConfig",
        "object",
    ),
    "needs-no-list": (flow("a:  needs: b\n"), 5, "a", "needs", "list of nodeIds"),
    "unknown-need": (flow("a:  needs: [b]\n"), 5, "a", "needs", "no node 'b'"),
    "needs-itself": (flow("a:  needs: [a]\n"), 5, "a", "needs", "a needs a"),
    "cycle": (
        flow("a:  needs: [b]\n", "b:  config: {prompt: '{{ nodes.a.output }}'}\n"),
        None,
        None,
        "needs",
        "wait for",
    ),
    "unknown-output": (
        flow("a:  config:\n    effort: low\n    prompt: '{{ nodes.b.output }}'\n"),
        7,
        "a",
        "config.prompt",
        "no node 'b'",
    ),
    "unknown-reference": (
        flow("a:  config:\n    prompt: '{{ user.name }}'\n"),
        6,
        "a",
        "config.prompt",
        "not a reference",
    ),
    "open-braces": (flow("a:  config:\n    systemPrompt: '{{ input'\n"), 6, "a", "config.systemPrompt", "not closed"),
    "images-no-list": (flow("a:  config:\n    images: x\n"), 6, "a", "config.images", "a list"),
    "image-by-http": (
        flow("a:  config:\n    images:\n    - http://x/y.png\n"),
        7,
        "a",
        "config.images.0",
        "https or data",
    ),
    "image-no-source": (flow("a:  config:\n    images: [{type: file, id: x}]\n"), 6, "a", "config.images.0", "source"),
    "agent-without-cost": (an_agent("agent: {program: [a]}"), 3, "a", "config.maxCostUsd", 'such as "2"'),
    "agent-cost-is-a-number": (
        an_agent("agent: {program: [a]}", "maxCostUsd: 2"),
        5,
        "a",
        "config.maxCostUsd",
        'as a text, such as "2"',
    ),
    "agent-without-agent": (an_agent("maxCostUsd: '2'"), 3, "a", "config.agent", "a set of fields"),
    "agent-without-program": (an_agent("maxCostUsd: '2'", "agent: {}"), 5, "a", "config.agent.program", "`program` is"),
    "agent-with-effort": (
        an_agent("maxCostUsd: '2'", "agent: {program: [a]}", "effort: low"),
        6,
        "a",
        "config.effort",
        "is not known here",
    ),
    "agent-with-a-token": (
        an_agent("maxCostUsd: '2'", "agent: {program: [a], git: {url: https://git.example.com/a, token: t}}"),
        5,
        "a",
        "config.agent.git.token",
        "takes no token",
    ),
    "agent-path-climbs": (
        an_agent("maxCostUsd: '2'", "agent: {program: [a], files: [{path: ../a, content: ''}]}"),
        5,
        "a",
        "config.agent.files.0.path",
        "`.` or `..`",
    ),
    "not-an-object": ("- a\n- b\n", 1, None, None, "set of fields"),
    "empty": ("", None, None, None, "empty"),
    "only-a-comment": ("# nothing\n", None, None, None, "empty"),
    "broken-yaml": ("name: flow\nnodes: [\n", 3, None, None, "cannot be read"),
    "tab": ("name: flow\nnodes:\n\t- nodeId: a\n", 3, None, None, "cannot be read"),
    "two-documents": (flow(GOOD) + "---\n" + flow(GOOD), 8, None, None, "second document"),
    "key-no-text": ("? [a]\n: b\n", 1, None, None, "name of a field"),
    "merge-key": (flow("a:  <<: {needs: []}\n"), 5, "a", "<<", "is not known here"),
    "anchor": (flow("a:  config: &x\n    prompt: Hi\n"), 5, None, None, "Anchors"),
    "alias": ("name: *x\n", 1, None, None, "Anchors"),
    "python-tag": ("name: !!python/object/apply:os.system ['true']\n", 1, None, None, "Tags"),
    "own-tag": ("name: !secret x\n", 1, None, None, "Tags"),
    "zero-byte": ('name: "a\\0b"\n', 1, None, None, "U+0000"),
    "control-character": ("name: a\x07b\n", None, None, None, "cannot be read"),
}


@pytest.mark.parametrize(("document", "line", "node", "field", "words"), FAULTS.values(), ids=FAULTS)
class TestABadDocument:
    def test_is_refused_with_line_node_and_field(self, document, line, node, field, words):
        (first, *_) = refused(document)

        assert words in first["detail"]
        if line is not None:
            assert first["line"] == line
        if node is not None:
            assert first["node"] == node
        if field is not None:
            assert first["field"] == field


class TestFaults:
    def test_are_all_told_in_the_order_of_their_lines(self):
        document = flow("a:  config:\n    efort: x\n", "b:  config:\n    effort: x\n  needs: 7\n")

        assert [(one["line"], one["node"]) for one in refused(document)] == [(6, "a"), (10, "b"), (11, "b")]

    def test_of_json_have_their_lines(self):
        document = '{"name": "flow",\n "nodes": [\n  {"nodeId": "a", "nodeType":\n    "x",\n   "config": {"a,]}": 1}}]}'

        assert [(one["line"], one["field"]) for one in refused(document)] == [(3, "nodeType"), (5, "config.a,]}")]

    def test_of_an_object_have_none(self):
        assert refused({"name": "flow", "nodes": []})[0]["line"] is None

    def test_of_json_that_is_none_are_told_by_line(self):
        assert refused('{"name": "flow",\n "name": "other"}')[0]["line"] == 2

    def test_make_one_sentence(self):
        with pytest.raises(WorkflowInvalid) as fault:
            read_document(flow("a:  config:\n    efort: x\n    b: y\n"))

        assert fault.value.detail.startswith("Line 6, node 'a', config.efort: 'efort' is not known here.")
        assert fault.value.detail.endswith("There is 1 more fault.")


BOMBS = {
    "too-many-bytes": ("name: flow\n# " + "x" * 300_000, "262144 is the most"),
    "laughs": ("a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n", "Anchors"),
    "deep-yaml": ("[" * 200_000, "nested deeper"),
    "deep-block": ("\n".join("  " * depth + "a:" for depth in range(300)), "nested deeper"),
    "deep-json": ('{"a":' * 10_000 + "1" + "}" * 10_000, "nested deeper"),
    "deep-list": ("- " * 100_000, "nested deeper"),
    "many-values": ("[" + "1," * 100_000 + "]", "more than 10000 values"),
    "many-keys": ("{" + ",".join(f"k{place}" for place in range(30_000)) + "}", "more than 10000 values"),
    "many-nodes": (flow(*(f"n{place}:" for place in range(101))), "at most 100 nodes"),
    "long-number": ("name: " + "9" * 200_000, "printable characters"),
    "many-images": (flow("a:  config:\n    images: [" + "x," * 101 + "]\n"), "at most 100 images"),
}


@pytest.mark.parametrize(("document", "words"), BOMBS.values(), ids=BOMBS)
class TestABomb:
    def test_is_refused_at_once(self, document, words):
        begun = time.process_time()

        errors = refused(document)

        assert words in errors[0]["detail"]
        assert time.process_time() - begun < 2


class TestAnObjectThatIsABomb:
    def test_is_refused_for_its_size_and_depth(self):
        deep: dict = {}
        for _ in range(40):
            deep = {"a": deep}

        assert "nested deeper" in refused(deep)[0]["detail"]
        assert "is the most" in refused({"name": "x" * 300_000})[0]["detail"]
