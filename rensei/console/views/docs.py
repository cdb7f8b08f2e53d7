"""The project's documentation, served by the app, so that every error can link to its explanation."""

import re
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.http import FileResponse, Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.cache import patch_cache_control
from django.utils.safestring import SafeString, mark_safe
from django.views.decorators.http import require_safe
from markdown_it import MarkdownIt
from markdown_it.token import Token

from rensei.core.limits import limit

ROOT = Path(settings.ROOT) / "docs"
PICTURE_SECONDS = 3600
SEARCH_LENGTH_MAX = 80
WORDS_MAX = limit(
    8,
    "words, in 80 characters",
    what="Search of the documentation",
    told="the caller: further ones narrow nothing",
)
# By the reader's purpose: pages of each group, or whole folders. The others are for contributors.
GROUPS = {
    "Use": [
        "index", "auth-modes", "gateway", "rest-quickstart", "cli", "workflows", "host-sessions", "catalog", "tokens",
        "people", "ledger", "receipts", "errors", "providers/", "glossary",
    ],
    "Operate": [
        "operations", "operators/", "settings", "limits", "vault", "faults", "threat-model", "asvs", "benchmarks",
    ],
}  # fmt: skip
CONTRIBUTE = "Contribute"
HEADING = re.compile(r'<h2 id="([^"]+)">(.*?) ?<a ')
# A heading, or a row of the table of errors, that is a code: `METERED_NOT_ENTITLED`.
ERROR_CODE = re.compile(r"`?([A-Z][A-Z0-9]+(?:_[A-Z0-9]+)*)`?")


class Page(NamedTuple):
    """A page of the documentation. Its name is its path without `.md`."""

    name: str
    title: str
    section: str


class Heading(NamedTuple):
    """A heading of the second level, for the contents of its page."""

    anchor: str
    text: str


class Found(NamedTuple):
    """A page that contains the words of a search, with the first line that does."""

    page: Page
    line: str


@require_safe
@login_not_required
def index(request: HttpRequest) -> HttpResponse:
    """Show the first page."""
    return page(request, "index" if (ROOT / "index.md").exists() else contents()[0].name)


@require_safe
@login_not_required
def page(request: HttpRequest, name: str) -> HttpResponse:
    """Show one page. Only names in the table of contents are read, so no path can name another file."""
    name = name.removesuffix(".md")
    found = next((entry for entry in contents() if entry.name == name), None)
    if found is None:
        raise Http404
    sections: dict[str, list[Page]] = {}
    for entry in contents():
        sections.setdefault(entry.section, []).append(entry)
    html = rendered(found.name, (ROOT / f"{found.name}.md").stat().st_mtime)
    if request.headers.get("HX-Request"):
        return render(request, "console/docs_drawer.html", {"page": found, "html": html})
    wanted = request.GET.get("q", "").strip()[:SEARCH_LENGTH_MAX]
    context = {
        "page": found,
        "sections": sections,
        "html": html,
        "headings": [Heading(*heading) for heading in HEADING.findall(html)],
        "wanted": wanted,
        "results": search(wanted) if wanted else [],
    }
    return render(request, "console/docs.html", context)


@require_safe
@login_not_required
def picture(request: HttpRequest, name: str) -> FileResponse:
    """Return one of the screenshots. Only names of existing files are opened."""
    found = next((path for path in (ROOT / "screenshots").glob("*.png") if path.name == name), None)
    if found is None:
        raise Http404
    answer = FileResponse(found.open("rb"), content_type="image/png")
    patch_cache_control(answer, public=True, max_age=PICTURE_SECONDS)
    return answer


def contents() -> list[Page]:
    """List all pages by group, in the order of the groups; the decisions come last."""
    paths = sorted(ROOT.rglob("*.md"))
    return _contents(tuple(paths), max((path.stat().st_mtime for path in paths), default=0.0))


@lru_cache(maxsize=1)
def _contents(paths: tuple[Path, ...], changed_at: float) -> list[Page]:
    pages = []
    for path in paths:
        name = path.relative_to(ROOT).with_suffix("").as_posix()
        pages.append(Page(name=name, title=_title(path), section=_group(name)))
    order = [*GROUPS, CONTRIBUTE]
    return sorted(pages, key=lambda entry: (order.index(entry.section), _place(entry), entry.name))


