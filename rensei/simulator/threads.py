"""
Conversations that the provider stores, so that each request contains only the new part.

Source: https://platform.claude.com/docs/en/build-with-claude/message-threads
"""

from typing import Any

from rensei.simulator.errors import ApiError, invalid
from rensei.simulator.shapes import require_dict, require_fields, require_list, require_one_of

_THREADS_MAX = 1000
# The fields with which a thread is created, and which it keeps.
_KEPT = ("system", "tools")


class Threads:
    """The conversations of all keys, by the id of their last answer. The oldest are dropped first."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], dict[str, Any]] = {}

    def clear(self) -> None:
        self._held.clear()

    def whole(self, body: Any, *, key_sha256: str) -> Any:
        """
        Return the complete form of a request that continues a thread. Any other is returned unchanged.

        :raises ApiError: 400 if it repeats a field of the thread, 404 if there is no such thread
        """
        if not isinstance(body, dict) or body.get("thread") is None:
            return body
        thread = require_dict(body["thread"], path="thread")
        require_one_of(thread.get("type"), ("create", "continue"), path="thread.type")
        continues = thread["type"] == "continue"
        required = {"type", "previous_message_id"} if continues else {"type"}
        require_fields(thread, required=required, optional=set(), path="thread")
        if not continues:
            return body
        for name in _KEPT:
            if name in body:
                raise invalid(name, "the thread has it already")
        held = self._held.get((key_sha256, str(thread["previous_message_id"])))
        if held is None:
            raise ApiError(404, "The thread was not found.", code="thread_not_found")
        return {**body, **held, "messages": [*held["messages"], *require_list(body.get("messages"), path="messages")]}

    def hold(self, body: dict[str, Any], answer: dict[str, Any], *, key_sha256: str) -> None:
        """Store a conversation with its answer, if the request has a thread."""
        if body.get("thread") is None:
            return
        said = {"role": "assistant", "content": answer["content"]}
        kept = {name: body[name] for name in _KEPT if name in body}
        if len(self._held) >= _THREADS_MAX:
            del self._held[next(iter(self._held))]
        self._held[key_sha256, answer["id"]] = {**kept, "messages": [*body["messages"], said]}
