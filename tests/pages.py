"""Pages, read as a browser reads them."""

import re
from typing import Any


def html_of(answer: Any) -> str:
    """Return the HTML of a page without the white space that only lays out its template."""
    text = " ".join(answer.content.decode().split())
    return re.sub(r"(?<=>) (?=<)|(?<!>) (?=</)|(<[a-z][^>]*>) ", r"\1", text)
