"""
`python -m tests.operations.history make | go-on | look`: live a while in an installation, a while more, or look at it.

It runs in a process of its own, with the environment of the installation that is being tried.
"""

import json
import os
import secrets
import sys
from datetime import timedelta
from typing import Any

import django


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "rensei.settings")
    django.setup()
    {"make": _make, "go-on": _go_on, "look": _look}[sys.argv[1]]()


def _make() -> None:
    """Leave something in as many tables as can be, and something half done where that is possible."""
    from django.contrib.admin.models import CHANGE, LogEntry
    from django.contrib.auth.models import Group, Permission
    from django.contrib.contenttypes.models import ContentType
    from django.contrib.sessions.backends.db import SessionStore

    from billing.integrity import anchors, seals
    from billing.models import EventToSeal, LineToSeal
    from rensei.dispatch.settlement import audit
    from rensei.orgs import services as orgs
    from rensei.orgs.models import User
    from tests.chaos import world

    accesses = world.build(shared_runs=50)
    orgs.create_project(accesses["acme"], slug="my-project", name="My Project")
    operator = User.objects.create_superuser("grace@platform.test", "correct horse battery")
    readers = Group.objects.create(name="Readers of the ledger")
    readers.permissions.add(Permission.objects.get(codename="view_costevent"))
    operator.groups.add(readers)
    LogEntry.objects.create(
        user=operator,
        content_type=ContentType.objects.get_for_model(User),
        object_id=str(operator.pk),
        object_repr="Grace",
        action_flag=CHANGE,
    )
    session = SessionStore()
    session["seen"] = True
    session.create()
    for access in accesses.values():
        for mode in world.MODES:
            _dispatch(access, mode)
    _work()
    _settle_late(accesses["acme"])
    seals.seal()
    anchors.anchor()
    _dispatch(accesses["acme"], "metered")
    _work()
    assert LineToSeal.objects.exists(), "A line waits for its seal"
    orgs.create_project(accesses["acme"], slug="later", name="Later")
    assert EventToSeal.objects.exists(), "An audit event waits for its seal"
    assert audit.audit().difference_count == 0
    for mode in world.MODES:
        _dispatch(accesses["acme"], mode)  # Nobody takes these: they are queued when the database is moved.


def _go_on() -> None:
    """Take up what was left, and add to every chain and every sequence."""
    from billing.integrity import anchors, seals
    from rensei.dispatch.models import Run
    from rensei.dispatch.settlement import audit
    from rensei.orgs.access import for_member
    from rensei.orgs.models import User
    from tests.chaos import world

    owner = User.objects.get(email="owner@acme.test")
    access = for_member(user=owner, slug="acme")
    assert access is not None
    User.objects.create_user("new@acme.test", "correct horse battery")
    for mode in world.MODES:
        _dispatch(access, mode)
    _work()
    seals.seal()
    anchors.anchor()
    result = audit.audit()
    assert result.difference_count == 0, result.first_differences
    assert not Run.objects.filter(state=Run.State.QUEUED).exists()
    newest = Run.objects.order_by("-id")[: 2 * len(world.MODES)]
    assert {run.state for run in newest} == {Run.State.SUCCEEDED}, [run.error for run in newest]


def _look() -> None:
    """Say as JSON what `/readyz` answers, how many of the stored keys open, and what a new run comes to."""
    from django.conf import settings
    from django.test import Client

    from integrations.keys import credentials, platform
    from integrations.models import Integration, PlatformKey
    from rensei.core.errors import RenseiError
    from rensei.dispatch.models import Run
    from rensei.orgs.access import for_member
    from rensei.orgs.models import User

    settings.RENSEI_METRICS_TOKEN = secrets.token_urlsafe(16)
    known = {"Host": "127.0.0.1", "Authorization": f"Bearer {settings.RENSEI_METRICS_TOKEN}"}
    ready = Client(headers=known).get("/readyz")
    stored = [(credentials.open_key, key) for key in Integration.objects.select_related("org")]
    stored += [(platform.open_platform_key, key) for key in PlatformKey.objects.all()]
    codes = []
    for open_it, key in stored:
        try:
            open_it(key)
        except RenseiError as refusal:
            codes.append(refusal.code)
        else:
            codes.append("opens")
    access = for_member(user=User.objects.get(email="owner@acme.test"), slug="acme")
    assert access is not None
    run = Run.objects.get(pk=_dispatch(access, "byok").pk)
    _work()
    run.refresh_from_db()
    said = {
        "status": ready.status_code,
        "missing": ready.json()["missing"],
        "keys": sorted(set(codes)),
        "count": len(codes),
        "run": run.state,
        "code": (run.error or {}).get("code"),
    }
    print(json.dumps(said))


def _dispatch(access: Any, mode: str) -> Any:
    from rensei.dispatch.admission import admit
    from rensei.dispatch.admission.requests import DispatchRequest, messages_from
    from tests.chaos import world

    asked = messages_from(text="[[reply 20 words]] Über die See — 海.", messages=None)
    metadata = {"b": 1e16, "a": [0.1, None, True, {"ключ": "ü"}]}
    request = DispatchRequest(profile_id=world.profile_of(mode), messages=asked, metadata=metadata)
    return admit.dispatch(access, request, idempotency_key=os.urandom(8).hex(), body_digest="0" * 64)


def _work() -> None:
    from rensei.dispatch.execution.execute import execute
    from rensei.dispatch.execution.lease_renewal import LeaseRenewal
    from rensei.dispatch.queue import claims

    renewal = LeaseRenewal(owner="history")
    try:
        while (claim := claims.claim_next(owner=renewal.owner)) is not None:
            execute(claim, renewal)
    finally:
        renewal.close()


def _settle_late(access: Any) -> None:
    """Give a call up whose worker seems dead, and hear of its end afterwards: one line more, an adjustment."""
    from integrations.providers.base import Answer
    from rensei.core.clock import database_now
    from rensei.core.usage import Usage
    from rensei.dispatch.execution import reaper
    from rensei.dispatch.execution.lease_renewal import LiveRun
    from rensei.dispatch.execution.provider_call import ProviderCall
    from rensei.dispatch.models import Run
    from rensei.dispatch.queue import claims
    from rensei.dispatch.settlement import outcomes, settle

    _dispatch(access, "metered")
    claim = claims.claim_next(owner="frozen")
    assert claim is not None
    attempt = claims.open_attempt(claim.run, credential_id="pk_frozen", credential_version=1, input_tokens=7)
    assert attempt is not None
    Run.objects.filter(pk=claim.run.pk).update(lease_until=database_now() - timedelta(seconds=1))
    reaper.reap()
    answer = Answer(
        text="Late.", content=[], stop_reason="end_turn", usage=Usage(input_tokens=9, output_tokens=5), request_id="r"
    )
    call = ProviderCall(claim.run, LiveRun(claim.run, seconds_left=1), attempt)
    settle.write([outcomes.succeeded(call, answer, now=database_now())])


if __name__ == "__main__":
    main()
