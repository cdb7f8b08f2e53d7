"""The signed receipt of a run: what it says, when there is one, and that nothing of it can be changed unnoticed."""

import copy
import json
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rest_framework.test import APIClient

from billing.integrity import anchor_keys, anchors, seals
from billing.integrity.chains import LEDGER
from billing.integrity.digests import START
from billing.models import CostEvent, LedgerAnchor, LedgerSeal
from rensei.cli import receipts as verifier
from rensei.cli.errors import Refused
from rensei.core.money import dollars
from rensei.dispatch import checks, receipts
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from tests.billing.ledger_triggers import triggers_lifted

HELLO = {"role": "user", "content": [{"type": "text", "text": "Grüße, 世界."}]}


def seal_and_sign() -> None:
    seals.seal()
    anchors.anchor()


@pytest.fixture
def ended(ada_access: Access, connect: Any, make_profile: Any, work: Callable[[], list[Run]], simulator: Any) -> Run:
    """A run that has ended, before its line is sealed."""
    connect()
    make_profile()
    admit.dispatch(ada_access, DispatchRequest(profile_id="prof_deep", messages=[HELLO]))
    (run,) = work()
    return run


@pytest.fixture
def api(ada: Any, ada_access: Access, api_as: Callable[..., APIClient]) -> APIClient:
    return api_as(ada)


@pytest.mark.django_db(transaction=True)
class TestReceipt:
    def test_says_what_the_ledger_says_and_verifies_with_the_published_key(self, api: APIClient, ended: Run) -> None:
        seal_and_sign()

        document = api.get(f"/api/v1/runs/{ended.id}/receipt").json()
        keys = APIClient().get("/api/v1/receipt-keys").json()

        said = verifier.verify(verifier.parse(json.dumps(document)), keys)
        (line,) = CostEvent.objects.all()
        assert (said["authMode"], said["payer"], said["place"]["pool"]) == ("byok", "organization", "local")
        assert said["credential"]["id"] == ended.credential_id == line.credential_id
        assert said["total"]["amountUsd"] == dollars(line.amount_picodollars)
        assert [one["seal"]["seq"] for one in said["lines"]] == [1]
        assert said["ledger"]["anchor"]["lines"] == 1
        assert document["kid"] == keys["keys"][0]["kid"]

    def test_does_not_exist_before_the_end_the_seal_and_the_signature(
        self, api: APIClient, ada_access: Access, ended: Run
    ) -> None:
        queued = admit.dispatch(ada_access, DispatchRequest(profile_id="prof_deep", messages=[HELLO]))

        answers = [api.get(f"/api/v1/runs/{queued.id}/receipt"), api.get(f"/api/v1/runs/{ended.id}/receipt")]
        seals.seal()
        answers.append(api.get(f"/api/v1/runs/{ended.id}/receipt"))

        assert [(one.status_code, one.json()["code"]) for one in answers] == [(409, "RECEIPT_NOT_READY")] * 3
        assert len({one.json()["detail"] for one in answers}) == 3

    def test_of_a_line_that_was_changed_is_not_signed(self, api: APIClient, ended: Run) -> None:
        seal_and_sign()
        with triggers_lifted():
            CostEvent.objects.update(profile_id="prof_other")

        answer = api.get(f"/api/v1/runs/{ended.id}/receipt")

        assert (answer.status_code, answer.json()["code"]) == (409, "RECEIPT_DISAGREES")

    def test_of_a_line_that_was_changed_together_with_its_seal_is_not_signed(self, api: APIClient, ended: Run) -> None:
        seal_and_sign()
        with triggers_lifted():
            CostEvent.objects.update(profile_id="prof_other")
            LedgerSeal.objects.update(digest=LEDGER.digest(CostEvent.objects.get(), seq=1, previous=START))

        answer = api.get(f"/api/v1/runs/{ended.id}/receipt")

        assert (answer.status_code, answer.json()["code"]) == (409, "RECEIPT_DISAGREES")

    def test_of_a_later_line_that_is_missing_before_the_anchor_is_not_signed(
        self, api: APIClient, ended: Run, ada_access: Access, work: Callable[[], list[Run]]
    ) -> None:
        admit.dispatch(ada_access, DispatchRequest(profile_id="prof_deep", messages=[HELLO]))
        (later,) = work()
        seal_and_sign()
        before = api.get(f"/api/v1/runs/{ended.id}/receipt").status_code
        with triggers_lifted():
            CostEvent.objects.filter(run_id=later.id).delete()

        answer = api.get(f"/api/v1/runs/{ended.id}/receipt")

        assert before == 200
        assert (answer.status_code, answer.json()["code"]) == (409, "RECEIPT_DISAGREES")

    @pytest.mark.parametrize("change", [{"payer": "platform"}, {"auth_mode": "shared"}, {"provider": "other"}])
    def test_of_a_run_that_differs_from_its_lines_is_not_signed(
        self, api: APIClient, ended: Run, change: dict[str, str]
    ) -> None:
        seal_and_sign()
        Run.objects.filter(pk=ended.pk).update(**change)

        answer = api.get(f"/api/v1/runs/{ended.id}/receipt")

        assert (answer.status_code, answer.json()["code"]) == (409, "RECEIPT_DISAGREES")

    def test_is_not_signed_without_the_key(self, api: APIClient, ended: Run, settings: Any) -> None:
        seal_and_sign()
        settings.RENSEI_LEDGER_ANCHOR_KEY.unlink()

        answer = api.get(f"/api/v1/runs/{ended.id}/receipt")

        assert (answer.status_code, answer.json()["code"]) == (503, "RECEIPT_KEY_UNAVAILABLE")
        assert APIClient().get("/api/v1/receipt-keys").json() == {"keys": []}

    def test_of_a_cancelled_run_has_no_lines(self, api: APIClient, ada_access: Access, ended: Run) -> None:
        seal_and_sign()
        queued = admit.dispatch(ada_access, DispatchRequest(profile_id="prof_deep", messages=[HELLO]))
        api.post(f"/api/v1/runs/{queued.id}/cancel")

        said = api.get(f"/api/v1/runs/{queued.id}/receipt").json()["receipt"]

        assert (said["run"]["state"], said["lines"], said["ledger"]["anchor"]) == ("CANCELLED", [], None)

    def test_never_holds_the_key(self, api: APIClient, ended: Run, settings: Any) -> None:
        seal_and_sign()

        text = api.get(f"/api/v1/runs/{ended.id}/receipt").content.decode()

        assert settings.RENSEI_LEDGER_ANCHOR_KEY.read_text().strip() not in text
        assert LedgerAnchor.objects.exclude(org=None).get().signature not in text

    def test_of_an_earlier_anchor_key_verifies_while_its_public_key_is_listed(
        self, api: APIClient, ended: Run, settings: Any, tmp_path: Any
    ) -> None:
        seal_and_sign()
        document = api.get(f"/api/v1/runs/{ended.id}/receipt").json()
        (earlier,) = receipts.public_keys()
        settings.RENSEI_LEDGER_ANCHOR_KEY = tmp_path / "next.key"
        anchor_keys.create(settings.RENSEI_LEDGER_ANCHOR_KEY)

        with pytest.raises(Refused, match="not among those given"):
            verifier.verify(document, {"keys": receipts.public_keys()})
        settings.RENSEI_RECEIPT_KEYS_BEFORE = [earlier["x"]]

        assert [key["status"] for key in receipts.public_keys()] == ["active", "replaced"]
        assert verifier.verify(document, {"keys": receipts.public_keys()})["run"]["id"] == ended.id


