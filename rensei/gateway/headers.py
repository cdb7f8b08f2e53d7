"""
Parse the headers of a request.

Source: https://www.rfc-editor.org/rfc/rfc9110#section-5.3
"""

from collections.abc import Iterable


def read_headers(lines: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """
    Return headers by lower-case name. Several lines of one name are joined by commas.

    Some clients send one line for each beta. For a header with a single value, such as a key, two lines give an invalid
    value, as on every other server.
    """
    headers: dict[str, str] = {}
    for raw_name, raw_value in lines:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        earlier = headers.get(name)
        headers[name] = f"{earlier}, {value}" if earlier and value else earlier or value
    return headers
