"""What holds for every page: who gets in, what it costs, and what its HTML may not hold."""

import re
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.db.models import Model
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.html import escape

from catalog.models import CatalogEntry
from rensei.accounts import invitations
from rensei.console import access as console_access
from rensei.console.urls import org_patterns
from rensei.console.views import integrations as integration_views
from rensei.core.api import DEFAULT_BODY_LIMIT, RequestTooLarge
from rensei.core.clock import database_now
from rensei.core.errors import AlreadyExists, RateLimited
from rensei.dispatch.models import RunFile
from rensei.dispatch.saved_views import save_view
from rensei.dispatch.services import create_pool
from rensei.orgs import kill_switches
from rensei.orgs.models import KillSwitch, Membership
from rensei.tokens.machines import register_host
from rensei.tokens.services import create_token

MOST_QUERIES = 12
# The playground reads the other names of its profile's model as well, for the policies that are written under them.
# It also reads the last prompts. The overview decides for each profile, and reads figures and the next steps.
MOST_QUERIES_OF = {"playground": 14, "org-home": 20}
# What an address is about, by the name in its pattern.
OBJECTS = (
    "run_id",
    "file_id",
    "view_id",
    "integration_id",
    "profile_id",
    "project_id",
    "member_id",
    "invitation_id",
    "token_id",
    "machine_id",
    "pool_id",
    "workflow_id",
    "workflow_run_id",
    "model_id",
)
POST_ONLY = {
    "run-cancel",
    "run-again",
    "runs-selected",
    "runs-view-save",
    "runs-view-delete",
    "workflow-start",
    "workflow-run-cancel",
    "workflow-run-retry",
    "integration-test",
    "integration-message",
    "integration-default",
    "profile-default",
    "profile-switch",
    "member-role",
    "invitation-resend",
}
# Every other address below an organization's: no page.
MISSING = "missing"
NAMES = [pattern.name for pattern in org_patterns if pattern.name != MISSING]
PAGES = [name for name in NAMES if name not in POST_ONLY]
MANAGERS_ONLY = {
    "integration-add",
    "integration-connect",
    "integration-federate",
    "integration-identity",
    "integration-edit",
    "integration-rotate",
    "integration-remove",
    "catalog-create",
    "catalog-delete",
    "project-rename",
    "project-delete",
    "pool-add",
    "pool-edit",
    "pool-delete",
    "destroy-keys",
    "org-delete",
}
# Not for members, who see no others' doings.
NOT_FOR_MEMBERS = {"audit-log", "audit-log-csv", "destroyed-keys"}
# Ada's own: members do not see it, and auditors do not change it.
OF_THEIR_OWNER = {"token-cap", "token-revoke", "machine-revoke"}
FILES = {"usage-ledger", "statement-csv", "audit-log-csv", "runs-csv", "run-file"}
# What htmx puts into a page.
PARTS = {"runs-newer", "palette"}
WRITERS_ONLY = {"profile-create", "profile-delete", "workflow-create", "workflow-delete"}


@pytest.fixture
def address(acme, ada_access, integration, profile, project, run, workflow_run):
    """Write the address of any page, about Acme's own objects."""
    token, _ = create_token(ada_access, name="ci")
    host, _, _ = register_host(ada_access, name="laptop")
    own = CatalogEntry.objects.create(
        org=acme, provider="claude", model_id="nova", display_name="Nova", auth_modes=["byok"]
    )
    objects = {
        "run_id": run.id,
        "file_id": RunFile.objects.create(run=run, path="out/notes.md", content=b"Notes").id,
        "view_id": save_view(ada_access, name="Failures", query="state=FAILED").id,
        "integration_id": integration.id,
        "profile_id": profile.public_id,
        "project_id": project.slug,
        "member_id": ada_access.membership.id,
        "invitation_id": invitations.invite(ada_access, email="zoe@acme.test", role="member").invitation.id,
        "token_id": token.id,
        "machine_id": host.id,
        "pool_id": create_pool(ada_access, name="lab", provider_id="sandbox", config={}).id,
        "workflow_id": workflow_run.version.workflow_id,
        "workflow_run_id": workflow_run.id,
        "node_id": "only",
        "provider": "claude",
        "model_id": own.model_id,
        "month": f"{database_now():%Y-%m}",
    }
    wanted = {pattern.name: re.findall(r":(\w+)>", str(pattern.pattern)) for pattern in org_patterns}

    def write(name: str, slug: str = "acme") -> str:
        return reverse(f"console:{name}", args=[slug, *(objects[part] for part in wanted[name])])

    return write


def body(answer: Any) -> str:
    return (b"".join(answer.streaming_content) if answer.streaming else answer.content).decode()


