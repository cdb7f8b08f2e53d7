"""Every refusal that a page shows leads to the place that mends it."""

import re

import pytest
from django.template.loader import render_to_string
from django.test import RequestFactory
from django.utils.html import conditional_escape

from rensei.console import fixes
from tests.architecture.test_errors import ROWS

SUPPORT = "operator@platform.test"


class TestEveryCode:
    def test_is_mended_on_a_page_or_in_its_form_or_is_met_by_no_page(self):
        assert set(fixes.FIXES) | fixes.HERE | fixes.ELSEWHERE == set(ROWS)
        assert len(fixes.FIXES) + len(fixes.HERE) + len(fixes.ELSEWHERE) == len(ROWS)

    def test_has_a_step_in_the_documentation(self):
        assert [code for code in ROWS if not fixes.step_of(code)] == []


@pytest.fixture
def show(run):
    """Draw the error of a run for somebody, as its page does."""

    def draw(access, code):
        asked = RequestFactory().get("/")
        asked.access = access
        error = {"code": code, "detail": "It was refused.", "fix": ""}
        return render_to_string("components/_error.html", {"error": error, "run_id": run.id}, asked)

    return draw


class TestARefusalOnAPage:
    @pytest.mark.parametrize("name", ["ada", "mia", "otto"])
    def test_links_to_a_place_that_its_reader_may_open(self, name, request, access_of, show, page_as, settings):
        settings.RENSEI_SUPPORT_EMAIL = SUPPORT
        person = request.getfixturevalue(name)
        access = access_of(person)

        ways = {code: re.findall(r'<a class="fix" href="([^"]+)">', show(access, code)) for code in fixes.FIXES}

        repeating = {code for code, fix in fixes.FIXES.items() if fix in (fixes.EDIT, fixes.AGAIN)}
        assert {code for code, found in ways.items() if not found} == (set() if access.writes else repeating)
        asked = {code for code, found in ways.items() if found and found[0].startswith(f"mailto:{SUPPORT}")}
        assert asked == {code for code, fix in fixes.FIXES.items() if fix is fixes.OPERATOR}
        places = {found[0] for code, found in ways.items() if found and code not in asked}
        assert {place: page_as(person).get(place).status_code for place in places} == dict.fromkeys(places, 200)

    def test_shows_the_documented_step_where_the_error_has_none(self, ada, access_of, show):
        for code in fixes.FIXES:
            assert conditional_escape(fixes.step_of(code)) in show(access_of(ada), code)
