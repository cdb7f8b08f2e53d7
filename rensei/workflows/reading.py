"""Reads the text of a workflow document, YAML or JSON, and records the line of each value."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from rensei.core.errors import FieldError, RenseiError, json_pointer
from rensei.core.json_body import read_json
from rensei.core.limits import limit

BYTES_MAX = limit(256 * 1024, "bytes", what="Workflow document", told="the caller: 422 `WORKFLOW_INVALID`")
DEPTH_MAX = limit(16, "levels", what="Workflow document: nesting", told="the caller: 422 `WORKFLOW_INVALID`")
VALUES_MAX = limit(10_000, "values", what="Workflow document: values", told="the caller: 422 `WORKFLOW_INVALID`")
# The place of a value is stored as text, with the names of all its parents.
NAME_CHARACTERS_MAX = limit(
    100, "characters", what="Workflow document: name of a field", told="the caller: 422 `WORKFLOW_INVALID`"
)
# Uses libyaml if PyYAML was built with it, which is ten times as fast. Only the parser's events are used, and the
# values are built here, so no content of a document can create an object.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(?:[0-9]{1,18}\.[0-9]{0,18}|\.[0-9]{1,18})(?:[eE][-+]?[0-9]{1,2})?")
# The core schema of YAML 1.2: `no` and `on` are strings, as are dates. https://yaml.org/spec/1.2.2/#103-core-schema
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


class WorkflowInvalid(RenseiError):
    """The document is not a workflow that can be run. `errors` lists each fault with its line, node and field."""

    code = "WORKFLOW_INVALID"
    status = 422
    title = "Workflow not valid"
    message = "{first}{more}"

    def __init__(self, faults: "list[Fault]") -> None:
        others = len(faults) - 1
        more = f" There {'is 1 more fault' if others == 1 else f'are {others} more faults'}." if others else ""
        super().__init__(first=faults[0].sentence, more=more)
        self.errors = [fault.wire() for fault in faults]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault in a document, with its place."""

    reason: str
    pointer: str = ""
    line: int | None = None
    node: str | None = None
    field: str | None = None

    @property
    def sentence(self) -> str:
        where = [
            f"line {self.line}" if self.line else "",
            f"node '{self.node}'" if self.node else "",
            self.field or "",
        ]
        place = ", ".join(filter(None, where))
        return f"{place[0].upper()}{place[1:]}: {self.reason}" if place else self.reason

    def wire(self) -> dict[str, Any]:
        return {
            "pointer": self.pointer,
            "code": "invalid",
            "detail": self.reason,
            "line": self.line,
            "node": self.node,
            "field": self.field,
        }


@dataclass(frozen=True, kw_only=True)
class Source:
    """The values of a document, and the line of each by its JSON pointer."""

    text: str
    value: Any
    lines: Mapping[str, int]


def read_source(document: str | dict[str, Any]) -> Source:
    """
    Read a document: its text in YAML or JSON, or the object itself, for which a text is generated.

    :raises WorkflowInvalid: if it cannot be read, or exceeds the limits that prevent resource exhaustion
    """
    if isinstance(document, dict):
        text = json.dumps(document, indent=2, ensure_ascii=False)
        _check_size(text)
        # The text is generated, so its line numbers would mislead the caller.
        return Source(text=text, value=_checked(document), lines={})
    text = document.replace("\r\n", "\n").strip("\ufeff\n") + "\n"
    _check_size(text)
    if text.lstrip().startswith("{"):
        try:
            value = read_json(text.encode())
        except FieldError:
            # Not JSON, or faulty JSON: the YAML reader reads what it can, and reports the line.
            pass
        else:
            return Source(text=text, value=_checked(value), lines=_json_lines(text))
    return _read_yaml(text)


def _check_size(text: str) -> None:
    size = len(text.encode(errors="surrogatepass"))
    if size > BYTES_MAX:
        raise WorkflowInvalid([Fault(reason=f"The document has {size} bytes, and {BYTES_MAX} is the most.")])


