"""A call through the gateway stores its row and nothing of what was said, and is refused where nothing more fits."""

from typing import Any

import pytest

from rensei import worker
from rensei.dispatch.models import Run, RunChunk, RunInput
from rensei.orgs import storage
from rensei.orgs.models import StoredBytes
from tests.gateway.line import message, settled
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

WORDS = "swordfish " * 5000


def counted() -> tuple[int, int]:
    row = StoredBytes.objects.get(org__slug="acme")
    return row.used, row.held


def test_a_call_counts_its_row_once_and_not_what_was_said(ask: Any, byok: Any) -> None:
    before = counted()

    assert ask(message(WORDS + "[[reply 300 words]]")).status == 200
    assert ask(message(WORDS + "[[reply 300 words]]", stream=True)).status == 200

    settled()
    sizes = list(Run.objects.values_list("stored_bytes", flat=True))
    assert counted() == (before[0] + sum(sizes), 0)
    assert all(storage.ROW_BYTES < size < 4096 for size in sizes)
    assert not RunInput.objects.exists()
    assert not RunChunk.objects.exists()
    assert worker.count_stored_bytes() == {}


def test_a_call_is_refused_for_good_where_the_limit_is_reached(ask: Any, byok: Any, simulator: Any) -> None:
    StoredBytes.objects.update(limit_mib=0)

    refused = ask(message())

    assert (refused.status, refused.code) == (403, "STORAGE_LIMIT_REACHED")
    assert refused.headers["x-should-retry"] == "false"
    assert not Run.objects.exists()
    assert simulator.requests() == []


def test_a_call_whose_judgement_is_older_than_the_limit_is_settled_and_counted(ask: Any, byok: Any) -> None:
    assert ask(message()).status == 200
    StoredBytes.objects.update(limit_mib=0)

    wait_until(lambda: ask(message()).status == 403, what="the refusal of a call with a newer judgement")

    settled()
    assert set(Run.objects.values_list("state", flat=True)) == {"SUCCEEDED"}
    assert worker.count_stored_bytes() == {}