class TestGet:
    """Reading changes nothing, so one organization serves for all pages."""

    @pytest.mark.parametrize("paused", [False, True], ids=["", "while-a-mode-is-paused"])
    def test_opens_for_the_owner_within_the_query_budget(self, subtests, paused, address, page, grace):
        if paused:
            kill_switches.stop(operator=grace, kind=KillSwitch.Kind.AUTH_MODE, target="shared", reason="A test.")
        for name in PAGES:
            with subtests.test(name):
                page.get(address(name))

                with CaptureQueriesContext(connection) as queries:
                    answer = page.get(address(name))
                    body(answer)

                assert answer.status_code == 200
                assert len(queries) <= MOST_QUERIES_OF.get(name, MOST_QUERIES), "\n".join(
                    query["sql"][:150] for query in queries
                )

    @pytest.mark.outside
    def test_sends_anonymous_people_to_sign_in(self, subtests, address, client):
        for name in PAGES:
            with subtests.test(name):
                answer = client.get(address(name))

                assert answer.status_code == 302
                assert answer["Location"].startswith("/accounts/login/?next=/o/acme")

    def test_is_absent_for_another_organizations_owner(self, subtests, address, eve, page_as):
        browser = page_as(eve)
        for name in PAGES:
            with subtests.test(name):
                answer = browser.get(address(name))

                assert answer.status_code == 404
                assert "Acme" not in body(answer)

    def test_finds_nothing_of_acme_under_another_organization(self, subtests, address, eve, page_as):
        browser = page_as(eve)
        for pattern in org_patterns:
            if pattern.name in POST_ONLY | {MISSING}:
                continue
            with subtests.test(pattern.name):
                answer = browser.get(address(pattern.name, "evil"))

                named = any(part in str(pattern.pattern) for part in OBJECTS)
                assert answer.status_code == (404 if named else 200)
                assert "Acme" not in body(answer)

    def test_shows_a_member_and_an_auditor_what_their_role_allows(self, subtests, address, mia, otto, page_as):
        members, auditors = page_as(mia), page_as(otto)
        for name in PAGES:
            with subtests.test(name):
                seen = members.get(address(name))

                refused = 403 if name in MANAGERS_ONLY | NOT_FOR_MEMBERS else 200
                assert seen.status_code == (404 if name in OF_THEIR_OWNER else refused)
                closed = MANAGERS_ONLY | WRITERS_ONLY | OF_THEIR_OWNER
                assert auditors.get(address(name)).status_code == (403 if name in closed else 200)
                if name in MANAGERS_ONLY:
                    assert "Ada" in body(seen)

    def test_holds_no_key_no_inline_code_and_no_foreign_address(self, subtests, address, page, key, simulator):
        page.post(address("integration-test"))

        for name in PAGES:
            with subtests.test(name):
                html = body(page.get(address(name)))

                assert key not in html
                assert not re.search(r"<[^>]+\son[a-z]+=", html)
                assert not re.search(r"<[^>]+\sstyle=", html)
                assert "<style" not in html
                assert not re.search(r"<script(?![^>]+src=\"/static/)", html)
                assert not re.search(r"<(?:link|img|script|use)[^>]+(?:href|src)=\"https?:", html)

    @pytest.mark.outside
    def test_keeps_saved_logins_out_of_fields_for_keys(self, subtests, address, page):
        for name in PAGES:
            with subtests.test(name):
                for field in re.findall(r"<input[^>]+type=\"password\"[^>]*>", body(page.get(address(name)))):
                    assert 'autocomplete="new-password"' in field

    @pytest.mark.outside
    def test_has_a_title_and_one_heading_of_its_own(self, subtests, address, page):
        for name in PAGES:
            if name in FILES | PARTS:
                continue
            with subtests.test(name):
                html = body(page.get(address(name)))

                assert re.search(r"<title>[^<]+ · Acme · Rensei</title>", html)
                assert len(re.findall(r"<h1", html)) == 1


class TestAnAddressWithoutAPage:
    @pytest.mark.parametrize("path", ["nothing", "settings/nothing", "runs/", "settings/organization/", "%3Cb%3E"])
    @pytest.mark.parametrize("method", ["get", "post"])
    def test_is_told_within_the_frame_to_members_only(self, acme, page, eve, page_as, path, method):
        shown = getattr(page, method)(f"/o/acme/{path}")
        outside = getattr(page_as(eve), method)(f"/o/acme/{path}")

        assert (shown.status_code, outside.status_code) == (404, 404)
        assert "Page not found · Acme" in body(shown)
        assert 'id="rail"' in body(shown)
        assert "Acme" not in body(outside)


class TestPost:
    def test_is_not_done_by_reading(self, subtests, address, page):
        for name in sorted(POST_ONLY):
            with subtests.test(name):
                assert page.get(address(name)).status_code == 405

    def test_is_absent_for_another_organizations_owner(self, subtests, address, eve, page_as):
        browser = page_as(eve)
        for name in sorted(POST_ONLY):
            with subtests.test(name):
                assert browser.post(address(name)).status_code == 404
                assert browser.post(address(name, "evil")).status_code == 404

    def test_is_refused_to_an_auditor_without_a_change(
        self, subtests, address, otto, page_as, integration, profile, run
    ):
        browser = page_as(otto)
        before = [values(row) for row in (integration, profile, run)]
        for name in sorted(POST_ONLY):
            with subtests.test(name):
                answer = browser.post(address(name), {"role": "owner"}, follow=True)

                assert "Not permitted" in body(answer)
                assert [values(row) for row in (integration, profile, run)] == before
                assert set(Membership.objects.filter(role="owner").values_list("user__name", flat=True)) == {"Ada"}