def search(wanted: str) -> list[Found]:
    """Find the pages that contain all words of a search, those with the words in their title first."""
    words = list(dict.fromkeys(wanted.casefold().split()))[:WORDS_MAX]
    found = []
    for entry in contents():
        text, folded = _plain(entry.name, (ROOT / f"{entry.name}.md").stat().st_mtime)
        if all(word in folded for word in words):
            line = next((line for line in text.splitlines() if words[0] in line.casefold()), "")
            found.append(Found(page=entry, line=line.strip(" #|*-")[:160]))
    return sorted(found, key=lambda one: words[0] not in one.page.title.casefold())


def _group(name: str) -> str:
    for group, names in GROUPS.items():
        if any(name == one or (one.endswith("/") and name.startswith(one)) for one in names):
            return group
    return CONTRIBUTE


def _place(entry: Page) -> int:
    names = GROUPS.get(entry.section)
    if names is None:
        return int("/" in entry.name)
    return next(
        place for place, one in enumerate(names) if entry.name == one or (one[-1] == "/" and entry.name.startswith(one))
    )


@cache
def _plain(name: str, changed_at: float) -> tuple[str, str]:
    """
    The text of a page for the search, without the marks of code and links, read again when it has changed. The second
    is without case.
    """
    text = re.sub(r"[`*]|\]\([^)]*\)|\[", "", (ROOT / f"{name}.md").read_text(encoding="utf-8"))
    return text, text.casefold()


@cache
def rendered(name: str, changed_at: float) -> SafeString:
    """Render a page as HTML, again when it has changed. Raw HTML is off, although the text is ours."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable(["table"])
    tokens = markdown.parse((ROOT / f"{name}.md").read_text(encoding="utf-8"))
    seen: set[str] = set()
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            _anchor(token, tokens[place + 1], seen, link=True)
        elif token.type == "tr_open":
            # The first cell of a row: tr_open, td_open, inline.
            _anchor_row(token, tokens[place + 2], seen)
        for child in token.children or []:
            if child.type == "link_open":
                child.attrSet("href", _address(name, str(child.attrGet("href"))))
            elif child.type == "image":
                file = str(child.attrGet("src")).rpartition("/")[2]
                child.attrSet("src", reverse("console:docs-picture", args=[file]))
    html = markdown.renderer.render(tokens, markdown.options, {})
    html = html.replace("<pre>", '<pre tabindex="0">')
    html = html.replace("<table>", '<div class="prose__table" tabindex="0"><table>').replace(
        "</table>", "</table></div>"
    )
    safe: SafeString = mark_safe(html)  # noqa: S308 - rendered from our own files with raw HTML off
    return safe


def _title(path: Path) -> str:
    with path.open(encoding="utf-8") as lines:
        return next((line[2:].strip().replace("`", "") for line in lines if line.startswith("# ")), path.stem)


def _anchor(heading: Token, text: Token, seen: set[str], *, link: bool) -> None:
    code = ERROR_CODE.fullmatch(text.content.strip())
    slug = code[1].lower().replace("_", "-") if code else re.sub(r"[^a-z0-9]+", "-", text.content.lower()).strip("-")
    if slug in seen:
        return
    seen.add(slug)
    heading.attrSet("id", slug)
    if link and text.children is not None:
        opening = Token(
            "link_open", "a", 1, attrs={"href": f"#{slug}", "class": "anchor", "aria-label": "Link to here"}
        )
        text.children += [opening, Token("text", "", 0, content="#"), Token("link_close", "a", -1)]


def _anchor_row(row: Token, first_cell: Token, seen: set[str]) -> None:
    code = ERROR_CODE.fullmatch(first_cell.content.strip()) if first_cell.type == "inline" else None
    if code and "_" in code[1]:
        _anchor(row, first_cell, seen, link=False)


def _address(name: str, href: str) -> str:
    """Replace a link to a Markdown file by the address of its page."""
    path, hash_sign, anchor = href.partition("#")
    if "://" in href or not path.endswith(".md") or path.startswith("/"):
        return href
    target = (ROOT / name).parent.joinpath(path).resolve()
    if not target.is_relative_to(ROOT):
        return href
    inside = target.relative_to(ROOT).with_suffix("").as_posix()
    return reverse("console:docs-page", args=[inside]) + hash_sign + anchor
