"""Authentication of callers: the token of a request, and the access that it gives."""

from collections.abc import Mapping
from concurrent.futures import Executor
from functools import partial

from rensei.core.problems import NotAuthenticated
from rensei.core.secret import token_digest
from rensei.dispatch import run_tokens
from rensei.dispatch.run_tokens import RunToken
from rensei.gateway.short_cache import ChangeWatch, ShortLivedCache
from rensei.orgs.access import Access
from rensei.orgs.scopes import GATEWAY
from rensei.tokens import look_up
from rensei.tokens.unknown_tokens import unknown_run_tokens, unknown_tokens

PREFIXES = (look_up.TOKEN_PREFIX, run_tokens.TOKEN_PREFIX)


class Callers:
    """The cached callers, so that few calls wait for the database."""

    def __init__(self, executor: Executor, watch: ChangeWatch) -> None:
        self._found: ShortLivedCache[Access | None] = ShortLivedCache(
            executor,
            watch,
            # The end of a run, and with it of its token, is no change that the watch notices.
            org_of=lambda _, access: access.org.id if access and not isinstance(access.token, RunToken) else None,
        )

    async def authenticate(self, headers: Mapping[str, str], address: str | None) -> Access:
        """
        Authenticate the API token, or the token of a run, in one of the two headers.

        :raises NotAuthenticated: if there is no valid token
        :raises RateLimited: if this address sent too many unknown tokens
        :raises ScopeMissing: if the token lacks the gateway scope
        :raises NetworkNotAllowed: if the token may not be used from this address
        """
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", "").strip(), bearer.strip() if scheme.lower() == "bearer" else ""]
        token = given[0] if given[0].startswith(PREFIXES) else given[1]
        if not token.startswith(PREFIXES):
            raise NotAuthenticated
        digest = token_digest(token)
        access = self._found.kept(digest) or await self._look_up(token, digest, address)
        # Checked for each request, because a cached access may end meanwhile, and serves callers at several addresses.
        if access.has_ended():
            raise NotAuthenticated
        access.require_scope(GATEWAY, address=address)
        return access

    async def _look_up(self, token: str, digest: str, address: str | None) -> Access:
        is_of_run = token.startswith(run_tokens.TOKEN_PREFIX)
        unknown, load = (unknown_run_tokens, run_tokens.for_token) if is_of_run else (unknown_tokens, look_up.for_token)
        unknown.require_look_up(digest, address=address)
        access = await self._found.get(digest, partial(load, token=token, address=address))
        unknown.note(digest, found=access is not None, address=address)
        if access is None:
            raise NotAuthenticated
        return access