def values(row: Model) -> dict[str, Any]:
    return type(row)._default_manager.filter(pk=row.pk).values().get()


class TestHeaders:
    def test_allow_only_our_own_scripts_and_styles(self, page):
        policy = page.get("/o/acme/")["Content-Security-Policy"]

        assert "script-src 'self'" in policy
        assert "style-src 'self'" in policy
        assert "unsafe" not in policy

    def test_keep_pages_out_of_caches(self, page):
        assert "no-store" in page.get("/o/acme/settings/tokens")["Cache-Control"]


@pytest.mark.outside
class TestAPartOfAPage:
    """What htmx gets for a part of a page where its request fails: it would put a whole page into the part's place."""

    HTMX = {"HX-Request": "true", "HX-Current-URL": "http://testserver/o/acme/playground?profile=prof_deep"}

    def ask(self, client: Client, name: str, address: Any) -> Any:
        send = client.post if name in POST_ONLY else client.get
        return send(address(name), headers=self.HTMX)

    def shows_a_notice(self, answer: Any, words: str) -> None:
        text = answer.content.decode()
        assert "<!doctype" not in text.lower()
        assert answer.headers["HX-Retarget"] == "#page-notice"
        assert answer.headers["HX-Reswap"] == "innerHTML"
        assert words in text

    def test_leads_to_the_sign_in_page_and_back_when_the_session_has_ended(self, subtests, address):
        for name in NAMES:
            with subtests.test(name):
                answer = self.ask(Client(), name, address)

                assert answer.status_code == 401
                assert answer.headers["HX-Redirect"] == (
                    "/accounts/login/?next=%2Fo%2Facme%2Fplayground%3Fprofile%3Dprof_deep"
                )

    @pytest.mark.parametrize("elsewhere", ["https://evil.test/o/acme", "//evil.test", "javascript:alert(1)", ""])
    def test_leads_back_to_pages_of_ours_only(self, address, elsewhere):
        answer = Client().get(address("runs"), headers={**self.HTMX, "HX-Current-URL": elsewhere})

        assert answer.headers["HX-Redirect"] == "/accounts/login/?next=%2F"

    def test_is_a_notice_when_the_thing_is_gone(self, subtests, address, eve, page_as):
        browser = page_as(eve)
        for name in NAMES:
            with subtests.test(name):
                answer = self.ask(browser, name, address)

                assert answer.status_code == 404
                self.shows_a_notice(answer, "This is no longer here")

    @pytest.mark.parametrize(
        "name", [*sorted(POST_ONLY), "playground", "profile-create", "integration-connect", "profile"]
    )
    def test_is_a_notice_when_the_page_has_expired(self, address, ada, name):
        browser = Client(enforce_csrf_checks=True)
        browser.force_login(ada)

        answer = browser.post(address(name), headers=self.HTMX)

        assert answer.status_code == 403
        self.shows_a_notice(answer, "The page has expired")

    @pytest.mark.parametrize(
        ("fault", "status", "words"),
        [
            (ValueError("A bug"), 500, "Something went wrong"),
            (OperationalError("The database is away"), 503, "What you asked for was not done"),
        ],
        ids=["500", "503"],
    )
    def test_is_a_notice_when_the_server_fails(self, subtests, address, page, monkeypatch, fault, status, words):

        def fail(**options: Any) -> None:
            raise fault

        monkeypatch.setattr(console_access, "for_member", fail)
        page.raise_request_exception = False

        for name in NAMES:
            with subtests.test(name):
                answer = self.ask(page, name, address)

                assert answer.status_code == status
                self.shows_a_notice(answer, words)

    @pytest.mark.parametrize(
        "refusal", [RateLimited(seconds=7), RequestTooLarge(limit=DEFAULT_BODY_LIMIT), AlreadyExists(what="It")]
    )
    def test_is_a_notice_with_the_words_of_a_refusal(self, address, page, monkeypatch, refusal):
        def refuse(*args: Any, **options: Any) -> None:
            raise refusal

        monkeypatch.setattr(integration_views, "attempt", refuse)

        answer = page.post(address("integration-default"), headers=self.HTMX)

        assert answer.status_code == refusal.status
        self.shows_a_notice(answer, escape(refusal.detail))

    def test_is_a_form_with_its_errors(self, address, page):
        answer = page.post(address("playground"), {"text": ""}, headers=self.HTMX)

        assert answer.status_code == 422
        assert "HX-Retarget" not in answer.headers

    def test_is_a_whole_page_for_a_browser_without_scripts(self, address):
        answer = Client().get(address("runs"))

        assert (answer.status_code, "HX-Redirect" in answer.headers) == (302, False)
