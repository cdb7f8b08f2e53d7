"""The ASGI application: which path is answered by what, and the log around every request."""

import asyncio
import os
from pathlib import Path
from typing import Any

from rensei.simulator.directives import FaultDirective
from rensei.simulator.errors import ApiError
from rensei.simulator.exchange import BodyTooLarge, ClientDisconnected, Exchange, Receive, Send
from rensei.simulator.faults import refusal_by_key
from rensei.simulator.hostile import HOSTILE, ConnectionCut, StreamEndedEarly, give_hostile_answer
from rensei.simulator.keys import Account, authenticate, key_digest
from rensei.simulator.listing import list_models, show_model
from rensei.simulator.messages import Messages
from rensei.simulator.request_log import LoggedRequest, RequestLog
from rensei.simulator.response_headers import new_request_id, response_headers
from rensei.simulator.validation import check_headers

_SLOW_KEY_SECONDS = 2.0


def create_application() -> "Application":
    """Make the application as the environment of `python -m rensei.simulator` configures it."""
    file = os.environ.get("RENSEI_SIMULATOR_LOG")
    key_file = os.environ.get("RENSEI_SIMULATOR_KEY_FILE")
    return Application(
        log_file=Path(file) if file else None,
        keep_bodies=os.environ.get("RENSEI_SIMULATOR_KEEP_BODIES") == "1",
        accepted_keys=frozenset(Path(key_file).read_text().split()) if key_file else None,
        instance=os.environ.get("RENSEI_SIMULATOR_INSTANCE", ""),
    )


class Application:
    def __init__(
        self,
        *,
        log_file: Path | None = None,
        keep_bodies: bool = True,
        accepted_keys: frozenset[str] | None = None,
        instance: str = "",
    ) -> None:
        self.log = RequestLog(file=log_file, keep_bodies=keep_bodies)
        self.messages = Messages()
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
        """Answer one request of the API, and keep the log true whatever happens."""
        too_large = False
        try:
            raw = await exchange.read_body()
        except BodyTooLarge:
            raw, too_large = b"", True
        except ClientDisconnected:
            # A request that never arrived whole was never served, so it is nobody's to pay.
            return
        logged = self.log.open_request(exchange, raw)
        logged.request_id = new_request_id()
        try:
            if too_large:
                raise ApiError(413, "Request exceeds the maximum size")
            await self._answer(exchange, raw, logged)
        except ApiError as error:
            await self._refuse(exchange, logged, error)
        except (ClientDisconnected, asyncio.CancelledError):
            self.log.close_request(logged, outcome="client_disconnected")
        except StreamEndedEarly:
            self.log.close_request(logged, outcome="cut_by_fault")
        except ConnectionCut:
            # The server closes the connection when the application fails, which is the only way to make it do so.
            self.log.close_request(logged, outcome="cut_by_fault")
            raise
        else:
            self.log.close_request(logged, outcome="completed")

    async def _answer(self, exchange: Exchange, raw: bytes, logged: LoggedRequest) -> None:
        account = authenticate(exchange.headers, accepted=self.accepted_keys)
        if await self._key_is_hostile(exchange, account, logged):
            return
        if refusal := refusal_by_key(account.words, reach="everywhere"):
            raise refusal
        if "workspaceneeded" in account.words and "anthropic-workspace-id" not in exchange.headers:
            raise ApiError(
                400,
                "anthropic-workspace-id is required when authenticating with an identity-linked API key; "
                "send the header with the id of a workspace.",
            )
        headers = response_headers(account, exchange, request_id=str(logged.request_id))

        match (exchange.method, exchange.path.rstrip("/").split("/")[1:]):
            case ("POST", ["v1", "messages"]):
                await self.messages.create(exchange, raw, account=account, logged=logged, headers=headers)
            case ("POST", ["v1", "messages", "count_tokens"]):
                await self.messages.count(exchange, raw, account=account, logged=logged, headers=headers)
            case ("GET", ["v1", "models"]):
                check_headers(exchange.headers)
                await self._answer_document(exchange, logged, list_models(account, exchange.query), headers)
            case ("GET", ["v1", "models", name]):
                check_headers(exchange.headers)
                await self._answer_document(exchange, logged, show_model(account, name), headers)
            case ("GET", ["v1", "organizations", "me"]):
                organization = {"id": account.organization_id, "type": "organization", "name": "Simulated"}
                await self._answer_document(exchange, logged, organization, headers)
            case (_, ["v1", "messages"] | ["v1", "messages", "count_tokens"] | ["v1", "models"]):
                raise ApiError(405, "Method Not Allowed")
            case _:
                raise ApiError(404, "Not found")

    async def _key_is_hostile(self, exchange: Exchange, account: Account, logged: LoggedRequest) -> bool:
        """Give the hostile answer that the key asks for, if it does."""
        if "slow" in account.words:
            await exchange.wait(_SLOW_KEY_SECONDS)
        for name in sorted(account.words & HOSTILE):
            logged.faults.append(name)
            logged.status = await give_hostile_answer(exchange, FaultDirective(name=name, options={}))
            return True
        return False

    async def _answer_document(
        self, exchange: Exchange, logged: LoggedRequest, document: dict[str, Any], headers: dict[str, str]
    ) -> None:
        logged.status = 200
        await exchange.answer_json(200, document, headers=headers)

    async def _refuse(self, exchange: Exchange, logged: LoggedRequest, error: ApiError) -> None:
        logged.status, logged.error_type, logged.error_message = error.status, error.type, error.message
        headers = {"request-id": str(logged.request_id), **error.headers}
        try:
            await exchange.answer_json(error.status, error.body(request_id=str(logged.request_id)), headers=headers)
        except ClientDisconnected:
            self.log.close_request(logged, outcome="client_disconnected")
        else:
            self.log.close_request(logged, outcome="completed")

    async def _answer_about_itself(self, exchange: Exchange) -> None:
        """Answer the paths that are the simulator's own, which are never logged."""
        match (exchange.method, exchange.path):
            case ("GET", "/__simulator/health"):
                await exchange.answer_json(200, {"instance": self.instance}, headers={})
            case ("GET", "/__simulator/requests"):
                since = int(exchange.query.get("since", ["0"])[0])
                await exchange.answer_json(200, {"requests": self.log.since(since)}, headers={})
            case ("DELETE", "/__simulator/requests"):
                self.log.clear()
                self.messages.reset()
                await exchange.answer_json(200, {}, headers={})
            case _:
                await exchange.answer_json(404, {"error": "The simulator has no such page."}, headers={})
