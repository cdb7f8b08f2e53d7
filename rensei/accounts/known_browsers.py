"""
Browsers in which a person has signed in before, identified by a signed cookie that names the account.

Tries to sign in to an account are counted separately for such a browser, so that wrong passwords from elsewhere do not
lock its person out. The cookie gives no access, and reveals nothing about the account.
"""

import secrets

from django.conf import settings
from django.core import signing
from django.http import HttpRequest, HttpResponseBase

from rensei.core.limits import limit
from rensei.core.secret import keyed_digests

SALT = "rensei.orgs.known-browser"
# Browsers keep cookies for 400 days at most: https://datatracker.ietf.org/doc/html/draft-ietf-httpbis-rfc6265bis
SECONDS = 400 * 24 * 3600
ACCOUNTS_MAX = limit(
    5,
    "accounts",
    what="Accounts of which a browser is remembered to have signed in",
    told="the caller: the sign-in to the one longest ago counts as one from an unknown browser",
)


def account_of(email: str) -> str:
    """Return an identifier of an account, existing or not, without its address."""
    return _accounts_of(email)[0]


def browser_of(request: HttpRequest, *, email: str) -> str | None:
    """Identify this browser, if its person has signed in to the account with it before."""
    browser, accounts = _read(request)
    return browser if set(_accounts_of(email)) & set(accounts) else None


def remember(request: HttpRequest, response: HttpResponseBase, *, email: str) -> None:
    """Store in the browser that its person has signed in."""
    browser, accounts = _read(request)
    ids = _accounts_of(email)
    kept = [ids[0], *(other for other in accounts if other not in ids)][:ACCOUNTS_MAX]
    response.set_cookie(
        _name(),
        signing.dumps([browser or secrets.token_hex(8), kept], salt=SALT),
        max_age=SECONDS,
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",
    )


def _accounts_of(email: str) -> list[str]:
    return [digest[:32] for digest in keyed_digests(email.strip().lower(), salt=SALT)]


def _read(request: HttpRequest) -> tuple[str | None, list[str]]:
    try:
        browser, accounts = signing.loads(request.COOKIES.get(_name(), ""), salt=SALT, max_age=SECONDS)
    except signing.BadSignature:
        return None, []
    return browser, accounts


def _name() -> str:
    return "__Host-known-browser" if settings.SESSION_COOKIE_SECURE else "known-browser"
