"""What this version does not know, as operators see it and mark it."""

from collections.abc import Callable

import pytest
from django.contrib.auth.models import Permission
from django.test import Client
from django.utils.html import escape
from prometheus_client.parser import text_string_to_metric_families

from rensei.audit.models import AuditEvent
from rensei.core.clock import database_now
from rensei.core.models import UnknownName
from rensei.operators.unknown_names import ADVICE, OTHER_ADVICE, SHOWN
from rensei.orgs.models import User
from tests.pages import html_of

pytestmark = pytest.mark.django_db

LIST = "/admin/core/unknownname/"


@pytest.fixture
def admin(grace: User, page_as: Callable[[User], Client]) -> Client:
    return page_as(grace)


def make_name(name: str = "new_tokens", kind: str = "usage_field", count: int = 3) -> UnknownName:
    now = database_now()
    return UnknownName.objects.create(kind=kind, name=name, count=count, first_seen_at=now, last_seen_at=now)


def front_page(client: Client) -> str:
    return html_of(client.get("/admin/"))


class TestTheFrontPage:
    def test_shows_nothing_where_all_is_known(self, admin: Client) -> None:
        assert "Not known to this version" not in front_page(admin)

    @pytest.mark.parametrize(("kind", "advice"), [*ADVICE.items(), ("novelty", OTHER_ADVICE)])
    def test_shows_what_was_met_and_what_to_do(self, admin: Client, kind: str, advice: str) -> None:
        make_name("<b>new", kind=kind)

        html = front_page(admin)

        assert f"<strong>{kind}</strong><code>&lt;b&gt;new</code>" in html
        assert "3 times" in html
        assert escape(advice) in html

    def test_shows_the_newest_and_says_how_many_there_are(self, admin: Client) -> None:
        for number in range(SHOWN + 3):
            make_name(f"field-{number}")

        html = front_page(admin)

        assert html.count("<strong>usage_field</strong>") == SHOWN
        assert f"All {SHOWN + 3}</a>" in html
        assert f"field-{SHOWN + 2}</code>" in html


class TestMarking:
    def test_takes_a_name_off_the_front_page_and_says_who_did(self, admin: Client, grace: User) -> None:
        marked, other = make_name("marked"), make_name("other")

        answer = admin.post(LIST, {"action": "mark", "_selected_action": [marked.pk]}, follow=True)

        marked.refresh_from_db()
        html = front_page(admin)
        event = AuditEvent.objects.get(action="unknown-name.marked")
        assert "Marked as seen: 1." in answer.content.decode()
        assert marked.marked_by == grace.email
        assert "other</code>" in html
        assert "marked</code>" not in html
        assert (event.actor, event.object_id, event.detail) == (grace.email, "usage_field marked", {"count": 3})
        assert UnknownName.objects.get(pk=other.pk).marked_at is None

    def test_again_changes_nothing(self, admin: Client) -> None:
        name = make_name()
        for _ in range(2):
            admin.post(LIST, {"action": "mark", "_selected_action": [name.pk]})

        assert AuditEvent.objects.filter(action="unknown-name.marked").count() == 1

    def test_needs_the_permission(self, make_user: Callable[..., User], page_as: Callable[[User], Client]) -> None:
        reader = make_user("reader@platform.test", is_staff=True)
        reader.user_permissions.add(Permission.objects.get(codename="view_unknownname"))
        name = make_name()
        client = page_as(reader)

        client.post(LIST, {"action": "mark", "_selected_action": [name.pk]})

        name.refresh_from_db()
        assert name.marked_at is None
        assert "Mark as seen" not in front_page(client)

    def test_is_no_other_change(self, admin: Client) -> None:
        name = make_name()

        assert admin.get(f"{LIST}{name.pk}/change/").status_code == 200
        assert admin.post(f"{LIST}{name.pk}/change/", {"count": 0}).status_code == 403
        assert admin.post(f"{LIST}{name.pk}/delete/", {"post": "yes"}).status_code == 403
        assert "What to do" in admin.get(f"{LIST}?marked_at__isempty=1").content.decode()


class TestMetrics:
    def test_count_them_by_kind_and_name(self, client: Client, settings: object) -> None:
        settings.RENSEI_METRICS_TOKEN = "right"  # type: ignore[attr-defined]
        make_name('quoted"\n', count=2**62)
        make_name("x-new", kind="header")

        answer = client.get("/metrics", headers={"Authorization": "Bearer right"})

        families = {family.name: family for family in text_string_to_metric_families(answer.content.decode())}
        samples = {
            (each.labels["kind"], each.labels["name"]): each.value for each in families["rensei_unknown"].samples
        }
        assert samples == {("usage_field", 'quoted"\n'): float(2**62), ("header", "x-new"): 3.0}
