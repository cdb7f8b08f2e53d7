"""A person's sessions, and how to end them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from allauth.usersessions.models import UserSession
from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.models import Session
from django.core.cache import caches
from django.db.models import Exists, OuterRef
from django.http import HttpRequest, HttpResponseBase
from django.utils import timezone

from rensei.audit.record import record_person
from rensei.core.errors import NotFound, RateLimited
from rensei.core.limits import limit
from rensei.core.problems import NotAuthenticated
from rensei.core.proxies import client_address
from rensei.core.transactions import durable
from rensei.orgs.models import User
from rensei.tokens.unknown_tokens import unknown_tokens

NOTED_EVERY_SECONDS = 300
# A person signs in again after so long without use, and in any case after `AGE_MAX`. `note_sessions` checks both.
UNUSED_MAX = timedelta(days=7)
AGE_MAX = timedelta(days=14)
# Of a browser in which no person is signed in, such as one that followed a link: anyone can make such sessions.
UNKNOWN_SECONDS = limit(
    3_600,
    "seconds without use",
    what="Session of a browser in which no person is signed in",
    told="the caller: the sign-in or the invitation is begun again",
)
FORGOTTEN_AT_ONCE = 1_000
# Marks of a browser in its `User-Agent`, the more specific first: Chrome also says Safari, and Edge says Chrome.
BROWSERS = {
    "Edg": "Edge",
    "OPR/": "Opera",
    "Firefox/": "Firefox",
    "FxiOS/": "Firefox",
    "CriOS/": "Chrome",
    "Chrome/": "Chrome",
    "Safari/": "Safari",
}
SYSTEMS = {
    "iPhone": "iPhone",
    "iPad": "iPad",
    "Android": "Android",
    "CrOS": "ChromeOS",
    "Windows": "Windows",
    "Mac OS X": "macOS",
    "Linux": "Linux",
}


@dataclass(frozen=True, kw_only=True)
class SignedIn:
    """One browser in which a person is signed in."""

    id: int
    device: str
    address: str
    since: datetime
    last_seen_at: datetime
    here: bool


def note_sessions(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """
    Record the last use of each session, every five minutes: more often would write on every page.

    A session that has lasted too long ends. A sign-out also clears what scripts have stored in the browser.
    """

    def middleware(request: HttpRequest) -> HttpResponseBase:
        if request.session.session_key:
            _note(request)
        response = get_response(request)
        return _cleared(request, response)

    return middleware


def signed_in(request: HttpRequest, user: User) -> list[SignedIn]:
    """List the person's sessions, this one first, then the most recently used."""
    stored = UserSession.objects.filter(user=user)
    alive = set(
        Session.objects.filter(
            session_key__in=stored.values("session_key"), expire_date__gt=timezone.now()
        ).values_list("session_key", flat=True)
    )
    found = [
        SignedIn(
            id=session.pk,
            device=device_of(session.user_agent),
            address=session.ip,
            since=session.created_at,
            last_seen_at=session.last_seen_at,
            here=session.session_key == request.session.session_key,
        )
        for session in stored.order_by("-last_seen_at")
        if session.session_key in alive
    ]
    return sorted(found, key=lambda session: not session.here)


def end_session(request: HttpRequest, user: User, *, session_id: int) -> None:
    """
    Sign the person out in another browser.

    :raises NotFound: if the session is not theirs, has ended, or is the current one
    """
    other = _others(request, user).filter(pk=session_id).first()
    if other is None:
        raise NotFound
    _end([other], user=user, address=client_address(request))


def end_other_sessions(request: HttpRequest, user: User) -> int:
    """Sign the person out in all other browsers, and return their number."""
    others = list(_others(request, user))
    _end(others, user=user, address=client_address(request))
    return len(others)


def digest_of(session_key: str | None) -> str:
    """Return what is remembered of a session's key, to look up an unknown one only once."""
    return hashlib.sha256(f"session:{session_key}".encode()).hexdigest()


def keep_for_a_while(request: HttpRequest) -> None:
    """Let the session end soon unless a person signs in."""
    if not request.user.is_authenticated:
        request.session.set_expiry(UNKNOWN_SECONDS)


def forget_ended() -> None:
    """Delete the sessions that have ended, and what is known of their browsers."""
    ended = Session.objects.filter(expire_date__lt=timezone.now()).order_by("expire_date")
    while keys := list(ended.values_list("pk", flat=True)[:FORGOTTEN_AT_ONCE]):
        Session.objects.filter(pk__in=keys, expire_date__lt=timezone.now()).delete()
    alive = Session.objects.filter(session_key=OuterRef("session_key"))
    lost = UserSession.objects.filter(~Exists(alive)).order_by("pk")
    while ids := list(lost.values_list("pk", flat=True)[:FORGOTTEN_AT_ONCE]):
        UserSession.objects.filter(pk__in=ids).delete()


def device_of(user_agent: str) -> str:
    """Describe a browser and its system in words: `Firefox on Linux`."""
    browser = next((name for mark, name in BROWSERS.items() if mark in user_agent), None)
    system = next((name for mark, name in SYSTEMS.items() if mark in user_agent), None)
    if browser and system:
        return f"{browser} on {system}"
    return browser or system or "Unknown device"


def _note(request: HttpRequest) -> None:
    if not _look_up(request) or not request.user.is_authenticated:
        return
    digest = hashlib.sha256(f"{request.session.session_key}:{request.user.pk}".encode()).hexdigest()
    if caches["process"].add(f"sessions:noted:{digest}", True, timeout=NOTED_EVERY_SECONDS):
        if _is_over(request):
            # An unfinished form is kept in the browser, for the person to continue.
            request.session.flush()
            request.user = AnonymousUser()
        else:
            UserSession.objects.create_from_request(request)


def _look_up(request: HttpRequest) -> bool:
    """
    Look up the cookie's session under the limits of tokens: an unknown one costs one query, and counts towards its
    address's limit for both. Without a look-up the request has no session, and its cookie is not deleted.
    """
    digest = digest_of(request.session.session_key)
    address = client_address(request)
    try:
        unknown_tokens.require_look_up(digest, address=address)
    except (NotAuthenticated, RateLimited):
        request.session = type(request.session)()
        request.COOKIES.pop(settings.SESSION_COOKIE_NAME, None)
        return False
    # Reading loads the session: a key that is not stored is dropped.
    request.session.get("")
    unknown_tokens.note(digest, found=request.session.session_key is not None, address=address)
    return True


def _is_over(request: HttpRequest) -> bool:
    stored = UserSession.objects.filter(user=request.user, session_key=request.session.session_key).first()
    now = timezone.now()
    return stored is not None and (now - stored.created_at >= AGE_MAX or now - stored.last_seen_at >= UNUSED_MAX)


def _cleared(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    """Add `Clear-Site-Data` after a sign-out. https://www.w3.org/TR/clear-site-data/#header"""
    if getattr(request, "signed_out", False):
        response["Clear-Site-Data"] = '"storage"'
    return response


def _others(request: HttpRequest, user: User) -> Any:
    return UserSession.objects.filter(user=user).exclude(session_key=request.session.session_key)


def _end(sessions: list[UserSession], *, user: User, address: str | None) -> None:
    if not sessions:
        return
    with durable():
        for session in sessions:
            session.end()
        record_person(user, "sessions.ended", address=address, devices=[device_of(one.user_agent) for one in sessions])
