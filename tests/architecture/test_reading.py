"""What REST and the pages show is read by the functions of its package: one rule says who may read it."""

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


def reading_tables(those):
    return [module.__name__ for module in those if ".objects" in Path(module.__file__ or "").read_text()]


class TestViews:
    def test_read_no_table_themselves(self):
        assert len(views()) > 12
        assert reading_tables(views()) == []


class TestPages:
    def test_read_no_table_themselves(self):
        pages = [module for module in modules() if module.__name__.startswith("rensei.console.")]

        assert len(pages) > 40
        assert reading_tables(pages) == []
