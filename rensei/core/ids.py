"""Public ids: a prefix that says what the thing is, and a ULID, which sorts by time."""

from functools import partial
from typing import Any

from django.db import models
from ulid import ULID


def new_id(prefix: str) -> str:
    """Make an id such as `run_01kaf3…`. It names a thing and is never a secret."""
    return f"{prefix}_{str(ULID()).lower()}"


class PublicIdField(models.CharField):  # type: ignore[type-arg]
    """A primary key that is also the id on the wire, such as `run_01kaf3…`."""

    def __init__(self, *, prefix: str, **options: Any) -> None:
        self.prefix = prefix
        options.setdefault("max_length", 40)
        options.setdefault("primary_key", True)
        options.setdefault("editable", False)
        options["default"] = partial(new_id, prefix)
        super().__init__(**options)

    def deconstruct(self) -> Any:
        name, path, args, options = super().deconstruct()
        del options["default"]
        return name, path, args, {**options, "prefix": self.prefix}
