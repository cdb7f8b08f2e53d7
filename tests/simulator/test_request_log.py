"""The simulator logs every request, so that a ledger can be reconciled against it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest

from rensei.simulator import server
from rensei.simulator.server import RunningSimulator
from tests.waiting import wait_until

MakeClient = Callable[..., anthropic.Anthropic]
ROOT = Path(__file__).parents[2]


def say(client: anthropic.Anthropic, text: str = "Hi.", **options: Any) -> anthropic.types.Message:
    messages: list[Any] = [{"role": "user", "content": text}]
    return client.messages.create(model="claude-opus-4-8", max_tokens=500, messages=messages, **options)


class TestRequestLog:
    def test_tells_who_asked_what_and_what_it_cost(
        self, make_client: MakeClient, simulator: RunningSimulator, key: str
    ) -> None:
        message = say(make_client(api_key=key), extra_headers={"x-rensei-attempt": "att_1"})

        [logged] = simulator.requests()
        assert logged["key_sha256"] == hashlib.sha256(key.encode()).hexdigest()
        assert logged["attempt_id"] == "att_1"
        assert (logged["method"], logged["path"], logged["status"]) == ("POST", "/v1/messages", 200)
        assert (logged["model"], logged["served_model"]) == ("claude-opus-4-8", "claude-opus-4-8")
        assert logged["usage"] == message.usage.to_dict() | {"server_tool_use": None}
        assert logged["usage_is_final"]
        assert logged["outcome"] == "completed"
        assert logged["request_id"] == message._request_id
        assert logged["body"]["messages"] == [{"role": "user", "content": "Hi."}]

    def test_never_holds_the_key(
        self, http: httpx2.Client, simulator: RunningSimulator, key: str, make_key: Callable[..., str]
    ) -> None:
        other = make_key()
        http.get("/v1/models", headers={"x-api-key": key, "authorization": f"Bearer {other}"})
        http.get("/v1/models", headers={"authorization": f"Bearer {other}"})

        text = json.dumps(simulator.requests())

        assert key not in text
        assert other not in text

    def test_tells_why_a_request_was_refused(self, client: anthropic.Anthropic, simulator: RunningSimulator) -> None:
        with pytest.raises(anthropic.BadRequestError):
            say(client, extra_body={"colour": "red"})

        [logged] = simulator.requests()
        assert (logged["status"], logged["error_type"]) == (400, "invalid_request_error")
        assert logged["error_message"] == "colour: Extra inputs are not permitted"
        assert logged["usage"] is None

    def test_has_the_merged_usage_of_a_stream(self, client: anthropic.Anthropic, simulator: RunningSimulator) -> None:
        with client.messages.stream(
            model="claude-opus-4-8", max_tokens=99, messages=[{"role": "user", "content": "[[reply 30 words]]"}]
        ) as events:
            usage = events.get_final_message().usage

        [logged] = simulator.requests()
        assert logged["stream"]
        assert logged["usage"]["output_tokens"] == usage.output_tokens == 30
        assert logged["usage"]["cache_creation"] == {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0}

    def test_has_a_request_before_it_is_answered(self, make_client: MakeClient, simulator: RunningSimulator) -> None:
        stream = make_client().messages.create(
            model="claude-opus-4-8",
            max_tokens=99,
            stream=True,
            messages=[{"role": "user", "content": "[[stall after=2]] [[reply 30 words]]"}],
        )

        [logged] = simulator.requests()

        assert (logged["outcome"], logged["ended_at"], logged["status"]) == (None, None, 200)
        stream.close()

    def test_notices_a_client_that_was_killed(self, simulator: RunningSimulator, key: str) -> None:
        script = (
            "import sys, httpx2\n"
            "url, key = sys.argv[1], sys.stdin.readline().strip()\n"
            "body = {'model': 'claude-opus-4-8', 'max_tokens': 99, 'stream': True,\n"
            "        'messages': [{'role': 'user', 'content': '[[stall after=2]] [[reply 30 words]]'}]}\n"
            "headers = {'x-api-key': key, 'anthropic-version': '2026-10-21'}\n"
            "httpx2.post(url + '/v1/messages', headers=headers, json=body, timeout=60)\n"
        )
        client = subprocess.Popen([sys.executable, "-c", script, simulator.url], stdin=subprocess.PIPE)
        assert client.stdin is not None
        client.stdin.write(f"{key}\n".encode())
        client.stdin.flush()
        wait_until(lambda: bool(simulator.requests()) and simulator.requests()[0]["deltas_sent"] == 2, seconds=10)

        client.kill()
        client.wait()
        client.stdin.close()

        wait_until(lambda: simulator.requests()[0]["outcome"] == "client_disconnected", seconds=10)
        assert not simulator.requests()[0]["usage_is_final"]

    def test_gives_what_came_after_a_sequence(self, client: anthropic.Anthropic, simulator: RunningSimulator) -> None:
        say(client, "One?")
        before = simulator.last_sequence()
        say(client, "Two?")

        assert [request["body"]["messages"][0]["content"] for request in simulator.requests(since=before)] == ["Two?"]

    def test_tells_invalid_requests_from_faults_that_were_asked_for(
        self, make_client: MakeClient, simulator: RunningSimulator
    ) -> None:
        for client, options in (
            (make_client("nocredit"), {}),
            (make_client("workspaceneeded"), {}),
            (make_client(), {"extra_body": {"colour": "red"}}),
        ):
            with pytest.raises(anthropic.BadRequestError):
                say(client, **options)

        [invalid] = simulator.invalid_requests()
        assert invalid["error_message"] == "colour: Extra inputs are not permitted"

    def test_survives_bodies_that_are_no_requests(
        self, http: httpx2.Client, simulator: RunningSimulator, key: str
    ) -> None:
        headers = {"x-api-key": key, "anthropic-version": "2026-10-21", "content-type": "application/json"}
        bodies = [b"", b"null", b"\xff\xfe", b"[" * 100_000, b'{"model": ["x"], "stream": {}}', b'{"messages": [[]]}']

        statuses = [http.post("/v1/messages", headers=headers, content=body).status_code for body in bodies]

        assert statuses == [400] * len(bodies)
        assert {request["outcome"] for request in simulator.requests()} == {"completed"}


class TestServer:
    def test_writes_the_log_to_a_file(self, tmp_path: Path, make_key: Callable[..., str]) -> None:
        log = tmp_path / "requests.jsonl"
        simulator = server.start(log=log, keep_bodies=False)
        try:
            with anthropic.Anthropic(api_key=make_key(), base_url=simulator.url, max_retries=0) as client:
                say(client)
        finally:
            simulator.stop()

        arrived, ended = (json.loads(line) for line in log.read_text().splitlines())
        assert (arrived["event"], arrived["status"], arrived["body"]) == ("arrived", None, None)
        assert (ended["event"], ended["status"], ended["outcome"]) == ("ended", 200, "completed")
        assert arrived["sequence"] == ended["sequence"]

    def test_accepts_only_the_keys_of_its_file(self, tmp_path: Path, make_key: Callable[..., str]) -> None:
        good, other = make_key(), make_key()
        key_file = tmp_path / "keys"
        key_file.write_text(hashlib.sha256(good.encode()).hexdigest() + "\n")
        simulator = server.start(key_file=key_file)
        try:
            with anthropic.Anthropic(api_key=good, base_url=simulator.url, max_retries=0) as client:
                assert client.models.list().data
            with (
                anthropic.Anthropic(api_key=other, base_url=simulator.url, max_retries=0) as client,
                pytest.raises(anthropic.AuthenticationError),
            ):
                client.models.list()
        finally:
            simulator.stop()

    def test_ends_with_the_process_that_started_it(self) -> None:
        script = (
            "from rensei.simulator import server\nprint(server.start().url, flush=True)\nimport time\ntime.sleep(60)\n"
        )
        parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT)
        assert parent.stdout is not None
        url = parent.stdout.readline().decode().strip()
        assert httpx2.get(f"{url}/__simulator/health").status_code == 200

        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        parent.stdout.close()

        wait_until(lambda: not _answers(url), seconds=10)


def _answers(url: str) -> bool:
    try:
        httpx2.get(f"{url}/__simulator/health", timeout=1)
    except httpx2.TransportError:
        return False
    return True
