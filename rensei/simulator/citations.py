"""
Citations of the documents that a request allows to be cited.

Source of their form: https://platform.claude.com/docs/en/build-with-claude/citations
"""

from typing import Any

_CITED_CHARACTERS = 40


def cite_documents(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cite the beginning of each document that has citations enabled."""
    documents = [
        block
        for message in messages
        for block in (message["content"] if isinstance(message["content"], list) else [])
        if block["type"] == "document"
    ]
    return [
        _cite(document, index=index)
        for index, document in enumerate(documents)
        if (document.get("citations") or {}).get("enabled")
    ]


def _cite(document: dict[str, Any], *, index: int) -> dict[str, Any]:
    place = {"document_index": index, "document_title": document.get("title"), "file_id": None}
    source = document["source"]
    if source["type"] == "text":
        cited = source["data"][:_CITED_CHARACTERS]
        span = {"type": "char_location", "start_char_index": 0, "end_char_index": len(cited)}
        return {**span, "cited_text": cited, **place}
    span = {"type": "page_location", "start_page_number": 1, "end_page_number": 2}
    return {**span, "cited_text": "The first page.", **place}
