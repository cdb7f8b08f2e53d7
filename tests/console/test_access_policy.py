"""Settings → Projects & Access: the matrix of a policy, its preview, its saving and its history."""

import json
import re
from html import unescape
from typing import Any

import pytest

from rensei.core.transactions import durable
from rensei.policies import services as policies
from rensei.policies.models import AccessPolicy
from tests.pages import html_of

ORG = "/o/acme/settings/access"
PROJECT = "/o/acme/settings/projects/my-project/access"
DENY_BYOK = {"*": {"byok": {"allowed": False}}}


def fields_of(html: str) -> dict[str, list[str]]:
    """What a browser would send of the matrix as it was drawn."""
    form = html[html.index('action="#preview"') :]
    sent: dict[str, list[str]] = {}
    for name, value in re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', form):
        sent.setdefault(unescape(name), []).append(unescape(value))
    for name, options in re.findall(
        r'<select class="select matrix__select" name="([^"]+)".*?>(.*?)</select>', form, re.DOTALL
    ):
        sent[name] = re.findall(r'value="(\w+)" selected', options)
    return sent


def preview(browser: Any, address: str, changes: dict[tuple[str, str], str]) -> Any:
    """Open the page, set some cells, and press Preview."""
    sent = fields_of(browser.get(address).content.decode())
    for (row, mode), rule in changes.items():
        sent[f"cell.{sent['row'].index(row)}.{mode}"] = [rule]
    return browser.post(address, {**sent, "action": "preview"})


def save(browser: Any, address: str, previewed: Any) -> Any:
    """Press Save in a preview."""
    html = previewed.content.decode()
    card = html[html.index('id="preview"') :]
    sent = {name: unescape(value) for name, value in re.findall(r'name="(base|matrix)" value="([^"]*)"', card)}
    return browser.post(address, {**sent, "action": "save"}, follow=True)


class TestMatrix:
    def test_has_a_row_for_all_models_each_provider_and_each_model_with_a_rule(self, page, ada_access):
        policies.set_policy(ada_access, matrix={"claude-opus-5-5": {"byok": {"allowed": False}}})

        html = page.get(ORG).content.decode()

        assert fields_of(html)["row"] == ["*", "claude", "claude-opus-5-5"]
        assert "Claude Opus 5.5" in html

    def test_locks_what_a_policy_above_denies_and_names_it(self, page, ada_access, project, grace):
        with durable():
            policies.set_system_policy(operator=grace, matrix={"*": {"shared": {"allowed": False}}})
        policies.set_policy(ada_access, matrix={"claude": {"byok": {"allowed": False}}})

        of_project = page.get(PROJECT).content.decode()
        of_org = page.get(ORG).content.decode()

        assert of_project.count("Denied by the system") == 2
        assert of_project.count("Denied by the organization") == 1
        assert of_org.count("Denied by the system") == 2
        assert "Denied by the organization" not in of_org

    def test_keeps_a_rule_under_a_lock(self, page, ada_access, grace):
        policies.set_policy(ada_access, matrix={"*": {"shared": {"allowed": False}}})
        with durable():
            policies.set_system_policy(operator=grace, matrix={"*": {"shared": {"allowed": False}}})

        save(page, ORG, preview(page, ORG, {("*", "byok"): "deny"}))

        assert policies.stored_matrix(ada_access.org) == {
            "*": {"shared": {"allowed": False}, "byok": {"allowed": False}}
        }

    def test_says_which_broader_row_reaches_a_cell_that_inherits(self, page, ada_access):
        policies.set_policy(ada_access, matrix=DENY_BYOK)

        assert "Denied by <code>*</code>" in page.get(ORG).content.decode()

    def test_adds_a_row_without_losing_what_was_set(self, page):
        sent = fields_of(page.get(ORG).content.decode())

        html = page.post(ORG, {**sent, "cell.0.byok": "deny", "action": "add", "model": "claude-opus-4-8"})

        fields = fields_of(html.content.decode())
        assert fields["row"] == ["*", "claude", "claude-opus-4-8"]
        assert fields["cell.0.byok"] == ["deny"]
        assert not AccessPolicy.objects.exists()

    def test_adds_no_row_that_is_no_model(self, page):
        sent = fields_of(page.get(ORG).content.decode())

        answer = page.post(ORG, {**sent, "action": "add", "model": "claude-opus-9"})

        assert answer.status_code == 422
        assert "is no model of the catalog" in answer.content.decode()

    def test_clears_a_row(self, page, ada_access):
        policies.set_policy(ada_access, matrix={"claude-opus-5-5": {"byok": {"allowed": False}}})
        sent = fields_of(page.get(ORG).content.decode())

        html = page.post(ORG, {**sent, "action": "clear:claude-opus-5-5"}).content.decode()

        assert fields_of(html)["row"] == ["*", "claude"]


