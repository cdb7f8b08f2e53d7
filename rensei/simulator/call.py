"""One authenticated call of the API: its connection, its account, its line in the log."""

from dataclasses import dataclass

from rensei.simulator.exchange import Exchange
from rensei.simulator.keys import Account
from rensei.simulator.request_log import LoggedRequest


@dataclass(frozen=True, kw_only=True)
class Call:
    exchange: Exchange
    account: Account
    logged: LoggedRequest
    headers: dict[str, str]
