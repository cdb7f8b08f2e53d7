"""The form of pasted keys. The keys are made when the tests run; none is ever repeated in a message."""

import secrets

import pytest

from integrations.providers.anthropic.keys import check_key
from integrations.providers.base import KeyKindRefused
from rensei.core.errors import FieldError
from rensei.core.secret import Secret

TAIL = secrets.token_hex(24)


def _key(kind: str, tail: str = TAIL) -> str:
    return "-".join(["sk", "ant", kind, tail])


class TestCheckKey:
    @pytest.mark.parametrize(
        "text",
        [_key("api03"), _key("api04"), _key("api03", TAIL + "_-AA"), _key("api03", "x" * 400)],
        ids=["today's", "a later kind", "with marks", "long"],
    )
    def test_takes_an_api_key(self, text):
        check_key(Secret(text))

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            (_key("admin01"), "Admin key"),
            (_key("admin"), "Admin key"),
            (_key("oat01"), "OAuth access token"),
            (_key("ort01"), "OAuth refresh token"),
            (_key("api01"), "Claude Enterprise key"),
            ("rsk_live_" + TAIL, "Rensei token"),
            ("sk-proj-" + TAIL, "another provider"),
        ],
        ids=["admin01", "admin", "oat01", "ort01", "api01", "rensei", "another"],
    )
    @pytest.mark.parametrize("base_url", ["", "https://gateway.example.com"])
    def test_refuses_other_kinds_by_name(self, text, name, base_url):
        with pytest.raises(KeyKindRefused, match=name) as refused:
            check_key(Secret(text), base_url=base_url)

        assert refused.value.code == "KEY_KIND_REFUSED"
        assert TAIL not in refused.value.detail

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "empty"),
            ("   \n", "empty"),
            (_key("api03") + "\n", "space or line break"),
            (_key("api03") + "\r\n", "space or line break"),
            (" " + _key("api03"), "space or line break"),
            (_key("api03", TAIL[:10] + " " + TAIL[10:]), "space or line break"),
            (_key("api03", TAIL + "\u00a0"), "space or line break"),
            (_key("api03", TAIL + "\x00"), "characters that no key has"),
            (_key("api03", TAIL + "é"), "characters that no key has"),
            (_key("api03", TAIL + "\u200b"), "characters that no key has"),
            (_key("api03", "x" * 10_000_000), "longer than 512"),
            (_key("api03", "short"), "does not look like"),
            (TAIL, "does not look like"),
            ("x-api-key:" + _key("api03"), "does not look like"),
        ],
        ids=range(14),
    )
    def test_says_what_is_wrong_with_anything_else(self, text, reason):
        with pytest.raises(FieldError, match=reason) as refused:
            check_key(Secret(text))

        assert refused.value.errors[0]["pointer"] == "/apiKey"
        assert TAIL[:12] not in refused.value.detail

    def test_takes_any_form_for_a_gateway_of_the_organizations_own(self):
        check_key(Secret("virtual-" + TAIL), base_url="https://gateway.example.com")
