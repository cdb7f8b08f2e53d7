"""
Short access tokens in the memory of one process, and nowhere else.

A token is renewed before its end, by one caller, while the others use the old one. Simultaneous callers without a
usable token wait for one exchange. After a failed exchange, the next one is tried a few seconds later.
"""

import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass

from integrations.providers.base import Credential, Federation, ProviderFailure
from rensei.core.limits import limit
from rensei.core.secret import Secret
from rensei.core.transactions import leave_database

# As in the `anthropic` SDK: renewed from two minutes before the end, and unusable in the last half minute.
RENEW_BEFORE_SECONDS = 120.0
UNUSABLE_BEFORE_SECONDS = 30.0
FAILED_FOR_SECONDS = 5.0
# So many tokens that are rejected within this time have not ended early: the account rejects each. Then there is one
# exchange in a minute.
REJECTED_MAX = 3
REJECTED_WITHIN_SECONDS = 300.0
REJECTED_FOR_SECONDS = 60.0
TOKENS_MAX = limit(
    1000,
    "tokens",
    what="Access tokens of federated credentials in memory, each process",
    told="the caller: the oldest one is dropped, and the next call with it waits for an exchange",
)


# The id and the version of a stored credential.
Version = tuple[str, int]
# What a token belongs to: a version of a credential, and all that was sent for it.
_Name = tuple[str, int, str, Federation | None, str, str]


@dataclass(slots=True)
class AccessToken:
    """A token, and until when it is used. From `renew_at` on, one caller renews it, who has until `renewing_until`."""

    secret: Secret
    renew_at: float
    usable_until: float
    renewing_until: float = 0.0

    @classmethod
    def lasting(cls, secret: Secret, *, seconds: float, since: float) -> "AccessToken":
        """:param since: the `time.monotonic()` before it was asked for"""
        # A token of one or two minutes is renewed half-way.
        return cls(
            secret=secret,
            renew_at=since + seconds - min(RENEW_BEFORE_SECONDS, seconds / 2),
            usable_until=since + seconds - min(UNUSABLE_BEFORE_SECONDS, seconds / 4),
        )


