"""`rensei api`: call any endpoint of the REST interface."""

import json
import sys
from typing import Annotated, Any
from urllib.parse import parse_qs

import typer

from rensei.cli.app import app
from rensei.cli.errors import Refused
from rensei.cli.inputs import read_document
from rensei.cli.session import Session, command

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
BASE = "/api/v1/"


@command(app, "api")
def api(
    session: Session,
    words: Annotated[list[str], typer.Argument(metavar="[METHOD] PATH", help="Such as GET /runs", show_default=False)],
    raw_field: Annotated[
        list[str] | None,
        typer.Option("--raw-field", "-f", metavar="NAME=TEXT", help="A text of the body; of the query with GET"),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option("--field", "-F", metavar="NAME=JSON", help="The same for a number, true, null, a list or object"),
    ] = None,
    file: Annotated[
        str | None, typer.Option("--input", metavar="FILE|-", help="The whole body as JSON; - reads standard input")
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="NAME:VALUE", help="Such as 'Prefer: wait=30'")
    ] = None,
    paginate: Annotated[bool, typer.Option("--paginate", help="Follow `next`, and write the list as one")] = False,
) -> None:
    """
    Call an address of the REST interface, and write its answer.

    Without METHOD it is GET, or POST where there is a body. What is not JSON, such as a CSV file or events, is
    written as it is.
    """
    method, path, query = _address(words, has_body=bool(raw_field or field or file))
    fields = _fields(raw_field or [], field or [])
    if file is not None and fields:
        raise typer.BadParameter("give the body as --input or as fields, not both.", param_hint="--input")
    if paginate:
        if method != "GET":
            raise typer.BadParameter("only a list has pages, and GET reads it.", param_hint="--paginate")
        session.output.json(session.client.pages(path, {**query, **fields}))
        return
    body = _document(file) if file is not None else fields or None
    if method == "GET" and file is None:
        query, body = {**query, **fields}, None
    with session.client.stream(method, path, body=body, query=query, headers=_headers(header or [])) as response:
        if response.headers.get("content-type", "").startswith("application/json"):
            response.read()
            session.output.json(response.json())
        else:
            for part in response.iter_bytes():
                sys.stdout.buffer.write(part)
                sys.stdout.buffer.flush()


def _address(words: list[str], *, has_body: bool) -> tuple[str, str, dict[str, Any]]:
    """
    Read `GET /runs?state=FAILED` or `/runs` as a method, a path and a query.

    Every path is one of this server's REST interface: the token is sent nowhere else.

    :raises BadParameter: if it is not such a path
    """
    if len(words) > 2:
        raise typer.BadParameter("give a method and one path, such as GET /runs.", param_hint="PATH")
    method = words[0].upper() if len(words) == 2 else "POST" if has_body else "GET"
    if method not in METHODS:
        raise typer.BadParameter(f"one of {', '.join(METHODS)}.", param_hint="METHOD")
    path = words[-1].removeprefix(BASE).lstrip("/")
    address, _, query = path.partition("?")
    parts = address.split("/")
    if not path.isprintable() or not path.isascii() or "\\" in path or "#" in path or ":" in parts[0] or ".." in parts:
        raise typer.BadParameter(
            "give an address of the REST interface, such as /runs or /catalog?lifecycle=active.", param_hint="PATH"
        )
    return method, address, parse_qs(query, keep_blank_values=True)


def _fields(texts: list[str], values: list[str]) -> dict[str, Any]:
    """:raises BadParameter: if a field has no name, or is not JSON"""
    fields: dict[str, Any] = {}
    for given, flag in [*((one, "--raw-field") for one in texts), *((one, "--field") for one in values)]:
        name, sign, value = given.partition("=")
        if not name or not sign:
            raise typer.BadParameter(f"{given!r} is not NAME=VALUE.", param_hint=flag)
        try:
            fields[name] = value if flag == "--raw-field" else json.loads(value)
        except ValueError as fault:
            raise typer.BadParameter(
                f"{name} is not JSON: {fault}. --raw-field takes a text.", param_hint=flag
            ) from fault
    return fields


def _document(file: str) -> Any:
    try:
        return json.loads(read_document(file))
    except ValueError as fault:
        raise Refused("JSON_INVALID", f"{file} is not JSON: {fault}.") from fault


def _headers(given: list[str]) -> dict[str, str]:
    """:raises BadParameter: if a text is not a header, or would sign the call differently"""
    headers = {}
    for one in given:
        name, sign, value = one.partition(":")
        if not name.strip() or not sign or not one.isprintable() or not one.isascii():
            raise typer.BadParameter(f"{name!r} is not NAME:VALUE.", param_hint="--header")
        if name.strip().lower() in {"authorization", "cookie", "host"}:
            raise typer.BadParameter(
                f"{name.strip()} is not set here: --token - and RENSEI_AUTH_TOKEN choose the token.",
                param_hint="--header",
            )
        headers[name.strip()] = value.strip()
    return headers
