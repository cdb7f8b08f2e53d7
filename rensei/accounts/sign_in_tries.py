"""
How often a password may be tried: guessing is slow, and no person can lock another one out.

Tries are counted by account and address together, and separately for a browser that has signed in to the account.
An account that is tried from many addresses leaves each of them fewer tries, but never none. All of this is the same
for an account that does not exist.
"""

from dataclasses import dataclass
from functools import partial

from django.conf import settings
from django.http import HttpRequest
from django.template.loader import render_to_string

from rensei.accounts.known_browsers import account_of, browser_of
from rensei.core import mails
from rensei.core.later import later
from rensei.core.limits import limit
from rensei.core.networks import counted_address
from rensei.core.proxies import client_address
from rensei.core.rates import rates
from rensei.orgs.models import User

TRIES_MAX = limit(
    5,
    "tries in 5 minutes",
    what="Passwords tried for an account from one address, or from one browser that has signed in to it before",
    told="the caller: the sign-in page says so, and the person by mail, once a day",
)
TRIES_SECONDS = 5 * 60
EVERYWHERE_MAX = limit(
    50,
    "tries in an hour",
    what="Passwords tried for an account from all addresses, before each new one has 1 try in 5 minutes",
    told="the caller: the sign-in page says so, and the person by mail, once a day",
)
EVERYWHERE_SECONDS = 3600
MAIL_SECONDS = 24 * 3600
RESET_MAILS_MAX = limit(
    5,
    "mails in 10 minutes",
    what="Links to reset the password of an account",
    told="the caller: the page answers alike, and the links that were mailed stay good",
)
RESET_MAILS_SECONDS = 10 * 60


@dataclass(frozen=True, kw_only=True)
class Try:
    """One try, as it was counted."""

    is_allowed: bool
    keys: tuple[str, ...]


def begin(request: HttpRequest, *, email: str) -> Try:
    """Count a try before the password is checked, so that simultaneous tries are all counted."""
    account = account_of(email)
    here, everywhere = _keys(request, email)
    tries = rates.count_exactly(here, seconds=TRIES_SECONDS).total
    if tries <= TRIES_MAX:
        all_tries = rates.count_exactly(everywhere, seconds=EVERYWHERE_SECONDS).total
        is_known = browser_of(request, email=email) is not None
        if tries == 1 or is_known or all_tries <= EVERYWHERE_MAX:
            return Try(is_allowed=True, keys=(here, everywhere))
    if rates.count_exactly(f"sign-in-told:{account}", seconds=MAIL_SECONDS).total == 1:
        # The account is looked up after the answer, whose time is then the same with or without one.
        later.do(partial(_tell, email=email), what="mail of wrong passwords")
    return Try(is_allowed=False, keys=())


def take_back(tried: Try) -> None:
    """Remove a try from the count, because its password was right."""
    for key in tried.keys:
        rates.count_exactly(key, seconds=TRIES_SECONDS, by=-1)


def forgive(request: HttpRequest, *, email: str) -> None:
    """Reset the count for a person who has set a new password, at the address where it was set."""
    here, _ = _keys(request, email)
    rates.clear(here)


def may_mail_reset(email: str) -> bool:
    """Count a mail with a link, and return whether it may be sent."""
    window = rates.count_exactly(f"reset-mail:{account_of(email)}", seconds=RESET_MAILS_SECONDS)
    return window.total <= RESET_MAILS_MAX


def _keys(request: HttpRequest, email: str) -> tuple[str, str]:
    account, browser = account_of(email), browser_of(request, email=email)
    source = f"browser:{browser}" if browser else counted_address(client_address(request))
    return f"sign-in-try:{account}:{source}", f"sign-in-tries:{account}"


def _tell(*, email: str) -> None:
    person = User.objects.filter(email=email, is_active=True).first()
    if person is None:
        return
    link = f"{settings.PUBLIC_URL}/accounts/password/reset/"
    body = render_to_string("orgs/mail/wrong_passwords.txt", {"person": person, "link": link})
    mails.send("Several wrong passwords were given for your Rensei account", body, [person.email])
