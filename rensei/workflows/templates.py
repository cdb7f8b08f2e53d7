"""
The references that a text of a workflow may hold: `{{ input }}`, `{{ input.name }}`, `{{ nodes.id.output }}`.

That is the whole grammar. Nothing is evaluated, and what is put in is never read again for references. A
backslash before the braces, `\\{{`, writes them as they are.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rensei.core.errors import RenseiError

LONGEST_RENDERED = 4_000_000
_BRACES = re.compile(r"\\\{\{|\{\{(.*?)\}\}|\{\{", re.DOTALL)
_REFERENCE = re.compile(
    r"\s*(?:input(?:\.(?P<name>[A-Za-z_][A-Za-z0-9_-]*))?|nodes\.(?P<node>[A-Za-z0-9][A-Za-z0-9_-]*)\.output)\s*"
)


class RenderedTextTooLong(RenseiError):
    """What the references of a node are replaced with makes its text too long to send."""

    code = "REQUEST_TOO_LARGE"
    status = 413
    title = "Request too large"
    message = (
        "The text of the node would have {length} characters, and {longest} is the most. Refer to fewer or shorter "
        "outputs."
    )


class BadReference(ValueError):
    """Something in double braces is none of the three references. The message says what it is."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What stands in double braces: a node's output, one value of the input, or the whole input."""

    node: str | None = None
    name: str | None = None


def references(text: str) -> list[Reference]:
    """
    List what a text refers to.

    :raises BadReference: if something in double braces is no reference
    """
    return [part for part in _parts(text) if isinstance(part, Reference)]


def render(text: str, *, given: Any, outputs: Mapping[str, str]) -> str:
    """
    Replace the references of a text. A value of the input that is no text is written as JSON.

    :raises RenderedTextTooLong: if the whole would be longer than anything that can be sent
    """
    parts = [_written(part, given, outputs) if isinstance(part, Reference) else part for part in _parts(text)]
    # A short text may refer to a long output many times, so we count before we build.
    length = sum(map(len, parts))
    if length > LONGEST_RENDERED:
        raise RenderedTextTooLong(length=length, longest=LONGEST_RENDERED)
    return "".join(parts)


def as_text(value: Any) -> str:
    """Write a value of the input into a text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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
    return as_text(given[reference.name] if reference.name is not None else given)
