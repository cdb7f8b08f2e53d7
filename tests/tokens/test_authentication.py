"""Whose address a request comes from."""

import pytest
from django.test import RequestFactory

from rensei.core.proxies import client_address


@pytest.fixture
def request_from():
    def make(peer, forwarded):
        return RequestFactory().get("/", REMOTE_ADDR=peer, HTTP_X_FORWARDED_FOR=forwarded)

    return make


class TestClientAddress:
    def test_believes_no_stranger(self, request_from):
        assert client_address(request_from("203.0.113.9", "198.51.100.1")) == "203.0.113.9"

    def test_believes_the_last_word_of_a_listed_proxy(self, request_from, settings):
        settings.RENSEI_TRUSTED_PROXIES = ["10.0.0.1"]

        assert client_address(request_from("10.0.0.1", "6.6.6.6, 198.51.100.1")) == "198.51.100.1"
        assert client_address(request_from("10.0.0.1", "2001:db8::1")) == "2001:db8::1"

    @pytest.mark.parametrize("forwarded", ["", "unknown", "198.51.100.1:80", "<script>", "1.2.3.4\0"])
    def test_takes_nothing_that_is_no_address(self, request_from, settings, forwarded):
        settings.RENSEI_TRUSTED_PROXIES = ["10.0.0.1"]

        assert client_address(request_from("10.0.0.1", forwarded)) == "10.0.0.1"
