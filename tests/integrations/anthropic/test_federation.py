"""Exchange of this server's identity for a token: against the stand-in, which refuses as strictly as the API."""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Barrier, Thread
from typing import Any

import pytest
from django.db import connection
from hypothesis import given
from hypothesis import strategies as st

from integrations.keys import credentials
from integrations.models import IssuerKey
from integrations.providers.anthropic import ADAPTER, access_tokens
from integrations.providers.anthropic import diagnoses as d
from integrations.providers.anthropic.access_tokens import AccessToken, AccessTokens
from integrations.providers.anthropic.connection import rejection_of
from integrations.providers.anthropic.errors import make_failure
from integrations.providers.anthropic.federation import EXCHANGE_PATH, exchange, tokens
from integrations.providers.base import Credential, Federation, ProviderFailure
from integrations.vault import issuer, signing
from rensei.core.clock import database_now
from rensei.core.secret import Secret
from rensei.orgs.models import Org
from tests.integrations.federating import AUDIENCE, make_federation, rule_for, trust

GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"


@pytest.fixture(autouse=True)
def _no_tokens() -> Iterator[None]:
    tokens.clear()
    yield
    tokens.clear()


@pytest.fixture
def federation() -> Federation:
    return make_federation()


@pytest.fixture
def federated(acme: Org, simulator: Any, federation: Federation) -> Callable[..., Credential]:
    """Make a credential of Acme's, whose rule the stand-in knows."""
    trust(simulator, acme, federation)

    def make(**changes: Any) -> Credential:
        fields: dict[str, Any] = {"id": "int_1", "version": 1, "secret": Secret(""), "base_url": simulator.url}
        fields |= {"federation": federation, "subject": credentials.subject_of(acme)}
        return Credential(**{**fields, **changes})

    return make


def exchanges(simulator: Any) -> int:
    return sum(request["path"] == EXCHANGE_PATH for request in simulator.requests())


class TestTestConnection:
    def test_works_without_a_stored_key(self, federated: Callable[..., Credential], simulator: Any) -> None:
        verdict = ADAPTER.test_connection(credential=federated())

        assert (verdict.ok, verdict.code) == (True, "OK")
        assert verdict.models
        signed = simulator.requests()[-1]
        assert signed["path"] == "/v1/models"
        assert signed["anthropic_beta"] == "oauth-2025-04-20"
        assert signed["workspace_id"] is None
        assert {"authorization"} <= set(signed["header_names"])
        assert "x-api-key" not in signed["header_names"]

    def test_exchanges_anew_each_time(self, federated: Callable[..., Credential], simulator: Any) -> None:
        tokens.get(federated())
        ADAPTER.test_connection(credential=federated())
        ADAPTER.test_connection(credential=federated())

        assert exchanges(simulator) == 3

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"subject": "rensei:organization:org_other"}, "match_subject_prefix"),
            ({"audience": "https://elsewhere.example"}, "match_audience"),
            ({"issuer": "https://elsewhere.example"}, "issuer_mismatch"),
            ({"keys": [signing.es256_public(signing.new_es256_key())]}, "kid_unknown"),
            ({"archived": True}, "rule_unknown"),
            ({"id": "fdrl_another"}, "rule_unknown"),
            ({"organization_id": "00000000-0000-0000-0000-000000000000"}, "organization_mismatch"),
            ({"service_account_id": "svac_another"}, "service_account_mismatch"),
            ({"workspaces": ["default", "wrkspc_1"]}, "workspace_id_required"),
        ],
    )
    def test_says_what_to_compare_where_the_identity_is_refused(
        self,
        acme: Org,
        federated: Callable[..., Credential],
        federation: Federation,
        simulator: Any,
        changes: dict[str, Any],
        reason: str,
    ) -> None:
        trust(simulator, acme, federation, **changes)
        verdict = ADAPTER.test_connection(credential=federated())

        assert (verdict.ok, verdict.code, verdict.conclusive) == (False, "FEDERATION_REFUSED", True)
        assert simulator.exchanges()[-1]["reason"] == reason
        for told in (issuer.issuer_url(), credentials.subject_of(acme), AUDIENCE, "tab=history", "Workspace ID"):
            assert told in verdict.fix

    @pytest.mark.parametrize("url", ["http://rensei.example", "https://rensei.example:8443", "https://localhost"])
    def test_says_where_the_issuer_cannot_be_fetched(
        self,
        settings: Any,
        acme: Org,
        federated: Callable[..., Credential],
        federation: Federation,
        simulator: Any,
        url: str,
    ) -> None:
        trust(simulator, acme, federation, issuer="https://elsewhere.example")
        settings.PUBLIC_URL = url
        assert "inline" in ADAPTER.test_connection(credential=federated()).fix

        settings.PUBLIC_URL = "https://rensei.example"
        assert "inline" not in ADAPTER.test_connection(credential=federated()).fix

    def test_says_which_id_is_malformed(self, federated: Callable[..., Credential], simulator: Any) -> None:
        verdict = ADAPTER.test_connection(credential=federated(workspace_id="no-workspace"))

        assert (verdict.ok, verdict.code) == (False, "FEDERATION_INVALID")
        simulator.reset()  # The request was invalid on purpose.

    def test_uses_the_named_workspace(
        self, acme: Org, federated: Callable[..., Credential], federation: Federation, simulator: Any
    ) -> None:
        trust(simulator, acme, federation, workspaces=["default", "wrkspc_1"])
        assert ADAPTER.test_connection(credential=federated(workspace_id="wrkspc_1")).ok
        assert not ADAPTER.test_connection(credential=federated(workspace_id="wrkspc_2")).ok


