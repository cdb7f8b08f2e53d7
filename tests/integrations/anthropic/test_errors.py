"""Everything that can go wrong at Anthropic, over real HTTP: one diagnosis and one sentence for each."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from integrations.providers.anthropic import ADAPTER, diagnoses
from integrations.providers.anthropic.diagnoses import Diagnosis
from integrations.providers.anthropic.errors import diagnose, failure_of_answer
from integrations.providers.base import ProviderFailure, Verdict
from rensei.core.secret import Secret

ALL = {value for value in vars(diagnoses).values() if isinstance(value, Diagnosis)}

# What a key is told to fail with: its diagnosis, the code of a run, whether the run tries again, and whether
# listing the models shows it as well.
ROWS = [
    ("revoked", "KEY_REJECTED", "PROVIDER_AUTH_FAILED", False, True),
    ("badtoken", "BEARER_REJECTED", "PROVIDER_AUTH_FAILED", False, True),
    ("oauthinvalid", "BEARER_REJECTED", "PROVIDER_AUTH_FAILED", False, True),
    ("oauthexpired", "OAUTH_EXPIRED", "PROVIDER_AUTH_FAILED", False, True),
    ("oauthrevoked", "OAUTH_EXPIRED", "PROVIDER_AUTH_FAILED", False, True),
    ("expired", "KEY_DISABLED", "PROVIDER_AUTH_FAILED", False, True),
    ("inactive", "KEY_DISABLED", "PROVIDER_AUTH_FAILED", False, True),
    ("adminkey", "ADMIN_KEY", "PROVIDER_AUTH_FAILED", False, True),
    ("nocredit", "NO_CREDIT", "PROVIDER_UNFUNDED", False, False),
    ("billing", "BILLING_PROBLEM", "PROVIDER_UNFUNDED", False, False),
    ("disabledorg", "ORGANIZATION_DISABLED", "PROVIDER_AUTH_FAILED", False, True),
    ("onhold", "ORGANIZATION_ON_HOLD", "PROVIDER_AUTH_FAILED", False, True),
    ("spendlimit", "SPEND_LIMIT_REACHED", "PROVIDER_UNFUNDED", False, False),
    ("workspacelimit", "WORKSPACE_LIMIT_REACHED", "PROVIDER_UNFUNDED", False, False),
    ("tiercap", "TIER_LIMIT_REACHED", "PROVIDER_UNFUNDED", False, False),
    ("contractcap", "CONTRACT_LIMIT_REACHED", "PROVIDER_UNFUNDED", False, False),
    ("ramplimit", "RAMP_LIMIT_EXCEEDED", "PROVIDER_RATE_LIMITED", True, False),
    ("linkedbilling", "LINKED_BILLING_UNAVAILABLE", "PROVIDER_UNFUNDED", False, False),
    ("linkedspend", "LINKED_LIMIT_REACHED", "PROVIDER_UNFUNDED", False, False),
    ("forbidden", "NO_PERMISSION", "PROVIDER_AUTH_FAILED", False, True),
    ("ipblocked", "IP_NOT_ALLOWED", "PROVIDER_AUTH_FAILED", False, True),
    ("oauthblocked", "OAUTH_NOT_ALLOWED", "PROVIDER_AUTH_FAILED", False, True),
    ("workspaceneeded", "WORKSPACE_REQUIRED", "PROVIDER_REJECTED", False, True),
    ("notfound", "MODEL_NOT_AVAILABLE", "PROVIDER_REJECTED", False, False),
    ("timeout", "SERVER_TIMEOUT", "PROVIDER_UNAVAILABLE", True, True),
    ("conflict", "CONFLICT", "PROVIDER_UNAVAILABLE", True, True),
    ("toolarge", "TOO_LARGE", "PROVIDER_REJECTED", False, True),
    ("unprocessable", "REQUEST_REJECTED", "PROVIDER_REJECTED", False, True),
    ("ratelimited", "RATE_LIMITED", "PROVIDER_RATE_LIMITED", True, True),
    ("ratelimitednowait", "RATE_LIMITED", "PROVIDER_RATE_LIMITED", True, True),
    ("clientclosed", "CLIENT_CLOSED", "PROVIDER_UNAVAILABLE", False, True),
    ("down", "SERVER_ERROR", "PROVIDER_UNAVAILABLE", True, True),
    ("unavailable", "SERVER_ERROR", "PROVIDER_UNAVAILABLE", True, True),
    ("gatewaytimeout", "SERVER_TIMEOUT", "PROVIDER_UNAVAILABLE", True, True),
    ("overloaded", "OVERLOADED", "PROVIDER_OVERLOADED", True, True),
]


def _fail(stream: Any) -> ProviderFailure:
    with pytest.raises(ProviderFailure) as raised:
        list(stream)
    return raised.value


def _everything_of(failure: ProviderFailure | Verdict) -> str:
    return repr(vars(failure)) + repr(getattr(failure, "args", ""))


def _assert_free_of(key: Secret, *texts: str) -> None:
    tail = key.reveal()[-40:]
    slices = [tail[start : start + 12] for start in range(len(tail) - 11)]
    for text in texts:
        assert not any(piece in text for piece in slices)


class TestStream:
    @pytest.mark.parametrize(("word", "name", "code", "retryable", "_"), ROWS, ids=[row[0] for row in ROWS])
    def test_tells_each_refusal_apart(self, open_stream, caplog, word, name, code, retryable, _):
        caplog.set_level(logging.DEBUG)
        stream = open_stream("Hello", word=word)

        failure = _fail(stream)

        assert (failure.diagnosis, failure.code, failure.retryable) == (name, code, retryable)
        assert failure.sent
        assert not failure.output_seen
        assert failure.usage is None
        assert re.fullmatch(r"req_[0-9a-f]+", failure.request_id)
        assert failure.message
        assert failure.fix
        _assert_free_of(stream._credential.secret, _everything_of(failure), caplog.text)

    def test_waits_as_long_as_anthropic_says(self, open_stream):
        assert _fail(open_stream("[[fault:429 retry-after=7]]")).retry_after_seconds == 7.0
        assert _fail(open_stream("[[fault:429]]")).retry_after_seconds is None

    @pytest.mark.parametrize("wait", ["soon", "-1", "nan", "1e99"])
    def test_does_not_believe_an_absurd_wait(self, open_stream, wait):
        assert _fail(open_stream(f"[[fault:429 retry-after={wait}]]")).retry_after_seconds is None

    def test_tells_a_model_that_needs_data_retention(self, open_stream):
        failure = _fail(open_stream("Hello", word="zdr", model_id="claude-fable-5-2"))

        assert failure.diagnosis == "DATA_RETENTION_REQUIRED"

    @pytest.mark.parametrize("model_id", ["claude-opus-4-1-20250514", "claude-mythos-5", "claude-3-5-haiku-20241022"])
    def test_tells_a_model_that_is_not_there(self, open_stream, model_id):
        failure = _fail(open_stream("Hello", model_id=model_id))

        assert failure.diagnosis == "MODEL_NOT_AVAILABLE"
        assert model_id in failure.message

    def test_tells_a_real_admin_key(self, credential):
        key = Secret("-".join(["sk", "ant", "admin01", "x" * 40]))

        failure = _fail(ADAPTER.stream({}, credential=credential(secret=key), attempt_id="a", timeout_seconds=10))

        assert failure.diagnosis == "ADMIN_KEY"

    def test_quotes_what_anthropic_says_of_a_bad_request(self, simulator, open_stream):
        failure = _fail(open_stream("Hello", max_tokens=10**7))
        simulator.reset()  # It was wrong on purpose.

        assert failure.diagnosis == "REQUEST_REJECTED"
        assert "max_tokens" in failure.message

    def test_sends_nothing_with_a_key_that_would_be_printed(self, simulator, credential):
        tail = "x" * 30
        broken = credential(secret=Secret("-".join(["sk", "ant", "api03", tail]) + "\n"))

        failure = _fail(ADAPTER.stream({}, credential=broken, attempt_id="a", timeout_seconds=10))

        assert failure.diagnosis == "KEY_REJECTED"
        assert not failure.sent
        assert tail not in _everything_of(failure)
        assert simulator.requests() == []


class TestTestConnection:
    @pytest.mark.parametrize(
        ("word", "name", "retryable"),
        [(row[0], row[1], row[3]) for row in ROWS if row[4]],
        ids=lambda value: str(value),
    )
    def test_gives_each_refusal_its_verdict(self, credential, caplog, word, name, retryable):
        caplog.set_level(logging.DEBUG)
        opened = credential(word)

        verdict = ADAPTER.test_connection(credential=opened)

        assert not verdict.ok
        assert verdict.code == name
        assert verdict.models == []
        assert ("Whether the key works is not known." in verdict.message) is retryable
        _assert_free_of(opened.secret, _everything_of(verdict), caplog.text)

    def test_accepts_a_key_that_works_and_lists_its_models(self, credential, caplog):
        caplog.set_level(logging.DEBUG)
        opened = credential()

        verdict = ADAPTER.test_connection(credential=opened)

        assert (verdict.ok, verdict.code) == (True, "OK")
        assert {"id": "claude-haiku-5-5", "displayName": "Claude Haiku 5.5"} in verdict.models
        _assert_free_of(opened.secret, _everything_of(verdict), caplog.text)

    def test_costs_nothing(self, simulator, credential):
        ADAPTER.test_connection(credential=credential())

        assert [(request["method"], request["path"]) for request in simulator.requests()] == [("GET", "/v1/models")]

    def test_sees_only_the_models_of_the_key(self, credential):
        verdict = ADAPTER.test_connection(credential=credential("only-haiku"))

        assert verdict.models
        assert all("haiku" in model["id"] for model in verdict.models)

    def test_says_when_no_model_is_open_to_the_key(self, credential):
        verdict = ADAPTER.test_connection(credential=credential("nomodels"))

        assert (verdict.ok, verdict.code) == (True, "NO_MODELS")

    def test_names_a_key_of_another_kind_without_a_call(self, simulator, credential):
        key = Secret("-".join(["sk", "ant", "oat01", "x" * 40]))

        verdict = ADAPTER.test_connection(credential=credential(secret=key))

        assert (verdict.ok, verdict.code) == (False, "KEY_KIND_REFUSED")
        assert simulator.requests() == []

    def test_says_when_nothing_listens(self, credential, settings):
        settings.RENSEI_OUTBOUND_ALLOWLIST = ["http://127.0.0.1:9"]

        verdict = ADAPTER.test_connection(credential=credential(base_url="http://127.0.0.1:9"))

        assert verdict.code == "UNREACHABLE"

    def test_says_when_the_address_may_not_be_called(self, credential):
        verdict = ADAPTER.test_connection(credential=credential(base_url="https://127.0.0.1"))

        assert verdict.code == "ADDRESS_REFUSED"

    def test_says_when_the_base_url_is_not_the_api(self, simulator, credential, settings):
        settings.RENSEI_OUTBOUND_ALLOWLIST = [simulator.url]

        verdict = ADAPTER.test_connection(credential=credential(base_url=simulator.url + "/__simulator"))

        assert verdict.code in ("NOT_THE_API", "MODEL_NOT_AVAILABLE")


class TestDiagnoses:
    def test_are_all_told_apart(self):
        assert len({diagnosis.name for diagnosis in ALL}) == len(ALL)
        assert len({diagnosis.message for diagnosis in ALL}) == len(ALL)
        assert len({diagnosis.message + diagnosis.fix for diagnosis in ALL}) == len(ALL)

    @pytest.mark.parametrize("diagnosis", sorted(ALL, key=lambda found: found.name), ids=lambda found: found.name)
    def test_are_sentences_with_a_next_step(self, diagnosis):
        assert diagnosis.message.endswith(".")
        assert diagnosis.fix
        assert diagnosis.code.startswith("PROVIDER_")

    def test_are_documented(self):
        text = (Path(__file__).parents[3] / "docs/providers/anthropic.md").read_text()

        for diagnosis in ALL:
            assert f"| `{diagnosis.name}` |" in text
            assert diagnosis.message in text


class TestDiagnose:
    def test_goes_by_the_code_before_the_status(self):
        error = {"type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}}

        assert diagnose(status=429, error=error) is diagnoses.TIER_LIMIT_REACHED

    def test_takes_an_unknown_code_for_its_bare_type(self):
        error = {"type": "rate_limit_error", "details": {"error_code": "brand_new"}}

        assert diagnose(status=429, error=error) is diagnoses.RATE_LIMITED

    @pytest.mark.parametrize("details", [None, [], "x", {"error_code": None}, {"error_code": 5}, {"error_code": []}])
    def test_survives_details_of_any_shape(self, details):
        assert diagnose(status=401, error={"details": details, "message": 5}) is diagnoses.KEY_REJECTED


class TestFailureOfAnswer:
    @pytest.mark.parametrize(
        ("status", "body", "name"),
        [
            (404, b"<html>", "NOT_THE_API"),
            (400, b"", "NOT_THE_API"),
            (418, b'{"error": "teapot"}', "NOT_THE_API"),
            (401, b"no", "KEY_REJECTED"),
            (502, b"<html>", "SERVER_ERROR"),
            (307, b"", "REDIRECTED"),
            (400, b"[" * 100_000, "NOT_THE_API"),
            (500, b'{"error": {"type": "api_error", "message": "x"}}', "SERVER_ERROR"),
        ],
    )
    def test_reads_whatever_answers(self, status, body, name):
        assert failure_of_answer(status=status, body=body, headers={}).diagnosis == name

    def test_shows_nothing_of_a_key_that_it_quotes(self):
        key = "-".join(["sk", "ant", "api03", "y" * 30])
        body = f'{{"error": {{"type": "invalid_request_error", "message": "Bad \\u001b[31m key {key}\\n ok"}}}}'

        failure = failure_of_answer(status=400, body=body.encode(), headers={})

        assert "y" * 12 not in failure.message
        assert failure.message.isprintable()
        assert failure.message.endswith("Bad [31m key *** ok")

    def test_keeps_a_long_quote_short(self):
        body = b'{"error": {"type": "invalid_request_error", "message": "' + b"no " * 10_000 + b'"}}'

        assert len(failure_of_answer(status=400, body=body, headers={}).message) < 400
