"""Who calls: the token that a request holds, and what it opens."""

from collections.abc import Mapping
from concurrent.futures import Executor
from functools import partial

from rensei.core.api import NotAuthenticated
from rensei.core.secret import token_digest
from rensei.gateway.short_cache import ShortLivedCache
from rensei.orgs.access import Access
from rensei.orgs.scopes import GATEWAY
from rensei.tokens.look_up import TOKEN_PREFIX, for_token
from rensei.tokens.unknown_tokens import unknown_tokens


class Callers:
    """The callers of the last moments, so that few calls wait for the database."""

    def __init__(self, executor: Executor) -> None:
        self._found: ShortLivedCache[Access | None] = ShortLivedCache(executor)

    async def authenticate(self, headers: Mapping[str, str], address: str | None) -> Access:
        """
        Find whose token one of the two headers holds.

        :raises NotAuthenticated: unless it is one of ours, and good
        :raises RateLimited: if too many that are not ours came from this address
        :raises ScopeMissing: if it was not made for the gateway
        :raises NetworkNotAllowed: if it is not for use from this address
        """
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", ""), bearer if scheme.lower() == "bearer" else ""]
        token = next((found for each in given if (found := each.strip()).startswith(TOKEN_PREFIX)), None)
        if token is None:
            raise NotAuthenticated
        digest = token_digest(token)
        unknown_tokens.require_look_up(digest, address=address)
        access = await self._found.get(digest, partial(for_token, token=token, address=address))
        unknown_tokens.note(digest, found=access is not None, address=address)
        if access is None:
            raise NotAuthenticated
        # What is kept serves callers at several addresses.
        access.require_scope(GATEWAY, address=address)
        return access
