"""The documentation as the server shows it: every link in it leads somewhere."""

import re
from contextlib import closing
from html.parser import HTMLParser
from urllib.parse import urldefrag, urljoin

import pytest

from rensei.console.templatetags.console import HELP
from rensei.console.urls import org_patterns
from rensei.console.views import docs
from tests.integrations.anthropic.test_growth import lines


class Reader(HTMLParser):
    """Collects the links and the anchors of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.sources: list[str] = []
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors.add(found.get("id") or "")
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        if tag == "img":
            self.sources.append(str(found["src"]))


def read(client, path):
    answer = client.get(path)
    assert answer.status_code == 200, path
    return Reader(answer.content.decode())


@pytest.mark.django_db
class TestTheDocumentation:
    def test_leads_nowhere_that_is_not_there(self, client):
        pages = {f"/docs/{page.name}": read(client, f"/docs/{page.name}") for page in docs.contents()}
        lost = []
        for path, page in pages.items():
            for link in page.links:
                target, anchor = urldefrag(urljoin(path, link))
                if re.match(r"(https?|mailto):", target):
                    continue
                if target in pages:
                    if anchor and anchor not in pages[target].anchors:
                        lost.append(f"{path}: {link}")
                elif client.get(target).status_code not in (200, 302):
                    lost.append(f"{path}: {link}")

        assert lost == []

    def test_shows_its_pictures(self, client):
        pictures = {
            urljoin(f"/docs/{page.name}", source)
            for page in docs.contents()
            for source in read(client, f"/docs/{page.name}").sources
        }

        lost = []
        for path in sorted(pictures):
            with closing(client.get(path)) as picture:
                if picture["Content-Type"] != "image/png":
                    lost.append(path)

        assert lost == []

    def test_is_found_without_the_slash_too(self, client):
        answer = client.get("/docs")

        assert answer.status_code == 301
        assert answer["Location"] == "/docs/"

    def test_gives_out_no_other_file(self, client):
        for path in ("/docs/screenshots/../../manage.py", "/docs/screenshots/none.png", "/docs/../.env.example"):
            assert client.get(path).status_code == 404


class TestContents:
    def test_names_every_page_once_in_a_group(self, client):
        html = client.get("/docs/").content.decode()

        nav = html.split('id="docs-nav"')[1].split("</nav>")[0]
        named = re.findall(r'href="/docs/([^"?#]+)"', nav)
        assert sorted(named) == sorted(
            path.relative_to(docs.ROOT).with_suffix("").as_posix() for path in docs.ROOT.rglob("*.md")
        )
        assert re.findall(r'rail__heading">([^<]+)<', nav) == ["Use", "Operate", "Contribute"]

    def test_lists_the_headings_of_a_page(self, client):
        html = client.get("/docs/gateway").content.decode()

        contents = html.split('aria-label="On this page"')[1].split("</nav>")[0]
        for anchor in re.findall(r'href="#([^"]+)"', contents):
            assert f'<h2 id="{anchor}"' in html


class TestSearch:
    def test_finds_pages_by_all_words(self, client):
        found = client.get("/docs/?q=metered+BUDGET").content.decode()
        none = client.get("/docs/?q=metered+zebra").content.decode()

        assert 'href="/docs/ledger"' in found.split("<main")[1]
        assert "No page contains all of these words." in none

    def test_writes_the_words_as_text(self, client):
        html = client.get("/docs/?q=<script>alert(1)</script>").content.decode()

        assert "<script>alert" not in html


@pytest.mark.django_db
class TestTheDrawer:
    """The documentation of a page, which opens beside it."""

    def test_is_a_part_with_a_link_to_the_whole_page(self, client):
        answer = client.get("/docs/ledger", headers={"HX-Request": "true"})

        html = answer.content.decode()
        assert "<!doctype" not in html.lower()
        assert 'id="dialog-title"' in html
        assert 'href="/docs/ledger"' in html
        assert "The cost ledger" in html

    def test_explains_every_page_by_a_document_that_there_is(self, client, page):
        names = {one.partition("-")[0] for one in (pattern.name for pattern in org_patterns)}

        assert set(HELP) <= names
        for document in {*HELP.values(), "index"}:
            assert client.get(f"/docs/{document}").status_code == 200
        assert (
            'href="/docs/ledger" hx-get="/docs/ledger" hx-target="#dialog"'
            in page.get("/o/acme/usage").content.decode()
        )


class TestTheWork:
    def test_of_a_second_page_opens_no_file_for_the_contents(self, client, monkeypatch):
        docs.contents()
        opened = []
        monkeypatch.setattr(docs, "_title", opened.append)

        docs.contents()

        assert opened == []

    def test_of_a_search_is_the_same_for_eight_words_and_for_forty(self):
        docs.search("a")

        few, many = (
            lines(lambda n=n: docs.search(" ".join(f"e{i}" if i else "e" for i in range(n))), of="views/docs.py")
            for n in (8, 40)
        )

        assert few == many