class TestEarlierKeys:
    @pytest.mark.parametrize("wrong", ["", "no key", "AAAA", "ä" * 43, "A" * 42 + "B"])
    def test_that_are_none_are_refused_at_the_start(self, settings: Any, wrong: str) -> None:
        settings.RENSEI_RECEIPT_KEYS_BEFORE = [receipts.encoded(bytes(32)), wrong]

        (found,) = checks.earlier_receipt_keys(None)

        assert found.id == "rensei.E006"
        assert "Entry 2 of RENSEI_RECEIPT_KEYS_BEFORE" in found.msg


@pytest.mark.django_db(transaction=True)
class TestTampering:
    def test_with_any_value_is_refused(self, api: APIClient, ended: Run) -> None:
        seal_and_sign()
        document = api.get(f"/api/v1/runs/{ended.id}/receipt").json()
        keys = {"keys": receipts.public_keys()}
        changed = list(changes(document))

        for place, other in changed:
            with pytest.raises(Refused) as caught:
                verifier.verify(other, keys)
            assert caught.value.code in {"RECEIPT_INVALID", "RECEIPT_KEY_UNKNOWN"}, place
        # Each value, each name and each list of the document, in several ways.
        assert len(changed) > 250

    def test_with_the_text_is_refused_or_changes_nothing(self, api: APIClient, ended: Run) -> None:
        seal_and_sign()
        text = api.get(f"/api/v1/runs/{ended.id}/receipt").content.decode()
        keys = {"keys": receipts.public_keys()}
        genuine = verifier.canonical(json.loads(text))

        @given(st.integers(0, len(text) - 1), st.characters(codec="utf-8"), st.sampled_from(["put", "drop", "add"]))
        def change(place: int, letter: str, how: str) -> None:
            written = "" if how == "drop" else letter
            other = text[:place] + written + text[place + (how != "add") :]
            try:
                document = verifier.parse(other)
                verifier.verify(document, keys)
            except Refused:
                return
            assert verifier.canonical(document) == genuine

        change()

    def test_with_the_signature_by_another_key_is_refused(self, api: APIClient, ended: Run, settings: Any) -> None:
        seal_and_sign()
        document = api.get(f"/api/v1/runs/{ended.id}/receipt").json()
        said = {name: value for name, value in document.items() if name != "signature"}
        forged = receipts.signing.sign(receipts.canonical(said), secrets.token_bytes(32), purpose=receipts.PURPOSE)

        with pytest.raises(Refused, match="does not belong"):
            verifier.verify({**document, "signature": receipts.encoded(forged)}, {"keys": receipts.public_keys()})

    def test_with_a_name_written_twice_is_refused(self) -> None:
        with pytest.raises(Refused, match="twice"):
            verifier.parse('{"format": "a", "format": "rensei-receipt-1"}')


def changes(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every document that differs in one place: another value, a missing member, an added one, a longer list."""
    for path in places(document):
        for change in others(value_at(document, path)):
            other = copy.deepcopy(document)
            value_at(other, path[:-1])[path[-1]] = change
            yield f"{path} = {change!r}", other
        other = copy.deepcopy(document)
        del value_at(other, path[:-1])[path[-1]]
        yield f"without {path}", other
        if isinstance(value_at(document, path), dict):
            other = copy.deepcopy(document)
            value_at(other, path)["added"] = None
            yield f"{path} with another", other


def others(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value, None]
    if isinstance(value, int):
        return [value + 1, str(value), None]
    if isinstance(value, str):
        return [f"{value}x", value.swapcase() if value.swapcase() != value else f"x{value}", None]
    if isinstance(value, list):
        return [value + value[:1] or [None], [*value, {}], None]
    return [None] if value is not None else ["x", 0, False]


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    steps = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for step, value in steps:
        yield (*path, step)
        yield from places(value, (*path, step))


def value_at(node: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        node = node[step]
    return node
