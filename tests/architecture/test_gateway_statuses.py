"""Every code has its place at the gateway, in words of the gateway, and a row in its documentation."""

import re
from http import HTTPStatus

import pytest

from rensei.core.errors import RenseiError
from rensei.gateway.statuses import PLACES
from tests.architecture.modules import ROOT, modules

modules()
REFUSALS = sorted(RenseiError.__subclasses__(), key=lambda refusal: (refusal.code, refusal.__module__))
DOCUMENTED = re.findall(r"^\| `([A-Z_]+)` \| \d{3} \|", (ROOT / "docs/errors.md").read_text(), flags=re.MULTILINE)
# `| 403 `permission_error` | `CODE` `CODE` | … |`
GATEWAY_ROW = re.compile(r"^\| (\d{3}) `([a-z_]+)` \|([^|]*)\|", flags=re.MULTILINE)
# What the clients repeat by themselves: https://platform.claude.com/docs/en/cli-sdks-libraries/sdks/python and others.
REPEATED = {408, 409, 422, 429}
# A name of a field of REST, such as profileId. The Messages API has none of these.
CAMEL = re.compile(r"\b[a-z]+[A-Z]\w*")


class TestEveryCode:
    def test_has_a_place(self) -> None:
        assert {*DOCUMENTED, *(refusal.code for refusal in REFUSALS)} - PLACES.keys() == set()

    def test_of_a_place_exists(self) -> None:
        assert PLACES.keys() - {*DOCUMENTED} == set()

    def test_that_is_final_is_no_status_that_a_client_repeats(self) -> None:
        final = {code: place for code, place in PLACES.items() if not place.repeats and not place.period}
        faults = {"INTERNAL", "PROVIDER_STREAM_BROKEN"}

        assert [code for code, place in final.items() if place.status in REPEATED] == []
        assert {code for code, place in final.items() if place.status >= 500} == faults

    def test_that_passes_soon_is_a_status_that_clients_repeat(self) -> None:
        waits = {place.status for place in PLACES.values() if place.repeats}

        assert waits <= {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, 529}

    def test_is_documented_with_its_place(self) -> None:
        page = (ROOT / "docs/gateway.md").read_text()
        rows = {
            (code, int(status), kind)
            for status, kind, codes in GATEWAY_ROW.findall(page)
            for code in re.findall(r"`([A-Z_]+)`", codes)
        }

        assert rows == {(code, place.status, place.type) for code, place in PLACES.items()}


class TestEveryRefusal:
    @pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: f"{refusal.code}-{refusal.__name__}")
    def test_is_said_in_words_of_the_gateway(self, refusal: type[RenseiError]) -> None:
        assert CAMEL.findall(re.sub(r"\{\w+\}", "", refusal.gateway_message or refusal.message)) == []

    def test_that_has_words_of_its_own_takes_no_other_values(self) -> None:
        for refusal in REFUSALS:
            assert set(re.findall(r"\{(\w+)\}", refusal.gateway_message)) <= {
                *re.findall(r"\{(\w+)\}", refusal.message),
                "input_tokens",
                "maximum",
            }
