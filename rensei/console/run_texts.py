"""The texts of a run: what was asked, and what the model has written so far."""

from typing import Any

from rensei.dispatch.models import Run, RunChunk
from rensei.dispatch.queries import chunks_of


def text_of(found: Run) -> str:
    """The text that the model has written so far."""
    if found.output_text:
        return str(found.output_text)
    chunks = chunks_of(found, RunChunk.Kind.DELTA).values_list("data", flat=True)
    return "".join(data.get("text", "") for data in chunks)


def asked_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The input of the run, as texts and the number of its images; it contains no HTML."""
    turns = []
    for message in body.get("messages", []):
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        turns.append(
            {
                "role": message["role"],
                "text": "\n\n".join(block["text"] for block in blocks if block["type"] == "text"),
                "images": sum(block["type"] == "image" for block in blocks),
            }
        )
    return turns


def last_question(body: dict[str, Any]) -> str:
    """The text of the last message of the user."""
    return next((turn["text"] for turn in reversed(asked_of(body)) if turn["role"] == "user"), "")
