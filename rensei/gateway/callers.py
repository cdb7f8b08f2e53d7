"""Authentication of callers: the API token of a request, and the access that it gives."""

from collections.abc import Mapping
from concurrent.futures import Executor
from functools import partial

from rensei.core.api import NotAuthenticated
from rensei.core.secret import token_digest
from rensei.gateway.short_cache import ChangeWatch, ShortLivedCache
from rensei.orgs.access import Access
from rensei.orgs.scopes import GATEWAY
from rensei.tokens.look_up import TOKEN_PREFIX, for_token
from rensei.tokens.unknown_tokens import unknown_tokens


class Callers:
    """The cached callers, so that few calls wait for the database."""

    def __init__(self, executor: Executor, watch: ChangeWatch) -> None:
        self._found: ShortLivedCache[Access | None] = ShortLivedCache(
            executor, watch, org_of=lambda _, access: access.org.id if access else None
        )

    async def authenticate(self, headers: Mapping[str, str], address: str | None) -> Access:
        """
        Authenticate the API token in one of the two headers.

        :raises NotAuthenticated: if there is no valid API token
        :raises RateLimited: if this address sent too many unknown tokens
        :raises ScopeMissing: if the token lacks the gateway scope
        :raises NetworkNotAllowed: if the token may not be used from this address
        """
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", "").strip(), bearer.strip() if scheme.lower() == "bearer" else ""]
        token = given[0] if given[0].startswith(TOKEN_PREFIX) else given[1]
        if not token.startswith(TOKEN_PREFIX):
            raise NotAuthenticated
        digest = token_digest(token)
        access = self._found.kept(digest) or await self._look_up(token, digest, address)
        # Checked for each request, because a cached access may end meanwhile, and serves callers at several addresses.
        if access.has_ended():
            raise NotAuthenticated
        access.require_scope(GATEWAY, address=address)
        return access

    async def _look_up(self, token: str, digest: str, address: str | None) -> Access:
        unknown_tokens.require_look_up(digest, address=address)
        access = await self._found.get(digest, partial(for_token, token=token, address=address))
        unknown_tokens.note(digest, found=access is not None, address=address)
        if access is None:
            raise NotAuthenticated
        return access
