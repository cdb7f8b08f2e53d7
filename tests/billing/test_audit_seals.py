"""The audit log cannot be changed unseen, as the ledger cannot, by a person who owns the database but not the key."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from billing.integrity import anchors, seals, verification
from billing.integrity.chains import AUDIT, EVENT_COLUMNS
from billing.models import AuditSeal, EventToSeal, LedgerAnchor
from rensei.audit.models import AuditEvent
from rensei.core.clock import database_now
from rensei.orgs.models import Org, User
from tests.billing.ledger_triggers import triggers_lifted
from tests.drawn import examples

pytestmark = pytest.mark.django_db(transaction=True)

# What each column is changed to. Every one of them is another value than `write` gives.
CHANGED: dict[str, object] = {
    "id": 10**9,
    "org_id": "org_another",
    "user_id": 10**9,
    "actor": "mallory@evil.test",
    "token_id": "tok_another",
    "action": "integration.tested",
    "object_id": "int_another",
    "detail": json.dumps({"name": "another"}),
    "address": "203.0.113.9",
    "occurred_at": database_now,
}


def write(org: Org | None, user: User, number: int) -> AuditEvent:
    return AuditEvent.objects.create(
        org_id=org.pk if org else None,
        user_id=user.pk,
        actor=user.email,
        token_id="tok_1",
        action="integration.rotated",
        object_id=f"int_{number}",
        detail={"name": f"Key {number}", "size": 1.5},
        address="198.51.100.7",
        occurred_at=database_now() - timedelta(seconds=1),
    )


def keep() -> None:
    seals.seal()
    anchors.anchor()


def found() -> list[str]:
    return [str(difference) for difference in verification.differences()]


def sql(statement: str, *values: object) -> None:
    """Write past the application and past the triggers, as the owner of the database can."""
    with triggers_lifted(), connection.cursor() as cursor:
        cursor.execute(statement, values)


def change(column: str, event_id: int) -> None:
    value = CHANGED[column]
    # The name of a column of ours.
    sql(f"UPDATE audit_auditevent SET {column} = %s WHERE id = %s", value() if callable(value) else value, event_id)


def swap(first: int, second: int) -> None:
    for old, new in ((first, -1), (second, first), (-1, second)):
        sql("UPDATE audit_auditevent SET id = %s WHERE id = %s", new, old)


def delete(*event_ids: int, with_seals: bool, with_anchors: bool) -> None:
    for event_id in event_ids:
        sql("DELETE FROM audit_auditevent WHERE id = %s", event_id)
        if with_seals:
            seq = AuditSeal.objects.get(event_id=event_id).seq
            sql("DELETE FROM billing_auditseal WHERE seq = %s", seq)
            if with_anchors:
                sql("DELETE FROM billing_ledgeranchor WHERE org_id IS NULL AND seq >= %s", seq)


@pytest.fixture
def events(acme: Org, ada: User) -> list[AuditEvent]:
    """Four events, of an organization and of none, each with an anchor of its own, after those of the fixtures."""
    keep()
    written = []
    for number, org in enumerate((acme, None, acme, None)):
        written.append(write(org, ada, number))
        keep()
    return written


class TestAuditEvents:
    @pytest.mark.parametrize("table", ["audit_auditevent", "billing_auditseal"])
    @pytest.mark.parametrize("statement", ["UPDATE {table} SET id = id + 1", "DELETE FROM {table}"])
    def test_are_never_changed(self, events: list[AuditEvent], table: str, statement: str) -> None:
        with pytest.raises(IntegrityError, match="append-only"), connection.cursor() as cursor:
            cursor.execute(statement.format(table=table))

        assert found() == []

    @pytest.mark.postgres
    @pytest.mark.parametrize("table", ["audit_auditevent", "billing_auditseal"])
    def test_are_never_emptied(self, events: list[AuditEvent], table: str) -> None:
        with pytest.raises(IntegrityError, match="append-only"), connection.cursor() as cursor:
            cursor.execute(f"TRUNCATE {table}")

    def test_are_in_one_chain_with_their_anchors(self, events: list[AuditEvent]) -> None:
        assert list(AuditSeal.objects.order_by("-seq").values_list("event_id", flat=True)[:4]) == [
            event.pk for event in reversed(events)
        ]
        assert not EventToSeal.objects.exists()
        assert LedgerAnchor.objects.filter(org=None).count() == 5

    def test_outlive_their_organization_and_their_person(
        self, events: list[AuditEvent], make_user: Callable[..., User]
    ) -> None:
        zoe = make_user("zoe@nowhere.test")
        org = Org.objects.create(name="Short", slug="short")
        event = write(org, zoe, 9)
        keep()
        org_id, user_id = org.pk, zoe.pk

        org.delete()
        zoe.delete()

        kept = AuditEvent.objects.get(pk=event.pk)
        assert (kept.org_id, kept.user_id, kept.actor) == (org_id, user_id, "zoe@nowhere.test")
        assert found() == []


class TestTampering:
    def test_names_every_column(self) -> None:
        assert set(CHANGED) == set(EVENT_COLUMNS)

    @pytest.mark.parametrize("column", EVENT_COLUMNS)
    def test_with_any_column_is_found(self, events: list[AuditEvent], column: str) -> None:
        change(column, events[1].pk)

        differences = found()
        assert any(str(events[1].pk) in difference for difference in differences)

    def test_by_writing_into_the_past_is_found(self, events: list[AuditEvent], acme: Org, ada: User) -> None:
        late = AuditEvent.objects.create(
            org_id=acme.pk,
            actor=ada.email,
            action="member.invited",
            object_id="x",
            occurred_at=database_now() - timedelta(days=1),
        )
        keep()

        (difference,) = found()
        assert str(late.pk) in difference

    def test_by_keeping_an_event_from_the_sealer_is_found(self, events: list[AuditEvent], acme: Org, ada: User) -> None:
        hidden = write(acme, ada, 7)
        sql("DELETE FROM billing_eventtoseal WHERE event_id = %s", hidden.pk)

        (difference,) = found()
        assert str(hidden.pk) in difference

    @hypothesis_settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_of_any_kind_at_any_place_is_found(self, data: st.DataObject, acme: Org, ada: User, settings: Any) -> None:
        rows = [write(acme if data.draw(st.booleans()) else None, ada, number) for number in range(4)]
        seals.seal()
        if data.draw(st.booleans(), label="anchored in between"):
            anchors.anchor()
        rows += [write(acme, ada, number) for number in range(4, 7)]
        keep()
        assert found() == []
        ids = [row.pk for row in rows]

        kind = data.draw(st.sampled_from(["tail", "middle", "column", "insert", "swap", "anew"]))
        place = data.draw(st.integers(0, len(ids) - 2))
        if kind == "tail":
            with_seals = data.draw(st.booleans())
            delete(*ids[place + 1 :], with_seals=with_seals, with_anchors=data.draw(st.booleans()))
        elif kind == "middle":
            delete(ids[place], with_seals=data.draw(st.booleans()), with_anchors=False)
        elif kind == "column":
            change(data.draw(st.sampled_from(EVENT_COLUMNS)), ids[place])
        elif kind == "insert":
            write(acme, ada, 99)
            sql("DELETE FROM billing_eventtoseal")
        elif kind == "swap":
            swap(ids[place], ids[data.draw(st.integers(place + 1, len(ids) - 1))])
        else:
            sql("UPDATE audit_auditevent SET actor = 'mallory@evil.test' WHERE id = %s", ids[place])
            _compute_anew()

        try:
            assert found(), kind
        finally:
            _begin_anew(settings)


def _compute_anew() -> None:
    """Make the chain fit again, with the very code that made it."""
    ordered = [AuditEvent.objects.get(id=seal.event_id) for seal in AuditSeal.objects.order_by("seq")]
    sql("DELETE FROM billing_auditseal")
    AuditSeal.objects.bulk_create(seals._continue_chain(AUDIT, None, ordered, now=database_now()))


def _begin_anew(settings: Any) -> None:
    """Each generated tampering has a history of its own."""
    for table in ("billing_auditseal", "billing_ledgeranchor", "billing_eventtoseal", "audit_auditevent"):
        sql(f"DELETE FROM {table}")
    for path in (settings.RENSEI_LEDGER_ANCHORS, anchors.mark_path(), settings.RENSEI_LEDGER_ANCHOR_KEY):
        path.unlink(missing_ok=True)
