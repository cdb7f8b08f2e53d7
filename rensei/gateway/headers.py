"""
The headers of a request, read in one place.

Source: https://www.rfc-editor.org/rfc/rfc9110#section-5.3
"""

from collections.abc import Iterable


def read_headers(lines: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """
    Read headers by their names in lower case. Lines of one name are one list, whose parts are joined by commas.

    Some clients send a line for each beta that they name. Of a header that holds one value, such as a key, two lines
    are a value that is good for nothing, as they are for every other server.
    """
    headers: dict[str, str] = {}
    for raw_name, raw_value in lines:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        earlier = headers.get(name)
        headers[name] = f"{earlier}, {value}" if earlier and value else earlier or value
    return headers
