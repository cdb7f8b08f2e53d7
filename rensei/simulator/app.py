"""The ASGI application: the routes, and the log of every request."""

import json
import os
from pathlib import Path
from typing import Any

from rensei.simulator.call import Call
from rensei.simulator.directives import FaultDirective
from rensei.simulator.errors import ApiError
from rensei.simulator.exchange import ClientDisconnected, Exchange, Receive, Send
from rensei.simulator.faults import refusal_by_key
from rensei.simulator.federation import Federation
from rensei.simulator.hostile import HOSTILE, ConnectionCut, StreamEndedEarly, give_hostile_answer
from rensei.simulator.keys import Account, authenticate
from rensei.simulator.listing import list_models, show_model
from rensei.simulator.messages import Messages
from rensei.simulator.request_log import LoggedRequest, Outcome, RequestLog
from rensei.simulator.response_headers import new_request_id, response_headers
from rensei.simulator.validation import check_headers

_SLOW_KEY_SECONDS = 2.0
_SETTLE_SECONDS = 0.005
_METHOD_OF_ROUTE = {
    "messages": "POST",
    "messages/count_tokens": "POST",
    "models": "GET",
    "models/*": "GET",
    "organizations/me": "GET",
    "oauth/token": "POST",
}


def create_application() -> "Application":
    """Create the application as the environment of `python -m rensei.simulator` configures it."""
    file = os.environ.get("SIMULATOR_LOG")
    key_file = os.environ.get("SIMULATOR_KEY_FILE")
    return Application(
        log_file=Path(file) if file else None,
        keep_bodies=os.environ.get("SIMULATOR_KEEP_BODIES") == "1",
        accepted_keys=frozenset(Path(key_file).read_text().split()) if key_file else None,
        instance=os.environ.get("SIMULATOR_INSTANCE", ""),
    )


