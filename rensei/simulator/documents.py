"""Checks of documents and search results, which contain text."""

from typing import Any

from rensei.simulator.errors import ApiError
from rensei.simulator.images import decode_base64
from rensei.simulator.shapes import require_dict, require_fields, require_list, require_one_of, require_string


def check_document_source(value: Any, *, path: str) -> None:
    """
    Check the source of a document block.

    :raises ApiError: 400, or 404 for a file
    """
    source = require_dict(value, path=path)
    require_one_of(source.get("type"), ("base64", "text", "content", "url", "file"), path=f"{path}.type")
    match source["type"]:
        case "base64":
            require_fields(source, required={"type", "media_type", "data"}, optional=set(), path=path)
            require_one_of(source["media_type"], ("application/pdf",), path=f"{path}.media_type")
            decode_base64(source["data"], path=f"{path}.data")
        case "text":
            require_fields(source, required={"type", "media_type", "data"}, optional=set(), path=path)
            require_one_of(source["media_type"], ("text/plain",), path=f"{path}.media_type")
            require_string(source["data"], path=f"{path}.data")
        case "content":
            require_fields(source, required={"type", "content"}, optional=set(), path=path)
            if not isinstance(source["content"], str):
                check_texts(source["content"], path=f"{path}.content")
        case "url":
            require_fields(source, required={"type", "url"}, optional=set(), path=path)
            require_string(source["url"], path=f"{path}.url")
        case "file":
            require_fields(source, required={"type", "file_id"}, optional=set(), path=path)
            # The simulator stores no files, so none can be found.
            raise ApiError(404, f"File not found: {source['file_id']}")


def check_texts(value: Any, *, path: str) -> None:
    """
    Check a list of plain text blocks.

    :raises ApiError: 400
    """
    for index, block in enumerate(require_list(value, path=path)):
        require_dict(block, path=f"{path}.{index}")
        require_fields(
            block, required={"type", "text"}, optional={"cache_control", "citations"}, path=f"{path}.{index}"
        )
        require_one_of(block["type"], ("text",), path=f"{path}.{index}.type")
        require_string(block["text"], path=f"{path}.{index}.text")


def check_citations_setting(value: Any, *, path: str) -> None:
    """
    Check the form of the setting that switches citations on or off.

    :raises ApiError: 400
    """
    setting = require_dict(value, path=path)
    require_fields(setting, required=set(), optional={"enabled"}, path=path)
    require_one_of(setting.get("enabled", False), (True, False), path=f"{path}.enabled")