class AccessTokens:
    """The tokens of credentials. It is thread-safe."""

    def __init__(self, exchange: Callable[[Credential], AccessToken]) -> None:
        self._exchange = exchange
        self._lock = threading.Lock()
        self._tokens: dict[_Name, AccessToken] = {}
        self._under_way: dict[_Name, Future[AccessToken]] = {}
        self._failed: dict[_Name, tuple[float, ProviderFailure]] = {}
        self._rejected: dict[_Name, list[float]] = {}

    def at_hand(self, credential: Credential) -> Secret | None:
        """Return a usable token without waiting. None: the caller has to `obtain` one; of several, one renews."""
        name, now = _name(credential), time.monotonic()
        with self._lock:
            found = self._tokens.get(name)
            if found is None or now >= found.usable_until:
                return None
            if now >= found.renew_at and now >= found.renewing_until:
                found.renewing_until = now + FAILED_FOR_SECONDS
                return None
            return found.secret

    def get(self, credential: Credential) -> Secret:
        """:raises ProviderFailure: if there is no token and none is given"""
        return self.at_hand(credential) or self.obtain(credential)

    def obtain(self, credential: Credential) -> Secret:
        """
        Exchange for a token, or wait for the exchange that another caller makes.

        :raises ProviderFailure: if none is given, unless the old one is still usable
        """
        name = _name(credential)
        with self._lock:
            found, now = self._tokens.get(name), time.monotonic()
            if found is not None and now < found.renew_at:
                return found.secret  # Another caller has obtained it since this one looked.
            future = self._under_way.get(name)
            is_ours = future is None
            if future is None:
                until, failure = self._failed.get(name, (0.0, None))
                if failure is not None and now < until:
                    if found is not None and now < found.usable_until:
                        return found.secret
                    raise _again(failure, seconds=until - now)
                future = self._under_way[name] = Future()
        if is_ours:
            self._exchange_into(future, name, credential)
        else:
            leave_database()
        try:
            return future.result().secret
        except ProviderFailure as failure:
            with self._lock:
                found = self._tokens.get(name)
            if found is not None and time.monotonic() < found.usable_until:
                return found.secret
            raise _again(failure, seconds=FAILED_FOR_SECONDS) from None

    def reject(self, credential: Credential, secret: Secret, *, always: ProviderFailure) -> bool:
        """
        Drop a token that the provider does not accept, unless a newer one is in its place.

        :param always: the failure of calls without an exchange, where each token is rejected
        :return: whether each is
        """
        name, now = _name(credential), time.monotonic()
        with self._lock:
            found = self._tokens.get(name)
            if found is None or found.secret is not secret:
                return False
            del self._tokens[name]
            rejected = [at for at in self._rejected.pop(name, []) if now - at < REJECTED_WITHIN_SECONDS]
            while len(self._rejected) >= TOKENS_MAX:
                del self._rejected[next(iter(self._rejected))]
            self._rejected[name] = [*rejected, now][-REJECTED_MAX:]
            is_each = len(self._rejected[name]) == REJECTED_MAX
        if is_each:
            self._keep_failure(name, always, seconds=REJECTED_FOR_SECONDS)
        return is_each

    def versions(self) -> set[Version]:
        """List the versions of the credentials of which there is a token. Tokens that have ended are dropped."""
        now = time.monotonic()
        with self._lock:
            self._tokens = {each: held for each, held in self._tokens.items() if now < held.usable_until}
            return {name[:2] for name in self._tokens}

    def drop(self, versions: Collection[Version]) -> None:
        """Drop the tokens of these versions of credentials."""
        with self._lock:
            self._tokens = {each: held for each, held in self._tokens.items() if each[:2] not in versions}

    def clear(self) -> None:
        with self._lock:
            self._tokens.clear()
            self._failed.clear()
            self._rejected.clear()

    def __len__(self) -> int:
        return len(self._tokens)

    def _exchange_into(self, future: "Future[AccessToken]", name: _Name, credential: Credential) -> None:
        try:
            token = self._exchange(credential)
            self._keep(name, token)
            future.set_result(token)
        except BaseException as fault:  # noqa: BLE001 - each of the waiting callers raises it
            if isinstance(fault, ProviderFailure):
                self._keep_failure(name, fault)
            future.set_exception(fault)
        finally:
            with self._lock:
                del self._under_way[name]

    def _keep(self, name: _Name, token: AccessToken) -> None:
        now = time.monotonic()
        with self._lock:
            self._failed.pop(name, None)
            self._tokens.pop(name, None)
            self._tokens = {each: held for each, held in self._tokens.items() if now < held.usable_until}
            while len(self._tokens) >= TOKENS_MAX:
                del self._tokens[next(iter(self._tokens))]  # The oldest: a dict preserves its order.
            self._tokens[name] = token

    def _keep_failure(self, name: _Name, failure: ProviderFailure, *, seconds: float = FAILED_FOR_SECONDS) -> None:
        now = time.monotonic()
        with self._lock:
            self._failed = {each: held for each, held in self._failed.items() if now < held[0]}
            while len(self._failed) >= TOKENS_MAX:
                del self._failed[next(iter(self._failed))]
            # A copy that is never raised itself, so that it keeps nothing of the caller.
            self._failed[name] = (now + seconds, ProviderFailure(**vars(failure)))


def _again(failure: ProviderFailure, *, seconds: float) -> ProviderFailure:
    """
    Copy a failure, to be raised to one caller: a traceback would keep that caller's request while the failure is kept.

    :param seconds: the time after which the next exchange is made
    """
    copied = ProviderFailure(**vars(failure))
    if copied.retryable and copied.retry_after_seconds is None:
        copied.retry_after_seconds = seconds
    return copied


def _name(credential: Credential) -> _Name:
    """A token belongs to one version of a credential, and to all that was sent for it."""
    return (
        credential.id,
        credential.version,
        credential.subject,
        credential.federation,
        credential.workspace_id,
        credential.base_url,
    )
