"""What the gateway's answers tell browsers of https."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.gateway.line import message
from tests.gateway.server import Server

pytestmark = pytest.mark.django_db(transaction=True)
HEADER = "strict-transport-security"


class TestEveryAnswer:
    def test_keeps_browsers_to_https(self, start_server: Callable[..., Server], byok: Any, ask: Any) -> None:
        server = start_server(RENSEI_PUBLIC_URL="https://127.0.0.1")

        answers = [ask(message(), to=server), ask(b"[", to=server), ask(None, path="/v1/nothing", to=server)]

        assert [answer.status for answer in answers] == [200, 400, 404]
        for answer in answers:
            assert answer.headers[HEADER] == "max-age=31536000; includeSubDomains; preload"

    def test_says_nothing_of_it_without(self, ask: Any, byok: Any) -> None:
        assert HEADER not in ask(message()).headers