def claims_for(subject: str, **changes: Any) -> dict[str, Any]:
    now = int(time.time())
    claims: dict[str, Any] = {"iss": issuer.issuer_url(), "sub": subject, "aud": AUDIENCE, "iat": now, "exp": now + 300}
    return {name: value for name, value in {**claims, **changes}.items() if value is not None}


class TestStandIn:
    """The stand-in is only worth something where it refuses what the API refuses."""

    @pytest.mark.parametrize(
        ("claims", "header", "reason"),
        [
            ({}, {}, None),
            ({"aud": ["x", AUDIENCE]}, {}, None),
            ({"aud": "https://elsewhere.example"}, {}, "match_audience"),
            ({"aud": None}, {}, "match_audience"),
            ({"sub": "rensei:organization:org_other"}, {}, "match_subject_prefix"),
            ({"sub": None}, {}, "sub_missing"),
            ({"iss": "https://elsewhere.example"}, {}, "issuer_mismatch"),
            ({"exp": 1, "iat": 0}, {}, "expired"),
            ({"exp": None}, {}, "expired"),
            ({"iat": None}, {}, "iat_invalid"),
            ({"iat": 9_999_999_999}, {}, "iat_invalid"),
            ({"iat": 0}, {}, "lifetime_too_long"),
            ({}, {"alg": "none"}, "alg_not_allowed"),
            ({}, {"alg": "HS256"}, "alg_not_allowed"),
            ({}, {"kid": None}, "kid_unknown"),
            ({}, {"kid": "another"}, "kid_unknown"),
            ({}, {"signed_by": "another"}, "signature_invalid"),
        ],
    )
    def test_refuses_what_the_api_refuses(
        self,
        acme: Org,
        federated: Callable[..., Credential],
        federation: Federation,
        simulator: Any,
        claims: dict[str, Any],
        header: dict[str, Any],
        reason: str | None,
    ) -> None:
        private = signing.new_es256_key()
        public = signing.es256_public(private)
        simulator.trust(
            issuer=issuer.issuer_url(),
            keys=[public],
            rules=[rule_for(federation, subject=credentials.subject_of(acme))],
        )
        signer = signing.new_es256_key() if header.pop("signed_by", None) else private
        assertion = forge(claims_for(credentials.subject_of(acme), **claims), {"kid": public["kid"], **header}, signer)

        status, answer = post(simulator, federation, assertion)
        assert status == (200 if reason is None else 401)
        assert simulator.exchanges()[-1]["reason"] == reason
        if reason is not None:
            assert answer["error"]["message"] == "Authentication failed"

    def test_takes_each_assertion_once(
        self, acme: Org, federated: Callable[..., Credential], federation: Federation, simulator: Any
    ) -> None:
        assertion = issuer.identity_token(subject=credentials.subject_of(acme), audience=AUDIENCE, claims={}).reveal()

        assert post(simulator, federation, assertion)[0] == 200
        assert post(simulator, federation, assertion)[0] == 401
        assert simulator.exchanges()[-1]["reason"] == "jti_reused"

    def test_keeps_no_assertion_in_its_log(self, federated: Callable[..., Credential], simulator: Any) -> None:
        exchange(federated())
        assert simulator.requests()[-1]["body"]["assertion"] == "***"


