"""A client of the server: JSON over HTTP, with refusals as problem documents."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, quote, urlsplit

from rensei.cli.errors import Refused, ServerSilent
from rensei.cli.events import Event, read_events

if TYPE_CHECKING:
    import httpx2

VERSION_HEADER = "Rensei-Version"
TIMEOUT_SECONDS = 30.0
# The server sends a comment every 15 s, so a stream that is silent for longer has broken.
STREAM_SILENCE_SECONDS = 40.0
# The most that the server accepts for `Prefer: wait` is a minute.
ANSWER_SECONDS_MAX = 90.0
RECONNECT_SECONDS_MAX = 60.0
_PAGE_SIZE = 200
# The longest ids are those of models.
_ID_CHARACTERS_MAX = 200


def at(*parts: str) -> str:
    """
    Join the segments of a path; each id stays one segment, so that `../profiles/x` does not name another path.

    :raises Refused: if a part cannot be an id
    """
    for part in parts:
        if not part.isprintable() or not 0 < len(part) <= _ID_CHARACTERS_MAX or part in (".", "..") or "/" in part:
            raise Refused("ID_INVALID", f"{part[:40]!r} is no id.", fix="The list commands show the ids.")
    return "/".join(quote(part, safe="") for part in parts)


class Client:
    """Calls one server with one token."""

    def __init__(self, *, url: str, token: str) -> None:
        # httpx2 takes a third of a second to load, which would delay `--help` and completion.
        import httpx2

        self.url = url
        self.server_version: str | None = None
        headers = {"Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        # A redirect could send the token to another server, so none is followed.
        self._http = httpx2.Client(
            base_url=f"{url}/api/v1/", headers=headers, timeout=TIMEOUT_SECONDS, follow_redirects=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> Any:
        return self.call("GET", path, query=query)

    def post(self, path: str, body: Any = None, **options: Any) -> Any:
        return self.call("POST", path, body=body, **options)

    def put(self, path: str, body: Any) -> Any:
        return self.call("PUT", path, body=body)

    def patch(self, path: str, body: Any) -> Any:
        return self.call("PATCH", path, body=body)

    def delete(self, path: str, **query: Any) -> None:
        self.call("DELETE", path, query=query)

    def list(self, path: str, *, limit: int | None = None, **query: Any) -> dict[str, Any]:
        """Fetch a whole list, or its first rows, in the shape of one page."""
        query["pageSize"] = min(limit or _PAGE_SIZE, _PAGE_SIZE)
        return self.pages(path, query, limit=limit)

    def pages(self, path: str, query: Mapping[str, Any], *, limit: int | None = None) -> dict[str, Any]:
        """Do the same with any names in the query: a list that is always one page knows no `pageSize`."""
        rows: list[Any] = []
        query = dict(query)
        while True:
            page = self.call("GET", path, query=query)
            if not isinstance(page, dict) or "results" not in page:
                raise Refused("NOT_A_LIST", f"/{path} is no list, so it has no pages.", fix="Leave --paginate out.")
            rows += page["results"]
            # Only the cursor is taken from the URL of the next page, so that all requests go to this server.
            cursor = parse_qs(urlsplit(page["next"] or "").query).get("cursor")
            if not cursor or (limit is not None and len(rows) >= limit):
                return {**page, "next": None, "previous": None, "results": rows[:limit]}
            query["cursor"] = cursor[0]

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> Any:
        """
        Call one endpoint.

        :return: the JSON of the answer, None where there is none
        :raises Refused: if the server refuses, or does not answer
        """
        import httpx2

        try:
            response = self._http.request(
                method,
                path,
                json=body,
                params={name: value for name, value in (query or {}).items() if value is not None},
                headers=headers,
                timeout=timeout_seconds,
            )
        except httpx2.HTTPError as fault:
            raise ServerSilent(self.url, type(fault).__name__) from fault
        self.server_version = response.headers.get(VERSION_HEADER, self.server_version)
        return self._read(response)

    @contextmanager
    def stream(
        self, method: str, path: str, *, body: Any, query: Mapping[str, Any], headers: Mapping[str, str]
    ) -> Iterator["httpx2.Response"]:
        """
        Call one endpoint, and return its answer before it is complete.

        :raises Refused: if the server refuses, or does not answer
        """
        import httpx2

        # The timeout allows for the wait that the caller prefers, or for the interval of an event stream's comments.
        timeout = httpx2.Timeout(TIMEOUT_SECONDS, read=ANSWER_SECONDS_MAX)
        try:
            with self._http.stream(
                method, path, json=body, params=query or None, headers=headers, timeout=timeout
            ) as response:
                if not response.is_success:
                    response.read()
                    self._read(response)
                yield response
        except httpx2.HTTPError as fault:
            raise ServerSilent(self.url, type(fault).__name__) from fault

    def events(self, run_id: str, *, deadline: float | None = None) -> Iterator[Event]:
        """
        Follow a run until its end. A broken stream is resumed after its last event.

        :param deadline: a time of `time.monotonic()`
        :raises Refused: if the server refuses, is unreachable for a minute, or the deadline passes
        """
        import httpx2

        late = Refused(
            "WAIT_TIMEOUT", f"{run_id} has not ended yet. It goes on.", fix=f"rensei run watch {run_id} waits for it."
        )

        last, silent_since = "", time.monotonic()
        while True:
            left = STREAM_SILENCE_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise late
            headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
            try:
                with self._http.stream(
                    "GET", at("runs", run_id, "events"), headers=headers, timeout=min(left, STREAM_SILENCE_SECONDS)
                ) as response:
                    if response.status_code != httpx2.codes.OK:
                        response.read()
                        self._read(response)
                    for event in read_events(response.iter_lines()):
                        if event.kind == "closed":
                            raise Refused(event.data["code"], event.data["detail"])
                        silent_since, last = time.monotonic(), event.id
                        yield event
                        if event.kind == "done":
                            return
                        if deadline is not None and time.monotonic() > deadline:
                            raise late
            except httpx2.HTTPError as fault:
                if deadline is not None and time.monotonic() > deadline:
                    raise late from fault
                if time.monotonic() - silent_since > RECONNECT_SECONDS_MAX:
                    raise ServerSilent(self.url, type(fault).__name__) from fault
            else:
                if time.monotonic() - silent_since > RECONNECT_SECONDS_MAX:
                    raise ServerSilent(self.url, "the stream ends without the run's end")
            time.sleep(0.5)

    def _read(self, response: "httpx2.Response") -> Any:
        kind = response.headers.get("content-type", "").partition(";")[0]
        if kind == "application/problem+json":
            raise _refusal(response.json())
        if response.status_code == 204:
            return None
        if kind != "application/json" or not response.is_success:
            raise Refused(
                "NOT_A_RENSEI_SERVER",
                f"{self.url} answered with {response.status_code} {kind or 'and no content'}, which is not Rensei's.",
                fix="Check --url or RENSEI_API_URL: it is the address of the pages, such as http://127.0.0.1:8000.",
                status=response.status_code,
            )
        return response.json()


def _refusal(problem: dict[str, Any]) -> Refused:
    code = str(problem.get("code", "UNKNOWN"))
    detail, fix = str(problem.get("detail", "The server gave no reason.")), str(problem.get("fix", ""))
    if code == "NOT_AUTHENTICATED":
        detail = "The token is missing, unknown, expired or revoked."
        fix = "Run `rensei setup` to sign in again, or set RENSEI_AUTH_TOKEN."
    return Refused(code, detail, fix=fix, status=int(problem.get("status", 0)), problem=problem)
