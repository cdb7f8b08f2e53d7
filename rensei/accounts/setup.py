"""The first account of a new server, created by a link that works once."""

import hashlib
import hmac
import secrets
from pathlib import Path

from django.conf import settings

from rensei.accounts.people import insert_person
from rensei.core import private_files
from rensei.core.errors import NotFound
from rensei.core.secret import Secret
from rensei.core.transactions import durable
from rensei.orgs.models import Org, User
from rensei.orgs.services import insert_org


def link() -> str | None:
    """Make a new link to create the first account, which ends every earlier one. None if an account exists."""
    if not is_open():
        return None
    code = secrets.token_urlsafe(32)
    private_files.replace(_code_file(), _digest(code))
    return f"{settings.PUBLIC_URL}/setup?code={code}"


def is_open() -> bool:
    """Check whether this server still has no account."""
    return not User.objects.exists()


def is_right(code: str) -> bool:
    """Compare a code with that of the last link, in a time that does not reveal how much of it is right."""
    try:
        stored = _code_file().read_text()
    except FileNotFoundError:
        return False
    return hmac.compare_digest(stored, _digest(code))


def finish(
    *, code: str, name: str, email: str, password: Secret, org_name: str, org_slug: str, address: str | None = None
) -> tuple[User, Org]:
    """
    Create the operator, who is also the first organization's owner. Afterwards the link no longer works.

    :raises NotFound: if the code is wrong or was used, or an account exists
    """
    with durable():
        if not is_open() or not is_right(code):
            raise NotFound
        user = insert_person(email=email, password=password, name=name, operator=True)
        org = insert_org(name=org_name, slug=org_slug, owner=user, address=address)
        try:
            # The file can be deleted only once, so of two simultaneous requests one is rolled back.
            _code_file().unlink()
        except FileNotFoundError as fault:
            raise NotFound from fault
    return user, org


def _code_file() -> Path:
    return Path(settings.DATA_DIR) / "setup_code"


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()
