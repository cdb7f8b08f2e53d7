"""The tables of docs/simulator.md, which the tests replay row by row."""

import base64
import io
import json
import re
import secrets
from pathlib import Path
from typing import Any

from PIL import Image

DOC = Path(__file__).parents[2] / "docs" / "simulator.md"


def read_table(first_heading: str) -> list[list[str]]:
    """Read the rows of the table whose first column has this heading."""
    lines = DOC.read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"| {first_heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip()[1:-1].split("|")])
    return rows


def read_json(cell: str) -> dict[str, Any]:
    """Read a cell that holds JSON between backticks, with the things in angle brackets made real."""
    if not cell:
        return {}
    value: dict[str, Any] = _fill(json.loads(cell.strip("`")))
    return value


def merge_patch(target: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def make_key(kind: str, *words: str) -> str:
    return "-".join(["sk", "ant", kind, *words, secrets.token_hex(24)])


def make_image(width: int, height: int, *, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, form)
    return buffer.getvalue()


def image_block(data: bytes, *, media_type: str = "image/png") -> dict[str, Any]:
    source = {"type": "base64", "media_type": media_type, "data": base64.b64encode(data).decode()}
    return {"type": "image", "source": source}


def _fill(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _fill(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_fill(part) for part in value]
    if isinstance(value, str):
        return _fill_text(value)
    return value


def _fill_text(text: str) -> Any:
    if found := re.fullmatch(r"<png (\d+)x(\d+)>", text):
        return base64.b64encode(make_image(int(found[1]), int(found[2]))).decode()
    if found := re.fullmatch(r"<(\d+) images (\d+)x(\d+)>", text):
        return [image_block(make_image(int(found[2]), int(found[3])))] * int(found[1])
    if found := re.fullmatch(r"<words (\d+)>", text):
        return "word " * int(found[1])
    if found := re.fullmatch(r"<(\d+) MB>", text):
        return "A" * (int(found[1]) * 1024 * 1024)
    for name, kind in (("admin ", "admin01"), ("enterprise ", "api01"), ("oauth ", "oat01"), ("", "api03")):
        pattern = rf"<{name}key ?([a-z-]*)>"
        text = re.sub(pattern, lambda found, kind=kind: make_key(kind, *filter(None, [found[1]])), text)
    return text