def forge(claims: dict[str, Any], header: dict[str, Any], private: str) -> str:
    whole = {name: value for name, value in {"alg": "ES256", "typ": "JWT", **header}.items() if value is not None}
    signed = ".".join(signing.base64url(json.dumps(part).encode()) for part in (whole, claims))
    return f"{signed}.{signing.base64url(signing.es256_sign(signed.encode(), private))}"


def post(simulator: Any, federation: Federation, assertion: str) -> tuple[int, Any]:
    import httpx2

    body = {
        "grant_type": GRANT,
        "assertion": assertion,
        "federation_rule_id": federation.rule_id,
        "organization_id": federation.organization_id,
        "service_account_id": federation.service_account_id,
    }
    answer = httpx2.post(simulator.url + EXCHANGE_PATH, json=body, trust_env=False)
    return answer.status_code, answer.json()


class TestTokens:
    def test_one_exchange_serves_all_calls(self, federated: Callable[..., Credential], simulator: Any) -> None:
        found = {tokens.get(federated()).reveal() for _ in range(20)}

        assert len(found) == 1
        assert exchanges(simulator) == 1

    def test_another_version_exchanges_anew(self, federated: Callable[..., Credential], simulator: Any) -> None:
        tokens.get(federated())
        tokens.get(federated(version=2))
        assert exchanges(simulator) == 2

    def test_a_token_that_ended_early_is_replaced_at_the_next_call(
        self, federated: Callable[..., Credential], simulator: Any
    ) -> None:
        old = tokens.get(federated())
        simulator.revoke_tokens()

        with pytest.raises(ProviderFailure) as caught:
            ADAPTER.count_input_tokens(PARAMS, credential=federated(), context_window_tokens=1000)
        assert (caught.value.diagnosis, caught.value.retryable) == ("FEDERATION_TOKEN_REJECTED", True)
        assert ADAPTER.count_input_tokens(PARAMS, credential=federated(), context_window_tokens=1000) > 0
        assert tokens.get(federated()).reveal() != old.reveal()

    def test_a_token_is_not_dropped_for_a_late_answer_about_the_one_before(
        self, federated: Callable[..., Credential], simulator: Any
    ) -> None:
        old = tokens.get(federated())
        assert rejection_of(federated(), old, status=401)
        new = tokens.get(federated())

        for _ in range(5):
            late = rejection_of(federated(), old, status=401)
            assert late is not None
            assert late.diagnosis == "FEDERATION_TOKEN_REJECTED"

        assert tokens.get(federated()) is new
        assert exchanges(simulator) == 2

    def test_of_an_account_that_rejects_each_are_asked_for_once_a_minute(
        self, federated: Callable[..., Credential], simulator: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock()
        monkeypatch.setattr(access_tokens, "time", clock)
        said = []
        for _ in range(12):
            try:
                failure = rejection_of(federated(), tokens.get(federated()), status=401)
            except ProviderFailure as fault:
                failure = fault
            assert failure is not None
            said.append((failure.diagnosis, failure.retryable, failure.status))
            clock.now += 0.1

        assert said == [
            *[("FEDERATION_TOKEN_REJECTED", True, 401)] * 2,
            *[("FEDERATION_TOKENS_REJECTED", False, 401)] * 10,
        ]
        assert exchanges(simulator) == 3
        clock.now += access_tokens.REJECTED_FOR_SECONDS
        tokens.get(federated())
        assert exchanges(simulator) == 4

    def test_that_end_early_now_and_then_are_replaced_each_time(
        self, federated: Callable[..., Credential], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock()
        monkeypatch.setattr(access_tokens, "time", clock)
        for _ in range(6):
            failure = rejection_of(federated(), tokens.get(federated()), status=401)
            assert failure is not None
            assert failure.retryable
            clock.now += access_tokens.REJECTED_WITHIN_SECONDS / 2

    def test_of_a_key_that_was_replaced_at_once_may_be_refused_for_a_while(
        self, acme: Org, federated: Callable[..., Credential], federation: Federation, simulator: Any
    ) -> None:
        trust(simulator, acme, federation)
        issuer.rotate(actor="test", at_once=True)  # The stand-in has the keys of before.

        with pytest.raises(ProviderFailure) as caught:
            exchange(federated())
        assert (caught.value.diagnosis, caught.value.retryable) == ("FEDERATION_KEY_NEW", True)
        IssuerKey.objects.update(created_at=database_now() - timedelta(minutes=16))
        with pytest.raises(ProviderFailure) as caught:
            exchange(federated())
        assert (caught.value.diagnosis, caught.value.retryable) == ("FEDERATION_REFUSED", False)

    def test_nothing_secret_is_in_a_failure(
        self, acme: Org, federated: Callable[..., Credential], federation: Federation, simulator: Any
    ) -> None:
        trust(simulator, acme, federation, archived=True)
        with pytest.raises(ProviderFailure) as caught:
            exchange(federated())

        assert "eyJ" not in f"{caught.value} {caught.value.fix} {caught.value.message}"
        assert caught.value.__cause__ is None

    @pytest.mark.django_db(transaction=True)
    def test_simultaneous_calls_share_one_exchange(self, federated: Callable[..., Credential], simulator: Any) -> None:
        together, found = Barrier(8), []

        def call() -> None:
            together.wait()
            try:
                found.append(tokens.get(federated()).reveal())
            finally:
                connection.close()

        threads = [Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert len(set(found)) == 1
        assert exchanges(simulator) == 1


PARAMS = {"model": "claude-opus-5-5", "messages": [{"role": "user", "content": "Hello"}]}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@given(
    seconds=st.integers(1, 4000),
    steps=st.lists(st.tuples(st.floats(0, 900), st.booleans(), st.integers(1, 4)), min_size=1, max_size=25),
)
def test_a_token_is_never_used_after_its_end_and_a_refusal_is_not_hammered(
    seconds: int, steps: list[tuple[float, bool, int]]
) -> None:
    clock = Clock()
    made: dict[str, float] = {}
    tried: list[float] = []
    fails = False

    def make(credential: Credential) -> AccessToken:
        tried.append(clock.now)
        if fails:
            raise make_failure(d.UNREACHABLE, sent=False)
        name = f"token-{len(tried)}"
        made[name] = clock.now + seconds
        return AccessToken.lasting(Secret(name), seconds=seconds, since=clock.now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(access_tokens, "time", clock)
        patch.setattr(access_tokens, "leave_database", lambda: None)
        held = AccessTokens(make)
        credential = Credential(
            id="int_1", version=1, secret=Secret(""), base_url="", federation=make_federation(), subject="s"
        )
        for wait, fails, calls in steps:
            clock.now += wait
            before = len(tried)
            for _ in range(calls):
                try:
                    found = held.get(credential).reveal()
                except ProviderFailure:
                    assert fails or clock.now - tried[-1] < access_tokens.FAILED_FOR_SECONDS
                else:
                    assert clock.now < made[found]
            assert len(tried) - before <= 1
    gaps = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert all(gap >= min(access_tokens.FAILED_FOR_SECONDS, seconds / 2) for gap in gaps)


def test_only_so_many_tokens_are_kept() -> None:
    held = AccessTokens(lambda _: AccessToken.lasting(Secret("t" * 20), seconds=600, since=time.monotonic()))
    federation = make_federation()
    for number in range(access_tokens.TOKENS_MAX + 50):
        held.get(Credential(id=f"int_{number}", version=1, secret=Secret(""), base_url="", federation=federation))
    assert len(held) == access_tokens.TOKENS_MAX


class Answering(ThreadingHTTPServer):
    """A token endpoint that answers as a test wants."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.asked = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.asked += 1
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(status)
                for name, value in {"content-length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def endpoint(settings: Any, federated: Callable[..., Credential]) -> Iterator[Callable[..., Answering]]:
    started: list[Answering] = []

    def answer(status: int, body: Any, **headers: str) -> Answering:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        started.append(Answering(status, text, headers))
        settings.RENSEI_ANTHROPIC_BASE_URL = started[-1].url
        return started[-1]

    yield answer
    for server in started:
        server.shutdown()
        server.server_close()


GOOD = {"access_token": "sk-ant-oat01-" + "x" * 20, "token_type": "Bearer", "expires_in": 600}


class TestAFailedExchange:
    CREDENTIAL = Credential(id="int_1", version=1, secret=Secret(""), base_url="https://api.example")

    def test_is_told_to_each_caller_by_an_exception_of_its_own(self) -> None:
        """A traceback would keep the request of one caller for as long as the failure is kept."""
        made = make_failure(d.NO_ANSWER, sent=False)

        def fail(_: Credential) -> AccessToken:
            raise made

        held = AccessTokens(fail)
        told = []
        for _ in range(3):
            with pytest.raises(ProviderFailure) as failure:
                held.obtain(self.CREDENTIAL)
            told.append(failure.value)

        assert len({id(each) for each in [made, *told]}) == 4
        assert {(each.code, each.diagnosis) for each in told} == {(made.code, made.diagnosis)}
        # The next exchange is made when the others have failed for some seconds.
        assert all(each.retry_after_seconds is not None and 0 < each.retry_after_seconds <= 5 for each in told)

    def test_leaves_a_token_that_is_still_usable(self) -> None:
        outcomes = iter([Secret("t" * 20)])

        def renew(_: Credential) -> AccessToken:
            secret = next(outcomes, None)
            if secret is None:
                raise make_failure(d.NO_ANSWER, sent=False)
            now = time.monotonic()
            return AccessToken(secret=secret, renew_at=now - 1, usable_until=now + 60)

        held = AccessTokens(renew)

        assert {held.obtain(self.CREDENTIAL).reveal() for _ in range(4)} == {"t" * 20}


class TestOtherAnswers:
    @pytest.mark.parametrize(
        ("status", "body", "diagnosis", "retryable"),
        [
            (200, {**GOOD, "access_token": ""}, "NOT_THE_API", False),
            (200, {**GOOD, "access_token": "two words here and more"}, "NOT_THE_API", False),
            (200, {**GOOD, "access_token": 5}, "NOT_THE_API", False),
            (200, {**GOOD, "expires_in": True}, "NOT_THE_API", False),
            (200, {**GOOD, "expires_in": -1}, "NOT_THE_API", False),
            (200, {**GOOD, "expires_in": "600"}, "NOT_THE_API", False),
            (200, {**GOOD, "token_type": "mac"}, "NOT_THE_API", False),
            (200, [], "NOT_THE_API", False),
            (200, b"<html>", "NOT_THE_API", False),
            (200, b'"' + b"x" * 70_000 + b'"', "NOT_THE_API", False),
            (404, b"", "NOT_THE_API", False),
            (401, b"", "FEDERATION_REFUSED", False),
            (403, {"error": "access_denied"}, "FEDERATION_REFUSED", False),
            (400, {"error": "invalid_grant", "error_description": "no"}, "FEDERATION_INVALID", False),
            (429, b"", "RATE_LIMITED", True),
            (500, b"", "SERVER_ERROR", True),
            (529, b"", "OVERLOADED", True),
        ],
    )
    def test_are_translated(
        self,
        federated: Callable[..., Credential],
        endpoint: Callable[..., Answering],
        status: int,
        body: Any,
        diagnosis: str,
        retryable: bool,
    ) -> None:
        server = endpoint(status, body)
        with pytest.raises(ProviderFailure) as caught:
            exchange(federated(base_url=server.url))

        failure = caught.value
        assert (failure.diagnosis, failure.retryable) == (diagnosis, retryable)
        assert not failure.sent
        assert not failure.maybe_billed

    def test_a_redirect_is_not_followed(
        self, federated: Callable[..., Credential], endpoint: Callable[..., Answering]
    ) -> None:
        elsewhere = endpoint(200, GOOD)
        here = endpoint(307, b"", location=elsewhere.url + EXCHANGE_PATH)
        with pytest.raises(ProviderFailure):
            exchange(federated(base_url=here.url))

        assert (here.asked, elsewhere.asked) == (1, 0)

    def test_an_address_that_the_operator_did_not_choose_is_guarded(
        self, federated: Callable[..., Credential], endpoint: Callable[..., Answering]
    ) -> None:
        inside = endpoint(200, GOOD)
        endpoint(200, GOOD)
        with pytest.raises(ProviderFailure) as caught:
            exchange(federated(base_url=inside.url))

        assert caught.value.diagnosis == "ADDRESS_REFUSED"
        assert inside.asked == 0

    def test_a_server_that_does_not_answer(self, settings: Any, federated: Callable[..., Credential]) -> None:
        settings.RENSEI_ANTHROPIC_BASE_URL = "http://127.0.0.1:9"
        verdict = ADAPTER.test_connection(credential=federated(base_url="http://127.0.0.1:9"))
        assert (verdict.code, verdict.conclusive) == ("UNREACHABLE", False)

    def test_without_the_vault_nothing_is_sent(
        self, settings: Any, tmp_path: Any, federated: Callable[..., Credential], simulator: Any
    ) -> None:
        from integrations.vault import data_keys

        before = exchanges(simulator)
        data_keys.unwrapped.clear()
        settings.RENSEI_VAULT_KEYRING = tmp_path / "absent.json"
        with pytest.raises(ProviderFailure) as caught:
            exchange(federated())

        assert caught.value.diagnosis == "IDENTITY_NOT_SIGNED"
        assert exchanges(simulator) == before
