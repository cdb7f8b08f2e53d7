"""Exports of the ledger and of the audit log carry their chain: a person outside sees that nothing was changed."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from billing.integrity import anchors, digests, seals
from billing.integrity.chains import EVENT_COLUMNS, LINE_COLUMNS
from billing.integrity.sealed_file import NotAnExport, verify
from billing.models import CostEvent
from rensei import worker
from rensei.audit.models import AuditEvent
from rensei.orgs.models import Org, User
from tests.billing.ledger_triggers import triggers_lifted
from tests.drawn import examples

pytestmark = pytest.mark.django_db(transaction=True)

ROOT = Path(__file__).parents[2]
WHICH = {"ledger": ("--org", "acme"), "audit log": ("--audit",)}
Documents = list[dict[str, Any]]


def keep() -> None:
    seals.seal()
    anchors.anchor()


def export(*which: str) -> Documents:
    out = io.StringIO()
    call_command("export_ledger", *which, stdout=out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def text(documents: Documents) -> list[str]:
    return [json.dumps(document) + "\n" for document in documents]


def is_row(document: dict[str, Any]) -> bool:
    return "seq" in document


def compute_anew(documents: Documents) -> Documents:
    """Make the rows fit again, as a person without the key can, and drop the anchors, which they cannot sign."""
    head, *rest = documents
    rows, previous = [head], digests.START
    for seq, each in enumerate(filter(is_row, rest), start=1):
        previous = digests.of_row(each["row"], chain=head["chain"], seq=seq, previous=previous)
        rows.append({"seq": seq, "digest": previous, "row": each["row"]})
    return rows


@pytest.fixture
def history(acme: Org, eve: User, charge: Callable[..., CostEvent], ada: User) -> None:
    """Lines of two organizations and audit events, with an anchor after each, and a line that no anchor knows of."""
    evil = Org.objects.get(slug="evil")
    for number in range(4):
        charge()
        charge(org_id=evil.pk)
        AuditEvent.objects.create(
            org_id=acme.pk if number % 2 else None,
            actor=ada.email,
            action="x.done",
            object_id="é😀",
            detail={"size": 1.5},
        )
        keep()
    charge()
    AuditEvent.objects.create(actor=ada.email, action="x.done", object_id="last")
    seals.seal()


@pytest.fixture
def witness(settings: Any, history: None) -> list[str]:
    """What a witness outside holds: every anchor."""
    found: list[str] = Path(settings.RENSEI_LEDGER_ANCHORS).read_text().splitlines(keepends=True)
    return found


class TestAnExport:
    @pytest.mark.parametrize("which", WHICH.values(), ids=WHICH)
    def test_is_verified_without_database_key_or_settings(
        self, witness: list[str], which: tuple[str, ...], tmp_path: Path
    ) -> None:
        documents = export(*which)
        (tmp_path / "export").write_text("".join(text(documents)))
        (tmp_path / "witness").write_text("".join(witness))
        (tmp_path / "old").write_text("".join(witness[:-6]))
        command = [sys.executable, "-m", "billing.integrity.sealed_file", str(tmp_path / "export")]
        command += ["--witness", str(tmp_path / "witness"), "--witness", str(tmp_path / "old")]

        done = subprocess.run(command, cwd=ROOT, env={}, capture_output=True, text=True, check=False, timeout=60)

        assert done.returncode == 0, done.stdout + done.stderr
        fits, newest, old = done.stdout.splitlines()
        rows = len([each for each in documents if is_row(each)])
        assert fits == f"{rows} {documents[0]['rows']}(s): the chain fits in itself."
        assert f"vouches up to {documents[0]['rows']} {rows - 1}, by anchor" in newest
        assert newest.endswith("and not for the 1 after it.")
        assert f"vouches up to {documents[0]['rows']} {rows - 3}, by anchor" in old

    def test_holds_every_column_that_says_something(self, history: None) -> None:
        (line, *_) = (each["row"] for each in export("--org", "acme") if is_row(each))
        (event, *_) = (each["row"] for each in export("--audit") if is_row(each))

        assert set(line) == {name for name in LINE_COLUMNS if name in line}
        assert {"amount_picodollars", "occurred_at", "org_id"} <= set(line)
        assert set(event) <= set(EVENT_COLUMNS)

    def test_of_an_organization_holds_nothing_of_another(self, history: None, acme: Org) -> None:
        documents = export("--org", "acme")

        assert {each["row"]["org_id"] for each in documents if is_row(each)} == {acme.pk}
        assert {each["org"] for each in documents if "anchor" in each} == {acme.pk}

    def test_says_that_without_a_witness_little_is_shown(self, history: None, tmp_path: Path) -> None:
        (tmp_path / "export").write_text("".join(text(compute_anew(export("--audit")))))
        command = [sys.executable, "-m", "billing.integrity.sealed_file", str(tmp_path / "export")]

        done = subprocess.run(command, cwd=ROOT, env={}, capture_output=True, text=True, check=False, timeout=60)

        assert done.returncode == 0
        assert "No witness was given" in done.stdout

    def test_of_an_unknown_organization_is_refused(self, history: None) -> None:
        with pytest.raises(CommandError, match="no organization nowhere"):
            export("--org", "nowhere")

    def test_of_a_database_that_was_changed_is_wrong(self, history: None) -> None:
        line = CostEvent.objects.filter(org__slug="acme").order_by("id")[1]
        with triggers_lifted():
            CostEvent.objects.filter(pk=line.pk).update(pool_id="another")
            AuditEvent.objects.filter(object_id="é😀").delete()

        assert verify(text(export("--org", "acme")), {}).wrong == ["line 2: it is not what was sealed"]
        assert "it is missing, and its seal is not" in verify(text(export("--audit")), {}).wrong[0]


class TestTampering:
    @pytest.fixture(params=WHICH)
    def documents(self, request: pytest.FixtureRequest, witness: list[str]) -> Documents:
        return export(*WHICH[request.param])

    @hypothesis_settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_with_a_file_in_any_way_is_found(
        self, documents: Documents, witness: list[str], data: st.DataObject
    ) -> None:
        assert verify(text(documents), {"w": witness}).wrong == []
        changed = json.loads(json.dumps(documents))
        rows = [place for place, each in enumerate(changed) if is_row(each)]
        # The newest row is known to no witness, and can only be found by what stands after it.
        place = data.draw(st.sampled_from(rows[:-1]))
        row = changed[place]["row"]
        kind = data.draw(st.sampled_from(["column", "lost", "cut", "swap", "twice", "seq", "digest", "chain"]))
        if kind == "column":
            name = data.draw(st.sampled_from(sorted(row)))
            row[name] = data.draw(st.sampled_from(["another", 10**12, None, 0.5]))
        elif kind == "lost":
            del changed[place]
        elif kind == "cut":
            del changed[place:]
        elif kind == "swap":
            other = data.draw(st.sampled_from([each for each in rows if each != place]))
            changed[place]["row"], changed[other]["row"] = changed[other]["row"], row
        elif kind == "twice":
            # After the last one that is vouched for, anything may follow.
            place = rows[0] if place == rows[-2] else place
            changed.insert(place, json.loads(json.dumps(changed[place])))
        elif kind == "seq":
            changed[place]["seq"] += data.draw(st.sampled_from([-1, 1, 0.5]))
        elif kind == "digest":
            changed[place]["digest"] = "0" * 64
        else:
            changed[0][data.draw(st.sampled_from(["chain", "org"]))] = "org_another"
        if kind not in ("digest", "seq", "chain") and data.draw(st.booleans(), label="computed anew"):
            changed = compute_anew(changed)

        assert verify(text(changed), {"w": witness}).wrong, kind

    @hypothesis_settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_with_a_witness_in_any_way_is_found_or_vouches_for_less(
        self, documents: Documents, witness: list[str], data: st.DataObject
    ) -> None:
        held = [json.loads(line) for line in witness]
        place = data.draw(st.integers(0, len(held) - 1))
        name = data.draw(st.sampled_from(["digest", "lines", "previous", "signature"]))
        held[place][name] = 10**6 if name == "lines" else "0" * 64

        found = verify(text(documents), {"w": text(held)})

        # What the last anchor says of another chain, no later one confirms.
        of_another = held[place]["org"] != documents[0]["org"]
        is_last = place == len(held) - 1
        if not ((name == "previous" and place == 0) or (is_last and (of_another or name == "signature"))):
            assert found.wrong

    @hypothesis_settings(max_examples=examples(200), suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_never_ends_in_anything_but_a_verdict(
        self, documents: Documents, witness: list[str], data: st.DataObject
    ) -> None:
        values = st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=5,
        )
        lines, held = text(documents), list(witness)
        for target in (lines, held):
            place = data.draw(st.integers(0, len(target) - 1))
            document = json.loads(target[place])
            document[data.draw(st.sampled_from(sorted(document)))] = data.draw(values)
            other = json.dumps(data.draw(values))
            target[place] = data.draw(st.sampled_from([json.dumps(document), other, "[" * 5000]))

        with suppress(NotAnExport):
            verify(lines, {"w": held})


class TestAnAnchor:
    def test_is_made_at_least_every_minute_of_activity(self) -> None:
        jobs = {job.name: job for job in worker.JOBS}

        assert jobs["seal-ledger"].every + jobs["anchor-ledger"].every <= timedelta(seconds=65)
        assert jobs["anchor-ledger"].every <= timedelta(minutes=1)


def test_the_verifier_imports_nothing_that_needs_settings() -> None:
    asked = (
        "import sys, billing.integrity.sealed_file; print([name for name in sys.modules if name.startswith('django')])"
    )

    done = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, env={}, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