class Application:
    def __init__(
        self, *, log_file: Path | None, keep_bodies: bool, accepted_keys: frozenset[str] | None, instance: str
    ) -> None:
        self.log = RequestLog(file=log_file, keep_bodies=keep_bodies)
        self.messages = Messages()
        self.federation = Federation()
        self.accepted_keys = accepted_keys
        self.instance = instance

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send)
        try:
            if exchange.path.startswith("/__simulator/"):
                await self._answer_about_itself(exchange)
            else:
                await self._answer_logged(exchange)
        finally:
            exchange.close()

    async def _answer_logged(self, exchange: Exchange) -> None:
        """Answer one request of the API, and record its end in the log in every case."""
        try:
            raw = await exchange.read_body()
        except ClientDisconnected:
            # A request that never arrived completely was never served, so it is not billed.
            return
        logged = self.log.open_request(exchange, raw, request_id=new_request_id())
        outcome: Outcome = "completed"
        try:
            await self._answer_or_refuse(exchange, raw, logged)
        except StreamEndedEarly:
            outcome = "cut_by_fault"
        except ConnectionCut:
            outcome = "cut_by_fault"
            # The server closes the connection only when the application fails.
            raise
        except ClientDisconnected:
            outcome = "client_disconnected"
        except Exception:
            outcome = "crashed"
            raise
        finally:
            self.log.close_request(logged, status=exchange.status, outcome=outcome)

    async def _answer_or_refuse(self, exchange: Exchange, raw: bytes, logged: LoggedRequest) -> None:
        headers = {"request-id": logged.request_id}
        try:
            route = _route(exchange)
            if route == "oauth/token":
                await exchange.answer_json(200, await self.federation.exchange(raw), headers=headers)
                return
            accepted = self.accepted_keys
            account = authenticate(
                exchange.headers, accepted=accepted | self.federation.digests if accepted is not None else None
            )
            self.federation.check_token(account.key_sha256, exchange.headers)
            headers = response_headers(account, exchange, request_id=logged.request_id)
            call = Call(exchange=exchange, account=account, logged=logged, headers=headers)
            if not await _give_hostile_answer_of_key(call):
                _check_account(account, exchange)
                await self._answer(call, raw, route=route)
        except ApiError as error:
            logged.error_type, logged.error_message = error.type, error.message
            logged.error_on_purpose = error.on_purpose
            document = error.body(request_id=logged.request_id)
            await exchange.answer_json(error.status, document, headers={**headers, **error.headers})

    async def _answer(self, call: Call, raw: bytes, *, route: str) -> None:
        if route == "messages":
            await self.messages.create(call, raw)
            return
        if route == "messages/count_tokens":
            await self.messages.count(call, raw)
            return
        check_headers(call.exchange.headers)
        match route:
            case "models":
                document = list_models(call.account, call.exchange.query)
            case "models/*":
                document = show_model(call.account, call.exchange.path.rpartition("/")[2])
            case _:
                document = {"id": call.account.organization_id, "type": "organization", "name": "Simulated"}
        await call.exchange.answer_json(200, document, headers=call.headers)

    async def _answer_about_itself(self, exchange: Exchange) -> None:
        """Answer the simulator's own paths, which are never logged."""
        match (exchange.method, exchange.path):
            case ("GET", "/__simulator/health"):
                await exchange.answer_json(200, {"instance": self.instance}, headers={})
            case ("GET", "/__simulator/requests"):
                # A client may read the log before the end of the answer that it just received is recorded.
                await exchange.wait(_SETTLE_SECONDS)
                since = int(exchange.query.get("since", ["0"])[0])
                await exchange.answer_json(200, {"requests": self.log.since(since)}, headers={})
            case ("GET", "/__simulator/federation"):
                await exchange.answer_json(200, {"history": list(self.federation.history)}, headers={})
            case ("PUT", "/__simulator/federation"):
                self.federation.register(json.loads(await exchange.read_body()))
                await exchange.answer_json(200, {}, headers={})
            case ("DELETE", "/__simulator/federation/tokens"):
                self.federation.revoke_tokens()
                await exchange.answer_json(200, {}, headers={})
            case ("DELETE", "/__simulator/requests"):
                self.log.clear()
                self.messages.reset()
                await exchange.answer_json(200, {}, headers={})
            case _:
                await exchange.answer_json(404, {"error": "The simulator has no such page."}, headers={})


def _route(exchange: Exchange) -> str:
    """
    Find the route of a path.

    :raises ApiError: 404 for an unknown path, 405 for another method, 413 for a body over 32 MB
    """
    path = exchange.path.rstrip("/")
    version, _, route = path.removeprefix("/").partition("/")
    if route.startswith("models/") and route.count("/") == 1:
        route = "models/*"
    if version != "v1" or route not in _METHOD_OF_ROUTE:
        raise ApiError(404, "Not found")
    if exchange.method != _METHOD_OF_ROUTE[route]:
        raise ApiError(405, "Method Not Allowed")
    if exchange.body_is_too_large:
        raise ApiError(413, "Request exceeds the maximum size")
    return route


def _check_account(account: Account, exchange: Exchange) -> None:
    """Raise the refusal that the key's words request for every path."""
    if refusal := refusal_by_key(account.words, reach="everywhere"):
        raise refusal
    if "workspaceneeded" in account.words and "anthropic-workspace-id" not in exchange.headers:
        raise ApiError(
            400,
            "anthropic-workspace-id is required when authenticating with an identity-linked API key; "
            "send the header with the id of a workspace.",
            on_purpose=True,
        )


async def _give_hostile_answer_of_key(call: Call) -> bool:
    """Send the hostile answer that the key requests, if it does."""
    if "slow" in call.account.words:
        await call.exchange.wait(_SLOW_KEY_SECONDS)
    for name in sorted(call.account.words & HOSTILE):
        call.logged.faults.append(name)
        await give_hostile_answer(call.exchange, FaultDirective(name=name, options={}))
        return True
    return False
