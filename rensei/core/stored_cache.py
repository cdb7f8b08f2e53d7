"""
The cache in which the account libraries store what protects accounts: failed tries, and used one-time codes.

Django's caches drop entries when they are full, and requests for other entries can fill them. This one drops
nothing early, and is shared by all processes.

https://docs.djangoproject.com/en/5.2/topics/cache/#using-a-custom-cache-backend
"""

import json
import math
import time
from typing import Any

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from django.db import connection

from rensei.core.models import StoredValue

SET = """
    INSERT INTO core_storedvalue (key, value, expires_at) VALUES (%s, %s, %s)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at
"""
ADD = SET + " WHERE core_storedvalue.expires_at <= %s"


class StoredCache(BaseCache):
    """A cache whose values are JSON."""

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)

    def add(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return self._write(ADD, key, value, timeout, version, time.time())

    def set(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        self._write(SET, key, value, timeout, version)

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        live = StoredValue.objects.filter(key=self.make_and_validate_key(key, version), expires_at__gt=time.time())
        value = live.values_list("value", flat=True).first()
        return default if value is None else json.loads(value)

    def touch(self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        live = StoredValue.objects.filter(key=self.make_and_validate_key(key, version), expires_at__gt=time.time())
        return bool(live.update(expires_at=self._expires_at(timeout)))

    def delete(self, key: str, version: int | None = None) -> bool:
        count, _ = StoredValue.objects.filter(key=self.make_and_validate_key(key, version)).delete()
        return bool(count)

    def clear(self) -> None:
        StoredValue.objects.all().delete()

    def _write(self, sql: str, key: str, value: Any, timeout: Any, version: int | None, *more: float) -> bool:
        values: list[Any] = [
            self.make_and_validate_key(key, version),
            json.dumps(value),
            self._expires_at(timeout),
            *more,
        ]
        with connection.cursor() as cursor:
            cursor.execute(sql, values)
            return bool(cursor.rowcount)

    def _expires_at(self, timeout: Any) -> float:
        until = self.get_backend_timeout(timeout)
        return math.inf if until is None else float(until)
