"""Validation of workflow documents, field by field, so that each fault has its line, node and field."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from rensei.core import money
from rensei.core.api import camel
from rensei.core.effort import Effort
from rensei.core.errors import FieldError, json_pointer
from rensei.core.limits import limit
from rensei.dispatch import agents, pools
from rensei.orgs.shapes import clean_name
from rensei.workflows.reading import Fault, Source, WorkflowInvalid, read_source
from rensei.workflows.templates import BadReference, Reference, references

INFERENCE, AGENT = "action/llm.inference", "action/agent.run"
NODES_MAX = limit(100, "nodes", what="Workflow document: nodes", told="the caller: 422 `WORKFLOW_INVALID`")
FAULTS_MAX = limit(100, "faults", what="Workflow document: faults told at once", told="the caller: the first of them")
IMAGES_MAX = limit(100, "images", what="Workflow document: images of a node", told="the caller: 422 `WORKFLOW_INVALID`")
NAME_LENGTH = 63
NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_WORKFLOW_FIELDS = ("name", "nodes")
_NODE_FIELDS = ("nodeId", "nodeType", "config", "needs")
_CONFIG_FIELDS = {
    INFERENCE: ("profileId", "systemPrompt", "prompt", "effort", "providerConfig", "images"),
    AGENT: ("profileId", "prompt", "pool", "maxCostUsd", "agent"),
}
_IMAGE_KINDS = {"base64": {"type", "media_type", "data"}, "url": {"type", "url"}}


@dataclass(frozen=True, kw_only=True)
class Node:
    """
    One call to a model, or one agent, as the document describes it.

    For fields that are None, the profile's value applies. `agent` is as `agents.checked` returns it.
    """

    node_id: str
    needs: list[str]
    profile_id: str | None = None
    system_prompt: str | None = None
    prompt: str | None = None
    effort: str | None = None
    provider_config: dict[str, Any]
    # An https or data URL, which may contain references, or the `source` of an image block.
    images: list[str | dict[str, str]]
    # None: the default pool of the project, else the local one.
    pool: str | None = None
    max_cost_picodollars: int | None = None
    agent: dict[str, Any] | None = None

    def references(self) -> list[Reference]:
        return [reference for text in self.texts() for reference in references(text)]

    def texts(self) -> list[str]:
        return [text for text in (self.system_prompt, self.prompt, *self.images) if isinstance(text, str)]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A valid document. Its nodes are sorted so that each comes after those that it needs."""

    source: Source
    name: str
    nodes: list[Node]
    pointers: Mapping[str, str]

    def fault(self, node: Node, field: str, reason: str) -> Fault:
        """Build a fault of a field in a node's config that was found after the document was read."""
        return _fault(self.source, f"{self.pointers[node.node_id]}/config/{field}", reason, node.node_id)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The input that a workflow requires: whether any at all, and the names that it must contain."""

    whole: bool
    names: list[str]


def read_document(document: str | dict[str, Any]) -> Document:
    """
    Read and check a document: a workflow, or a single node, which is a workflow of one.

    :raises WorkflowInvalid: listing every fault found
    """
    return _Check(read_source(document)).run()


def wanted_input(nodes: Sequence[Node]) -> Wanted:
    """Return what input the nodes refer to. A node without a prompt sends the whole input."""
    found = [reference for node in nodes for reference in node.references() if reference.node is None]
    names = list(dict.fromkeys(reference.name for reference in found if reference.name is not None))
    whole = any(node.prompt is None for node in nodes) or any(reference.name is None for reference in found)
    return Wanted(whole=whole, names=names)


def _fault(source: Source, pointer: str, reason: str, node: str | None = None) -> Fault:
    """Build a fault. A missing field has no line, so the line of its parent is used."""
    place, line = pointer, None
    while line is None and place:
        line, place = source.lines.get(place), place.rpartition("/")[0]
    field = re.sub(r"^/nodes/\d+", "", pointer).strip("/").replace("/", ".")
    return Fault(pointer=pointer, reason=reason, line=line or source.lines.get(""), node=node, field=field or None)


class _Check:
    """One reading of a document. It collects all faults, so that a user can correct them together."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._faults: list[Fault] = []
        self._node: str | None = None

    def run(self) -> Document:
        """:raises WorkflowInvalid: if there is any fault"""
        root = self._source.value
        if not isinstance(root, dict):
            raise WorkflowInvalid([self._made("", "A workflow is a set of fields: `name` and `nodes`.")])
        bare = "nodes" not in root and bool({"nodeId", "node_id"} & set(root))
        if bare:
            places, nodes = [""], [self._read_node(root, "")]
            name = nodes[0].node_id
        else:
            fields = self._fields(root, "", _WORKFLOW_FIELDS)
            name = self._name(fields.get("name"))
            places, nodes = self._read_nodes(fields.get("nodes"))
        self._stop_at_faults()
        pointers = dict(zip((node.node_id for node in nodes), places, strict=True))
        in_order = self._in_order(nodes, pointers)
        self._stop_at_faults()
        return Document(source=self._source, name=name, nodes=in_order, pointers=pointers)

    def _read_nodes(self, listed: Any) -> tuple[list[str], list[Node]]:
        if not isinstance(listed, list) or not listed:
            self._refuse("/nodes", "A workflow has a list of at least one node.")
            return [], []
        if len(listed) > NODES_MAX:
            self._refuse("/nodes", f"A workflow has at most {NODES_MAX} nodes; this one has {len(listed)}.")
            return [], []
        places, nodes, seen = [], [], set()
        for place, one in enumerate(listed):
            self._node = None
            pointer = f"/nodes/{place}"
            if not isinstance(one, dict):
                self._refuse(pointer, "A node is a set of fields: `nodeId`, `nodeType`, `config`, `needs`.")
                continue
            node = self._read_node(one, pointer)
            if node.node_id and node.node_id in seen:
                self._refuse(f"{pointer}/nodeId", f"Another node has the nodeId '{node.node_id}' already.")
            seen.add(node.node_id)
            places.append(pointer)
            nodes.append(node)
        self._node = None
        return places, nodes

    def _read_node(self, value: dict[str, Any], pointer: str) -> Node:
        named = value.get("nodeId", value.get("node_id"))
        self._node = named if isinstance(named, str) and NODE_ID.fullmatch(named) else None
        fields = self._fields(value, pointer, _NODE_FIELDS)
        node_id = self._shaped(
            fields.get("nodeId"), f"{pointer}/nodeId", NODE_ID, "A nodeId is letters, digits, _ and -"
        )
        kind = fields.get("nodeType")
        if kind not in (INFERENCE, AGENT):
            self._refuse(f"{pointer}/nodeType", f"The nodeType is {INFERENCE} or {AGENT}; there is no other.")
            kind = INFERENCE
        known, config = _CONFIG_FIELDS[kind], fields.get("config", {})
        if not isinstance(config, dict):
            self._refuse(f"{pointer}/config", f"`config` is a set of fields: {', '.join(known)}.")
            config = {}
        read = self._read_agent if kind == AGENT else self._read_config
        return read(
            node_id, self._fields(config, f"{pointer}/config", known), f"{pointer}/config",
            needs=self._needs(fields.get("needs"), f"{pointer}/needs"),
        )  # fmt: skip

    def _read_agent(self, node_id: str, config: dict[str, Any], pointer: str, *, needs: list[str]) -> Node:
        agent, cost = config.get("agent"), config.get("maxCostUsd")
        definition, picodollars = None, None
        try:
            picodollars = money.picodollars(cost if isinstance(cost, str) else "")
        except ValueError:
            self._refuse(f"{pointer}/maxCostUsd", 'Give the most that the agent may cost as a text, such as "2".')
        if isinstance(agent, dict):
            try:
                definition = agents.checked(agent, pointer=f"{pointer}/agent")
                if definition.get("git", {}).get("token"):
                    reason = "A workflow is stored as it is, so that it takes no token. Clone a public repository."
                    self._refuse(f"{pointer}/agent/git/token", reason)
            except FieldError as fault:
                for one in fault.errors:
                    self._refuse(one["pointer"], one["detail"])
        else:
            self._refuse(f"{pointer}/agent", "`agent` is a set of fields, such as `program`.")
        return Node(
            node_id=node_id,
            needs=needs,
            profile_id=self._text(config, "profileId", pointer),
            prompt=self._template(config, "prompt", pointer),
            provider_config={},
            images=[],
            pool=self._text(config, "pool", pointer) or pools.SANDBOX,
            max_cost_picodollars=picodollars,
            agent=definition,
        )

    def _read_config(self, node_id: str, config: dict[str, Any], pointer: str, *, needs: list[str]) -> Node:
        effort = self._text(config, "effort", pointer)
        if effort is not None and effort not in Effort.values:
            self._refuse(f"{pointer}/effort", f"One of {', '.join(Effort.values)}.")
        provider_config = config.get("providerConfig") or {}
        if not isinstance(provider_config, dict):
            self._refuse(
                f"{pointer}/providerConfig", 'Give an object such as {"anthropic": {"contextWindow": 100000}}.'
            )
            provider_config = {}
        return Node(
            node_id=node_id,
            needs=needs,
            profile_id=self._text(config, "profileId", pointer),
            system_prompt=self._template(config, "systemPrompt", pointer),
            prompt=self._template(config, "prompt", pointer),
            effort=effort,
            provider_config=provider_config,
            images=self._images(config.get("images"), f"{pointer}/images"),
        )

    def _fields(self, value: dict[str, Any], pointer: str, known: Sequence[str]) -> dict[str, Any]:
        """Return the known fields, in camelCase or snake_case, and report the others."""
        taken: dict[str, Any] = {}
        for key, inner in value.items():
            name = camel(key) if "_" in key else key
            place = pointer + json_pointer(key)
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean '{nearest[0]}'?" if nearest else f" Known: {', '.join(known)}."
                self._refuse(place, f"'{key[:60]}' is not known here.{hint}")
            elif name in taken:
                self._refuse(place, f"This field is given twice, as {name} and in snake_case. Keep one.")
            else:
                taken[name] = inner
        return taken

    def _needs(self, value: Any, pointer: str) -> list[str]:
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self._refuse(pointer, "`needs` is a list of nodeIds.")
            return []
        return list(dict.fromkeys(value))

    def _images(self, value: Any, pointer: str) -> list[str | dict[str, str]]:
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > IMAGES_MAX:
            self._refuse(pointer, f"`images` is a list of at most {IMAGES_MAX} images.")
            return []
        return [self._image(one, f"{pointer}/{place}") for place, one in enumerate(value)]

    def _image(self, value: Any, pointer: str) -> str | dict[str, str]:
        if isinstance(value, str):
            found = self._references(value, pointer)
            if not found and not value.startswith(("https://", "data:image/")):
                self._refuse(pointer, "An image is an https or data URL, or the `source` of an image block.")
            return value
        source = value.get("source") if isinstance(value, dict) and value.get("type") == "image" else value
        if isinstance(source, dict) and all(isinstance(one, str) for one in source.values()):
            kind = source.get("type")
            if kind in _IMAGE_KINDS and set(source) == _IMAGE_KINDS[kind]:
                return dict(source)
        self._refuse(pointer, "An image is an https or data URL, or the `source` of an image block.")
        return ""

    def _template(self, config: dict[str, Any], name: str, pointer: str) -> str | None:
        text = self._text(config, name, pointer)
        if text is not None:
            self._references(text, f"{pointer}/{name}")
        return text

    def _references(self, text: str, pointer: str) -> list[Reference]:
        try:
            return references(text)
        except BadReference as fault:
            self._refuse(pointer, str(fault))
            return []

    def _text(self, config: dict[str, Any], name: str, pointer: str) -> str | None:
        value = config.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or not value.strip():
            self._refuse(f"{pointer}/{name}", f"`{name}` is a text that is not empty.")
            return None
        return value

    def _name(self, value: Any) -> str:
        try:
            return clean_name(value if isinstance(value, str) else "", length=NAME_LENGTH)
        except FieldError:
            self._refuse("/name", f"A workflow's name has 1 to {NAME_LENGTH} printable characters.")
            return ""

    def _shaped(self, value: Any, pointer: str, shape: re.Pattern[str], rule: str) -> str:
        if isinstance(value, str) and shape.fullmatch(value):
            return value
        self._refuse(pointer, f"{rule}, begins with a letter or digit and has at most 63 characters.")
        return ""

    def _in_order(self, nodes: Sequence[Node], pointers: Mapping[str, str]) -> list[Node]:
        """Add the nodes whose output a node refers to, to its needs, and sort each node after those that it needs."""
        complete = {}
        for node in nodes:
            self._node = node.node_id
            for needed in node.needs:
                if needed not in pointers:
                    self._refuse(f"{pointers[node.node_id]}/needs", f"There is no node '{needed[:63]}'.")
            named = self._named_in(node, pointers)
            for name, place in named.items():
                if name not in pointers:
                    self._refuse(place, f"There is no node '{name[:63]}' whose output could be put in.")
            complete[node.node_id] = Node(**{**vars(node), "needs": list(dict.fromkeys([*node.needs, *named]))})
        self._node = None
        self._stop_at_faults()
        try:
            order = list(TopologicalSorter({one.node_id: one.needs for one in complete.values()}).static_order())
        except CycleError as fault:
            circle = fault.args[1][::-1]
            self._node = circle[0]
            self._refuse(f"{pointers[circle[0]]}/needs", f"The nodes wait for each other: {' needs '.join(circle)}.")
            return []
        return [complete[node_id] for node_id in order]

    def _named_in(self, node: Node, pointers: Mapping[str, str]) -> dict[str, str]:
        """Find the nodes whose output a node's texts refer to, each with the first such text."""
        config = f"{pointers[node.node_id]}/config"
        texts: list[tuple[str, Any]] = [
            (f"{config}/systemPrompt", node.system_prompt),
            (f"{config}/prompt", node.prompt),
        ]
        texts += [(f"{config}/images/{place}", image) for place, image in enumerate(node.images)]
        found: dict[str, str] = {}
        for place, text in texts:
            for reference in references(text) if isinstance(text, str) else []:
                if reference.node is not None:
                    found.setdefault(reference.node, place)
        return found

    def _refuse(self, pointer: str, reason: str) -> None:
        self._faults.append(self._made(pointer, reason))
        if len(self._faults) >= FAULTS_MAX:
            self._stop_at_faults()

    def _made(self, pointer: str, reason: str) -> Fault:
        return _fault(self._source, pointer, reason, self._node)

    def _stop_at_faults(self) -> None:
        if self._faults:
            raise WorkflowInvalid(sorted(self._faults, key=lambda fault: fault.line or 0))
