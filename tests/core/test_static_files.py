"""Static files, asked for over ASGI as the real server does. Warnings are errors here."""

import asyncio
import os

import pytest
from django.core.asgi import get_asgi_application

from rensei import static_files

CONTENT = b"body { margin: 0 }\n" * 1000


@pytest.fixture
def application(settings, tmp_path):
    settings.STATIC_ROOT = tmp_path
    (tmp_path / "page.css").write_bytes(CONTENT)
    return get_asgi_application()


def ask(application, path, *, method="GET", headers=()):
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": [*headers]}
    scope["headers"].append((b"host", b"localhost"))
    sent, asked = [], []

    async def receive():
        if asked:
            await asyncio.Event().wait()
        asked.append(True)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(application(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), body


class TestStaticFiles:
    def test_are_sent_whole(self, application):
        status, headers, body = ask(application, "/static/page.css")

        assert (status, body) == (200, CONTENT)
        assert headers[b"Content-Type"].startswith(b"text/css")

    def test_are_sent_in_part_where_a_range_is_asked_for(self, application):
        status, headers, body = ask(application, "/static/page.css", headers=[(b"range", b"bytes=5-9")])

        assert (status, body) == (206, CONTENT[5:10])
        assert headers[b"Content-Length"] == b"5"

    def test_are_not_sent_where_only_their_headers_are_asked_for(self, application):
        status, headers, body = ask(application, "/static/page.css", method="HEAD")

        assert (status, body) == (200, b"")
        assert headers[b"Content-Length"] == str(len(CONTENT)).encode()


class TestCollect:
    @pytest.fixture
    def source(self, settings, tmp_path):
        settings.STATIC_ROOT = tmp_path / "collected"
        settings.STATICFILES_DIRS = [tmp_path / "sources"]
        settings.STATICFILES_FINDERS = ["django.contrib.staticfiles.finders.FileSystemFinder"]
        settings.STATICFILES_DIRS[0].mkdir()
        source = settings.STATICFILES_DIRS[0] / "page.css"
        source.write_bytes(CONTENT)
        return source

    def test_does_nothing_where_only_the_times_of_the_files_are_others(self, source):
        assert static_files.collect()

        # As the layers of an image do, which hold whole seconds.
        os.utime(source, (1_000_000_000, 1_000_000_000))

        assert not static_files.collect()

    def test_collects_what_has_changed_in_the_same_second_and_length(self, source, settings):
        assert static_files.collect()
        before = source.stat()

        source.write_bytes(CONTENT.swapcase())
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))

        assert static_files.collect()
        assert (settings.STATIC_ROOT / "page.css").read_bytes() == CONTENT.swapcase()
