"""
The references that a text of a workflow may contain: `{{ input }}`, `{{ input.name }}`, `{{ nodes.id.output }}`.

That is the whole grammar. Nothing is evaluated, and inserted text is never searched for references. With a
backslash before them, `\\{{`, the braces are written literally.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rensei.core.errors import RenseiError, Said
from rensei.core.limits import limit

LONGEST_RENDERED = limit(
    4_000_000,
    "characters",
    what="Workflow node: its texts with what their references are replaced by",
    told="the run: 413 `REQUEST_TOO_LARGE` as the node's error",
)
_BRACES = re.compile(r"\\\{\{|\{\{(.*?)\}\}|\{\{", re.DOTALL)
_REFERENCE = re.compile(
    r"\s*(?:input(?:\.(?P<name>[A-Za-z_][A-Za-z0-9_-]*))?|nodes\.(?P<node>[A-Za-z0-9][A-Za-z0-9_-]*)\.output)\s*"
)


class RenderedTextTooLong(RenseiError):
    """The references of a node make its text too long to send."""

    code = "REQUEST_TOO_LARGE"
    status = 413
    title = "Request too large"
    message = Said(
        "The texts of the node would have {length} characters, and {longest} is the most.",
        "Refer to fewer or shorter outputs.",
    )


class BadReference(ValueError):
    """A text in double braces is not one of the three references. The message states its content."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The content of double braces: a node's output, one value of the input, or the whole input."""

    node: str | None = None
    name: str | None = None


def references(text: str) -> list[Reference]:
    """
    List the references in a text.

    :raises BadReference: if double braces contain anything but a reference
    """
    return [part for part in _parts(text) if isinstance(part, Reference)]


class Rendering:
    """Replaces the references in the texts of one node. A value of the input that is not a text is written as JSON."""

    def __init__(self, *, given: Any, outputs: Mapping[str, str]) -> None:
        self._given = given
        self._outputs = outputs
        # A text may refer to one value thousands of times, and each value is serialized once.
        self._written: dict[Reference, str] = {}
        self._length = 0

    def render(self, text: str) -> str:
        """
        Replace the references in a text.

        :raises RenderedTextTooLong: if this and the previous texts together would exceed the length that can be sent
        """
        parts = [self._write(part) if isinstance(part, Reference) else part for part in _parts(text)]
        # A short text may refer to a long value many times, so the length is counted before the text is built.
        self._length += sum(map(len, parts))
        if self._length > LONGEST_RENDERED:
            raise RenderedTextTooLong(length=self._length, longest=LONGEST_RENDERED)
        return "".join(parts)

    def _write(self, reference: Reference) -> str:
        if reference not in self._written:
            self._written[reference] = _written(reference, self._given, self._outputs)
        return self._written[reference]


def _parts(text: str) -> Iterator[str | Reference]:
    seen = 0
    for found in _BRACES.finditer(text):
        yield text[seen : found.start()]
        seen = found.end()
        if found[0].startswith("\\"):
            yield "{{"
        elif found[1] is None:
            raise BadReference("'{{' is not closed by '}}'. To write the braces themselves, put '\\{{'.")
        else:
            yield _reference(found[1])
    yield text[seen:]


def _reference(inside: str) -> Reference:
    found = _REFERENCE.fullmatch(inside)
    if found is None:
        raise BadReference(
            f"'{{{{{inside[:60]}}}}}' is not a reference. There are {{{{ input }}}}, {{{{ input.name }}}} and "
            "{{ nodes.<nodeId>.output }}; to write the braces themselves, put '\\{{'."
        )
    return Reference(node=found["node"], name=found["name"])


def _written(reference: Reference, given: Any, outputs: Mapping[str, str]) -> str:
    if reference.node is not None:
        return outputs[reference.node]
    value = given[reference.name] if reference.name is not None else given
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