def _checked(value: Any) -> Any:
    """Apply the YAML reader's limits to a value that was read in another way."""
    level, depth, count = [value], 0, 0
    while level:
        count += len(level)
        if depth > DEPTH_MAX:
            raise _too_deep(None)
        if count > VALUES_MAX:
            raise _too_many()
        for one in level:
            for name in one if isinstance(one, dict) else ():
                _check_name(name, None)
        inner = [list(one.values()) if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level, depth = [one for many in inner for one in many], depth + 1
    return value


def _check_name(name: str, line: int | None) -> None:
    if len(name) > NAME_CHARACTERS_MAX:
        reason = f"The name of a field has at most {NAME_CHARACTERS_MAX} characters; this one has {len(name)}."
        raise WorkflowInvalid([Fault(reason=reason, line=line)])


def _too_many() -> WorkflowInvalid:
    return WorkflowInvalid([Fault(reason=f"The document holds more than {VALUES_MAX} values.")])


def _too_deep(line: int | None) -> WorkflowInvalid:
    return WorkflowInvalid([Fault(reason=f"The document is nested deeper than {DEPTH_MAX} levels.", line=line)])


def _json_lines(text: str) -> dict[str, int]:
    """Find the line of each value of a valid JSON text."""
    lines: dict[str, int] = {}
    # For each open object or list, its place and the next member name or index.
    path: list[str | int] = []
    name, line, seen = "", 1, 0
    for token in _JSON_TOKEN.finditer(text):
        line, seen = line + text.count("\n", seen, token.start()), token.start()
        step = path[-1] if path else None
        if isinstance(step, int) and token[0] not in {"]", ","}:
            lines[json_pointer(*path)] = line
        match token[0]:
            case "{":
                path.append("")
            case "[":
                path.append(0)
            case "}" | "]":
                path.pop()
            case ":":
                path[-1] = json.loads(name)
                lines[json_pointer(*path)] = line
            case "," if isinstance(step, int):
                path[-1] = step + 1
            case value:
                name = value
    return lines


def _read_yaml(text: str) -> Source:
    lines: dict[str, int] = {}
    try:
        events = _counted(yaml.parse(text, Loader=_LOADER))
        while isinstance(event := next(events, None), yaml.StreamStartEvent | yaml.DocumentStartEvent):
            pass
        if event is None or isinstance(event, yaml.StreamEndEvent):
            raise WorkflowInvalid([Fault(reason="The document is empty.")])
        value = _value(events, event, (), lines)
        rest = [_line(event) for event in events if isinstance(event, yaml.DocumentStartEvent)]
    except yaml.YAMLError as fault:
        raise WorkflowInvalid([_unreadable(fault)]) from fault
    if rest:
        raise WorkflowInvalid(
            [Fault(reason="A second document begins here. Send one workflow at a time.", line=rest[0])]
        )
    return Source(text=text, value=value, lines=lines)


def _counted(events: Iterator[Any]) -> Iterator[Any]:
    for count, event in enumerate(events):
        if count > 2 * VALUES_MAX:
            raise _too_many()
        yield event


def _value(events: Iterator[Any], event: Any, path: tuple[str | int, ...], lines: dict[str, int]) -> Any:
    """Build a value from the events, starting with this one. The depth is limited, so recursion is safe."""
    line = _line(event)
    lines.setdefault(json_pointer(*path), line)
    _refuse_tricks(event, line)
    if len(path) > DEPTH_MAX:
        raise _too_deep(line)
    if isinstance(event, yaml.ScalarEvent):
        return _plain(event.value) if event.implicit[0] else event.value
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[Any] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(_value(events, event, (*path, len(items)), lines))
        return items
    members: dict[str, Any] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        line = _line(key)
        _refuse_tricks(key, line)
        if not isinstance(key, yaml.ScalarEvent):
            raise WorkflowInvalid([Fault(reason="The name of a field is a text.", line=line)])
        _check_name(key.value, line)
        place = (*path, key.value)
        if key.value in members:
            reason = (
                f"The name '{key.value[:60]}' is given twice, first on line {lines[json_pointer(*place)]}. Keep one."
            )
            raise WorkflowInvalid([Fault(reason=reason, pointer=json_pointer(*place), line=line)])
        lines[json_pointer(*place)] = line
        members[key.value] = _value(events, next(events), place, lines)
    return members


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _refuse_tricks(event: Any, line: int) -> None:
    """Refuse what can expand a short document, or create unusual values: anchors, aliases and tags."""
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        reason = "Anchors and aliases ('&' and '*') are not taken. Write the value out, or put it in quotes."
        raise WorkflowInvalid([Fault(reason=reason, line=line)])
    if getattr(event, "tag", None) is not None:
        raise WorkflowInvalid([Fault(reason="Tags ('!') are not taken. Put a text in quotes.", line=line)])
    # PostgreSQL cannot store the former, and no program can send the latter.
    if isinstance(event, yaml.ScalarEvent) and re.search("[\0\ud800-\udfff]", event.value):
        raise WorkflowInvalid([Fault(reason="A text may not hold U+0000 or half of a surrogate pair.", line=line)])


def _plain(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _unreadable(fault: yaml.YAMLError) -> Fault:
    mark = getattr(fault, "problem_mark", None) or getattr(fault, "context_mark", None)
    problem = getattr(fault, "problem", None) or getattr(fault, "reason", None) or "it is no YAML"
    return Fault(reason=f"The document cannot be read: {problem}.", line=mark.line + 1 if mark else None)
