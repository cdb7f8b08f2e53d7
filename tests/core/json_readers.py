"""The readers of JSON from outside, each with a body that it may refuse."""

from collections.abc import Callable
from contextlib import suppress

from rensei.core.errors import FieldError
from rensei.core.json_body import read_json
from rensei.core.texts import read_storable
from rensei.gateway.body import Body
from rensei.workflows.documents import read_document
from rensei.workflows.reading import WorkflowInvalid


def at_the_gateway(body: bytes) -> None:
    with suppress(FieldError):
        Body.read(body).with_values(model="another", added=[1])


def at_rest(body: bytes) -> None:
    with suppress(FieldError):
        read_json(body)


def from_a_provider(body: bytes) -> None:
    with suppress(ValueError, RecursionError):
        read_storable(body)


def as_a_workflow(body: bytes) -> None:
    with suppress(WorkflowInvalid):
        read_document(body.decode())


READERS: dict[str, Callable[[bytes], None]] = {
    "gateway": at_the_gateway,
    "REST": at_rest,
    "provider": from_a_provider,
    "workflow": as_a_workflow,
}
