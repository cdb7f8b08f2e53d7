"""Who sends a large body, looked up before more than a little of it is received."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.http import parse_cookie

from rensei.accounts.sessions import digest_of
from rensei.core.problems import NotAuthenticated
from rensei.core.proxies import address_of
from rensei.orgs.models import Membership
from rensei.tokens.authentication import access_of
from rensei.tokens.unknown_tokens import unknown_tokens


def sender_of(scope: Mapping[str, Any]) -> str:
    """
    Find the organization of an API token, or of a person's session. The view authenticates them again, and judges.

    :raises NotAuthenticated: if neither is known
    :raises RateLimited: if the address has sent too many that are not
    """
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.lower().decode("latin-1"), []).append(value.decode("latin-1"))
    address = address_of(scope, forwarded=",".join(headers.get("x-forwarded-for", [])))
    access = access_of(headers.get("authorization", [""])[0], address=address)
    if access is not None:
        return str(access.org.id)
    cookies = parse_cookie("; ".join(headers.get("cookie", [])))
    return _of_session(cookies.get(settings.SESSION_COOKIE_NAME, ""), address)


def _of_session(key: str, address: str | None) -> str:
    """Return the organization that a person has been in longest, so that its members have one share of it together."""
    digest = digest_of(key)
    unknown_tokens.require_look_up(digest, address=address)
    session = import_module(settings.SESSION_ENGINE).SessionStore(key)
    user_id = session.get(SESSION_KEY)
    # Reading has loaded the session: a key that is not stored is dropped.
    unknown_tokens.note(digest, found=session.session_key is not None, address=address)
    if user_id is None:
        raise NotAuthenticated
    org_id = Membership.objects.live().filter(user_id=user_id).order_by("id").values_list("org_id", flat=True).first()
    return str(org_id or f"user {user_id}")