class TestPreview:
    def test_shows_old_and_new_for_each_profile_and_saves_nothing(self, page, profile, integration):
        html = html_of(preview(page, ORG, {("*", "byok"): "deny"}))

        assert "Runs as byok" in html
        assert "METERED_NOT_ENTITLED" in html
        assert "1 profile, 0 runs of the last 7 days would be refused" in html
        assert not AccessPolicy.objects.exists()

    def test_counts_the_runs_of_the_last_days_that_it_would_refuse(self, page, make_run, project):
        make_run()
        make_run(project_id=project.slug)

        everywhere = html_of(preview(page, ORG, {("*", "byok"): "deny"}))
        there = html_of(preview(page, PROJECT, {("*", "byok"): "deny"}))

        assert "1 profile, 2 runs of the last 7 days would be refused" in everywhere
        assert "1 profile, 1 run of the last 7 days would be refused" in there

    def test_says_when_no_profile_changes(self, page, profile):
        html = preview(page, ORG, {("*", "shared"): "deny"}).content.decode()

        assert "Every profile keeps its mode" in html

    def test_names_a_row_that_is_no_model(self, page):
        sent = fields_of(page.get(ORG).content.decode())
        sent["row"].append("claude-opus-9")

        answer = page.post(ORG, {**sent, "cell.2.byok": "deny", "action": "preview"})

        assert answer.status_code == 422
        assert "&#x27;claude-opus-9&#x27; is no model of the catalog" in answer.content.decode()
        assert "Not in the catalog" in answer.content.decode()

    def test_changes_nothing_where_nothing_was_changed(self, page):
        html = preview(page, ORG, {}).content.decode()

        assert "Nothing to save" in html
        assert 'value="save"' not in html


class TestSave:
    @pytest.mark.parametrize("address", [ORG, PROJECT])
    def test_stores_what_was_previewed_and_writes_it_into_the_history(self, address, page, project, ada_access):
        answer = save(page, address, preview(page, address, {("*", "byok"): "deny"}))

        html = html_of(answer)
        assert policies.stored_matrix(ada_access.org, project if address == PROJECT else None) == DENY_BYOK
        assert "was saved" in html
        history = html[html.index("<h2>History</h2>") :]
        assert "Ada" in history
        assert re.search(r"Inherit</span>.*Deny</span>", history)

    def test_does_not_overwrite_somebody_elses_change(self, page, ada_access):
        previewed = preview(page, ORG, {("*", "byok"): "deny"})
        policies.set_policy(ada_access, matrix={"*": {"shared": {"allowed": False}}})

        answer = save(page, ORG, previewed)

        assert answer.status_code == 422
        assert "This policy was changed after you opened it" in answer.content.decode()
        assert policies.stored_matrix(ada_access.org) == {"*": {"shared": {"allowed": False}}}

    @pytest.mark.parametrize("document", ["", "[]", '{"*": 1}', '{"claude-opus-9": {}}'])
    def test_refuses_a_document_that_no_preview_has_made(self, document, page):
        base = fields_of(page.get(ORG).content.decode())["base"]

        answer = page.post(ORG, {"base": base, "matrix": document, "action": "save"})

        assert answer.status_code == 422
        assert not AccessPolicy.objects.exists()

    def test_is_for_managers_and_others_read_who_can(self, page, mia, otto, page_as, ada_access):
        base = fields_of(page.get(ORG).content.decode())["base"]

        for person in (mia, otto):
            shown = page_as(person).get(ORG).content.decode()
            refused = page_as(person).post(ORG, {"base": base, "matrix": json.dumps(DENY_BYOK), "action": "save"})

            assert "up to an owner or admin" in shown
            assert "matrix__select" not in shown
            assert refused.status_code == 403
        assert not AccessPolicy.objects.exists()


class TestLinks:
    def test_lead_there_from_the_list_of_projects(self, page, project):
        html = page.get("/o/acme/settings/projects").content.decode()

        assert f'href="{ORG}"' in html
        assert f'href="{PROJECT}"' in html
