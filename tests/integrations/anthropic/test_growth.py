"""What a hostile stream of an answer costs: work that grows no faster than its events."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any
from unittest.mock import Mock, patch

from integrations.providers.anthropic.reply import Reply
from integrations.providers.base import TextDelta
from rensei.dispatch.execution import provider_call
from rensei.dispatch.execution.provider_call import ProviderCall


def lines(work: Callable[[], object], *, of: str) -> int:
    """Count the lines of a file that some work carries out."""
    count = 0

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return local

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        return local if frame.f_code.co_filename.endswith(of) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def reply_of(blocks: int) -> Reply:
    """Make an answer of many blocks, each with texts of all kinds."""
    reply = Reply(input_tokens_about=1)
    for index in range(blocks):
        reply.take({"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}})
        for name in ("text", "thinking", "signature"):
            delta = {"type": f"{name}_delta", name: "x"}
            reply.take({"type": "content_block_delta", "index": index, "delta": delta})
    return reply


class Piece(str):
    """A piece of text that notes the length of what it is added to."""

    __slots__ = ()
    copied = 0

    def __radd__(self, before: str) -> str:
        Piece.copied += len(before)
        return before + str(self)


def copied_by(pieces: int) -> int:
    """Count the characters that are copied while an answer of many pieces arrives."""
    Piece.copied = 0
    call = ProviderCall(Mock(), Mock(), Mock())
    with patch.object(provider_call, "note_event"):
        for _ in range(pieces):
            call._take(TextDelta(text=Piece("word ")))
    assert call.text == "word " * pieces
    return Piece.copied


class TestAnAnswer:
    def test_of_many_blocks_is_read_in_time_that_grows_with_them(self) -> None:
        few, many = reply_of(100), reply_of(800)

        assert len(many.content()) == 800
        assert many.text == "x" * 800
        assert lines(many.content, of="reply.py") <= 8.5 * lines(few.content, of="reply.py")

    def test_of_many_pieces_is_copied_no_more_than_it_is_long(self) -> None:
        assert copied_by(16_000) <= 9 * copied_by(2_000)
