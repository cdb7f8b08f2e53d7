"""What a request says of the proxies in front of the server is believed from the listed ones alone."""

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory

from rensei.core.middleware import forwarded

SAID = {
    "HTTP_X_FORWARDED_PROTO": "https",
    "HTTP_X_FORWARDED_FOR": "198.51.100.7",
    "HTTP_X_FORWARDED_HOST": "evil.example",
}


def seen(peer: str) -> HttpRequest:
    """Send a request through the middleware, and give it as a view sees it."""
    kept = []

    def view(request: HttpRequest) -> HttpResponse:
        kept.append(request)
        return HttpResponse()

    forwarded(view)(RequestFactory().get("/", REMOTE_ADDR=peer, **SAID))
    (request,) = kept
    return request


class TestAProxy:
    @pytest.fixture(autouse=True)
    def _listed(self, settings) -> None:
        settings.RENSEI_TRUSTED_PROXIES = ["10.0.0.1"]
        settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

    def test_that_is_listed_says_how_a_request_came(self) -> None:
        request = seen("10.0.0.1")

        assert request.is_secure()
        assert request.META["HTTP_X_FORWARDED_FOR"] == "198.51.100.7"

    @pytest.mark.parametrize("peer", ["10.0.0.1", "10.9.255.3", "fd00::7"])
    def test_that_is_in_a_listed_network_is_believed(self, settings, peer: str) -> None:
        settings.RENSEI_TRUSTED_PROXIES = ["10.0.0.1", "10.9.0.0/16", "fd00::/8"]

        assert seen(peer).is_secure()

    @pytest.mark.parametrize("peer", ["10.10.0.1", "fe80::1", "198.51.100.7", "", "proxy"])
    def test_that_is_in_no_listed_network_is_not_believed(self, settings, peer: str) -> None:
        settings.RENSEI_TRUSTED_PROXIES = ["10.0.0.1", "10.9.0.0/16", "fd00::/8", "no/network"]

        assert not seen(peer).is_secure()

    @pytest.mark.parametrize("peer", ["10.0.0.2", "198.51.100.7", ""])
    def test_that_is_not_listed_is_not_believed(self, peer: str) -> None:
        request = seen(peer)

        assert not request.is_secure()
        assert not request.META.keys() & SAID.keys()
