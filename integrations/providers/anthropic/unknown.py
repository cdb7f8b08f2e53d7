"""
What a request of the Messages API holds that is not known: fields, blocks, tools, members, and values with a price.

Anything unknown may bring content in, run a tool, or choose a model. It is counted by its name under every mode. With a
key of the platform it is refused, because no bound of its cost is known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from integrations.providers.anthropic import known
from integrations.providers.anthropic.known import Table
from integrations.providers.anthropic.tokens import objects_in
from rensei.core.unknown import NAME_CHARACTERS_MAX

# A request is refused for one name, so the others need no complete list.
NAMES_MAX = 20
_NAMES_OF_MODELS = ("claude-", "anthropic/", "anthropic.")
# A field, a tool or a block may make the provider run any model, without a name of one.
_MAY_RUN_MODELS = frozenset({"request_field", "tool_type", "block_type"})
_WITH_TEXTS = frozenset({known.BLOCKS, known.RESULTS, known.TEXTS})
# A value, the objects that may stand there, and the member that holds it.
_Place = tuple[Any, Table, str]


@dataclass(kw_only=True)
class Unknown:
    """The names of what is not known, each with its kind, and whether any of it may choose a model."""

    names: set[tuple[str, str]] = field(default_factory=set)
    may_choose_models: bool = False

    def add(self, kind: str, name: str, value: Any) -> None:
        self.may_choose_models = self.may_choose_models or kind in _MAY_RUN_MODELS or _names_a_model(value)
        if len(self.names) < NAMES_MAX:
            self.names.add((kind, name[:NAME_CHARACTERS_MAX]))


def unknown_in(params: Mapping[str, Any]) -> Unknown:
    """Find what is not known in a request. A member that is null counts as absent."""
    found = Unknown()
    for name in params.keys() - known.FIELDS:
        if params[name] is not None:
            found.add("request_field", name, params[name])
    for name in known.VALUES.keys() & params.keys():
        _check_value(name, params[name], found)
    for name in known.OPTIONS.keys() & params.keys():
        _walk([(params[name], known.OPTIONS[name], name)], found, within=known.OPTIONS[name])
    waiting: list[_Place] = []
    for message in objects_in(params.get("messages")):
        if not message.keys() <= known.MESSAGE:
            _add_members("message", message, known.MESSAGE, found)
        if "output_config" in message:
            table = known.OPTIONS["output_config"]
            _walk([(message["output_config"], table, "output_config")], found, within=table)
        if type(content := message.get("content")) is not str:
            waiting.append((content, known.BLOCKS, "content"))
    waiting += [(params.get("system"), known.TEXTS, "system"), (params.get("tools"), known.TOOLS, "tools")]
    _walk(waiting, found, within=known.WITHIN)
    return found


def _walk(waiting: list[_Place], found: Unknown, *, within: Table) -> None:
    """Look at objects and lists of objects, and at what these hold. `within` has the objects inside of them."""
    while waiting:
        value, table, name = waiting.pop()
        if type(value) is list:
            takes_texts = table in _WITH_TEXTS
            waiting += [
                (each, table, name)
                for each in value
                if type(each) is not str and not (takes_texts and _is_plain_text(each))
            ]
        elif type(value) is dict:
            kind = _type_of(value, name, table)
            members = table.members.get(kind)
            if members is None:
                found.add(table.kind, kind, value)
                continue
            if not value.keys() <= members:
                _add_members(kind, value, members, found)
            for member, part in value.items():
                if type(part) in (dict, list) and member in members and member not in known.FREE:
                    inner = known.TABLES_OF_CONTENT.get(kind) if member == "content" else known.TABLES.get(member)
                    waiting.append((part, inner or within, member))
            if kind == "ephemeral" and "ttl" in value:
                _check_value("ttl", value["ttl"], found)


def _is_plain_text(value: Any) -> bool:
    """Return whether a value is the block that most conversations consist of, and nothing else."""
    return type(value) is dict and len(value) == 2 and value.get("type") == "text" and type(value.get("text")) is str


def _type_of(value: dict[str, Any], name: str, table: Table) -> str:
    kind = value.get("type")
    if kind is None:
        return "custom" if table is known.TOOLS else f".{name}"
    # A type never finds the objects that have none.
    return kind if type(kind) is str and not kind.startswith(".") else f"?{kind}"


def _add_members(kind: str, value: dict[str, Any], members: frozenset[str], found: Unknown) -> None:
    for name in value.keys() - members:
        if value[name] is not None:
            found.add("member", f"{kind.removeprefix('.')}.{name}", {name: value[name]})


def _check_value(name: str, value: Any, found: Unknown) -> None:
    if value is not None and not (type(value) is str and value in known.VALUES[name]):
        found.add("value", f"{name}: {str(value)[:NAME_CHARACTERS_MAX]}", value)


def _names_a_model(value: Any) -> bool:
    """Return whether any part of an unknown value is called a model, or looks like the name of one."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if type(value) is dict:
            if any("model" in name.lower() for name in value):
                return True
            waiting += value.values()
        elif type(value) is list:
            waiting += value
        elif type(value) is str and value.startswith(_NAMES_OF_MODELS):
            return True
    return False
