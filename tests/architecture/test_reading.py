"""What REST answers is read by the query sets of its package, as pages and commands read it, and not by its views."""

import inspect
from pathlib import Path

from rest_framework.views import APIView

from tests.architecture.modules import modules


def views():
    """The modules that define REST views."""
    return [
        module
        for module in modules()
        if any(
            inspect.isclass(one) and issubclass(one, APIView) and one.__module__ == module.__name__
            for one in vars(module).values()
        )
    ]


class TestViews:
    def test_read_no_table_themselves(self):
        assert len(views()) > 12
        assert [module.__name__ for module in views() if ".objects" in Path(module.__file__ or "").read_text()] == []
