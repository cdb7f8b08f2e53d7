"""What real clients send is valid, stays valid with what Rensei adds, and goes through the gateway."""

import http.client
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from billing.models import CostEvent, Entitlement
from rensei.core.money import PICODOLLARS_PER_DOLLAR
from rensei.dispatch.models import Run
from rensei.dispatch.settlement import audit
from rensei.gateway import requests as gateway_requests
from rensei.gateway.body import Body
from rensei.gateway.routing import Route
from rensei.orgs.access import Access
from tests.architecture.modules import ROOT
from tests.gateway import corpus
from tests.gateway.bodies import ACCOUNT, is_valid
from tests.gateway.line import MODEL, settled
from tests.gateway.server import Server
from tests.gateway.wire import Wire

pytestmark = pytest.mark.django_db(transaction=True)

RECORDED = corpus.load(key_sha256=ACCOUNT.key_sha256)
CLIENTS = {recorded.client for recorded in RECORDED}
# What continues a thread is a part of a conversation, which alone is not valid.
WHOLE = [recorded for recorded in RECORDED if (recorded.body.get("thread") or {}).get("type") != "continue"]


class TestTheCorpus:
    def test_holds_every_client(self) -> None:
        assert len(CLIENTS) >= 15
        assert len(RECORDED) > 60

    def test_holds_nothing_that_was_said(self) -> None:
        for path in corpus.FOLDER.glob("*.json"):
            text = path.read_text()
            assert len(text) < 16_000, path
            assert not [word for word in ("rsk_live_", "sk-ant-", "/home/", "/tmp/", "/root") if word in text], path

    @pytest.mark.parametrize("recorded", WHOLE, ids=lambda recorded: recorded.client)
    def test_is_valid(self, recorded: corpus.Recorded) -> None:
        version = recorded.header("anthropic-version")

        assert is_valid(recorded.body, version=version, betas=recorded.betas), recorded.body


class TestTheDocumentation:
    def test_names_each_client_with_its_version(self) -> None:
        folder = corpus.FOLDER.parent / "clients"
        pinned = dict(re.findall(r"^([a-z-]+)(?:\[\w+\])?==(\S+)", _all_of(folder.glob("*.in")), re.MULTILINE))
        for package in [folder / "package.json", folder / "heavy/package.json"]:
            pinned |= json.loads(package.read_text())["dependencies"]
        # What Vercel's package needs beside it.
        del pinned["zod"]
        rows = re.findall(r"^\| .*`.*\|", (ROOT / "docs/gateway.md").read_text(), re.MULTILINE)

        assert len(pinned) == 13
        for name, version in pinned.items():
            assert [row for row in rows if f"`{name}`" in row and version in row], name


def _all_of(paths: Iterable[Path]) -> str:
    return "".join(path.read_text() for path in paths)


class TestWhatIsAdded:
    def test_keeps_each_request_valid_for_each_profile(self, ways: list[Route]) -> None:
        valid = added = 0
        for route in ways:
            for recorded in RECORDED:
                values = {**recorded.body, "model": route.judgement.entry.model_id}
                version = recorded.header("anthropic-version")
                sent = gateway_requests.prepare(Body.read(json.dumps(values).encode()), route).body.values
                if (values.get("thread") or {}).get("type") == "continue":
                    assert sent == values
                elif is_valid(values, version=version, betas=recorded.betas):
                    assert is_valid(sent, version=version, betas=recorded.betas), (recorded.client, values, sent)
                    assert sent["max_tokens"] == values["max_tokens"]
                    valid += 1
                    added += sent != values

        assert valid > 1000
        assert added > valid / 10


class TestTheGateway:
    @pytest.mark.parametrize("payer", ["byok", "metered"])
    def test_passes_on_and_prices_each_request(
        self, request: Any, server: Server, wire: Wire, ada_access: Access, token: str, payer: str
    ) -> None:
        request.getfixturevalue(payer)
        budget = 10_000 * PICODOLLARS_PER_DOLLAR
        Entitlement.objects.filter(org=ada_access.org).update(monthly_budget_picodollars=budget)
        # Thinking is signed for one key, and this one is made anew for each test.
        sendable = [each for each in WHOLE if "signature" not in json.dumps(each.body) and each.body["model"] == MODEL]
        # What a thread may cost has no bound, so the SDKs' tool runners are told to go on without one.
        threads = [each for each in sendable if "thread" in each.body and payer == "metered"]
        for recorded in sendable:
            body = json.dumps(recorded.body).replace("[[slow 0.01]]", "").encode()
            connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
            connection.putrequest("POST", "/v1/messages")
            for name, value in [*recorded.lines, ("x-api-key", token), ("content-length", str(len(body)))]:
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status == (400 if recorded in threads else 200), (recorded.client, said)
            assert (b"thread_unsupported_request" in said) is (recorded in threads)
            connection.close()
        settled()

        passed = len(sendable) - len(threads)
        assert len(sendable) > 50
        assert len(threads) == (2 if payer == "metered" else 0)
        assert [each.status for each in wire.messages()] == [200] * passed
        assert Run.objects.filter(state=Run.State.SUCCEEDED, amount_picodollars__gt=0).count() == passed
        assert CostEvent.objects.filter(billed=payer == "metered").count() == passed
        assert list(audit.differences()) == []
