"""The classes in which a call's tokens are counted and priced. Every list of them is derived from this one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenClass:
    """`count` is a field of `Usage` and of a ledger line, `price` one of `UnitPrices`. Searches have a price each."""

    label: str
    count: str
    price: str

    @property
    def column(self) -> str:
        """The column of its unit price in the ledger."""
        return f"{self.price}_picodollars"

    @property
    def in_catalog(self) -> str:
        """The field of its price in the catalog. Of tokens, in microdollars for a million."""
        return f"{self.price}_{'picodollars' if self.price == 'web_search' else 'microdollars'}"


WEB_SEARCHES = TokenClass("Web searches", "web_search_requests", "web_search")
OF_TOKENS = (
    TokenClass("Input", "input_tokens", "input"),
    TokenClass("Output", "output_tokens", "output"),
    TokenClass("Cache read", "cache_read_tokens", "cache_read"),
    TokenClass("Cache write, 5 minutes", "cache_write_5m_tokens", "cache_write_5m"),
    TokenClass("Cache write, 1 hour", "cache_write_1h_tokens", "cache_write_1h"),
)
# In the order of the ledger's columns, over which its lines are sealed.
TOKEN_CLASSES = (*OF_TOKENS, WEB_SEARCHES)
COUNTS = tuple(one.count for one in TOKEN_CLASSES)
PRICE_COLUMNS = tuple(one.column for one in TOKEN_CLASSES)
