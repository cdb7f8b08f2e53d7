"""The order of the queue: organizations and their projects take turns, within the limits that operators set."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, connections
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from billing.models import Entitlement
from rensei import worker
from rensei.core.clock import database_now
from rensei.core.ids import new_id
from rensei.core.unknown import take_counts
from rensei.dispatch.models import Run, RunChunk, RunInput
from rensei.dispatch.queue import claims, fair_order
from rensei.dispatch.queue.fair_order import Queue
from rensei.orgs.models import Org, Project
from tests.drawn import examples
from tests.waiting import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]


def organization(slug: str) -> Org:
    return Org.objects.create(name=slug, slug=slug)


def wait_in_line(org: Org, count: int = 1, *, project: Project | None = None, text: str = "Hi.") -> list[str]:
    """Put runs into the queue, as admitted. Their mode decides nothing here."""
    now = database_now()
    runs = [
        Run(
            id=new_id("run"),
            org=org,
            project=project,
            provider="claude",
            model_id="claude-opus-5-5",
            served_model_id="claude-opus-5-5",
            auth_mode="byok",
            payer="organization",
            max_tokens=100,
            deadline_at=now + timedelta(seconds=600, milliseconds=place),
            created_at=now,
        )
        for place in range(count)
    ]
    Run.objects.bulk_create(runs)
    body = {"system": None, "messages": [{"role": "user", "content": text}]}
    RunInput.objects.bulk_create(RunInput(run=run, body=body) for run in runs)
    return [run.id for run in runs]


def claim(owner: str = "a-worker") -> Run | None:
    found = claims.claim_next(owner=owner)
    return None if found is None else found.run


def claimed_orgs(count: int) -> list[str]:
    runs = [claim() for _ in range(count)]
    return [run.org.slug if run else "" for run in runs]


def end(run: Run) -> None:
    Run.objects.filter(id=run.id).update(state=Run.State.SUCCEEDED)


@pytest.fixture
def roomy(settings: Any) -> None:
    """No limit of a worker's threads."""
    settings.RENSEI_WORKER_THREADS_PER_ORG = 10_000


class TestTurns:
    def test_of_twenty_organizations_come_before_the_next_run_of_one_with_400(self, roomy: None) -> None:
        wait_in_line(organization("many"), 400)
        assert claimed_orgs(6) == ["many"] * 6
        others = [f"one-{number}" for number in range(20)]
        for slug in others:
            wait_in_line(organization(slug))

        assert claimed_orgs(20) == others
        assert claimed_orgs(1) == ["many"]

    def test_are_taken_where_every_run_ends_before_the_next_claim(self, roomy: None) -> None:
        for slug in ("first", "second", "third"):
            wait_in_line(organization(slug), 4)

        seen = []
        while (run := claim()) is not None:
            seen.append(run.org.slug)
            end(run)

        assert seen == ["first", "second", "third"] * 4

    def test_are_taken_by_the_projects_of_an_organization(self, roomy: None) -> None:
        org = organization("acme")
        web, api = (Project.objects.create(org=org, slug=slug, name=slug) for slug in ("web", "api"))
        wait_in_line(org, 50, project=web)
        wait_in_line(org, 2, project=api)
        wait_in_line(org, 2)

        seen = []
        for _ in range(6):
            run = claim()
            assert run is not None
            seen.append(run.project.slug if run.project else "")
            end(run)

        assert seen == ["", "web", "api"] * 2

    def test_go_to_the_project_that_has_the_fewest_runs_under_way(self, roomy: None) -> None:
        """None of the first project's runs ends, and the other one's end at once."""
        org = organization("acme")
        slow, quick, late = (
            Project.objects.create(org=org, slug=slug, name=slug) for slug in ("slow", "quick", "late")
        )
        wait_in_line(org, 10, project=slow)
        wait_in_line(org, 5, project=quick)
        Run.objects.filter(id__in=wait_in_line(org, 3, project=late)).update(deadline_at=long_ago())

        seen = []
        while len(seen) < 10:
            run = claim()
            assert run is not None
            seen.append(run.project.slug if run.project else "")
            if seen[-1] == "quick":
                end(run)

        assert seen == ["slow"] + ["quick"] * 5 + ["slow"] * 4

    def test_in_sandboxes_have_turns_of_their_own(self, roomy: None) -> None:
        org = organization("acme")
        for slug in ("web", "api"):
            project = Project.objects.create(org=org, slug=slug, name=slug)
            wait_in_line(org, 4, project=project)
            Run.objects.filter(id__in=wait_in_line(org, 4, project=project)).update(in_sandbox=True)

        seen = []
        for _ in range(4):
            for claim_one in (claims.claim_next_for_sandbox, claims.claim_next):
                claimed = claim_one(owner="a-worker")
                assert claimed is not None
                assert claimed.run.project is not None
                seen.append((claimed.run.project.slug, claimed.run.in_sandbox))
                end(claimed.run)

        assert Counter(seen) == dict.fromkeys([(slug, kind) for slug in ("web", "api") for kind in (True, False)], 2)

    def test_go_by_age_within_a_project(self, roomy: None) -> None:
        waiting = wait_in_line(organization("acme"), 5)

        assert [run.id for _ in waiting if (run := claim())] == waiting

    @given(
        loads=st.lists(st.integers(min_value=1, max_value=6), min_size=1, max_size=6),
        slots=st.integers(min_value=1, max_value=5),
        choices=st.randoms(use_true_random=False),
    )
    @hypothesis_settings(max_examples=examples(25), deadline=None)
    def test_leave_no_organization_behind_however_runs_end(self, loads: list[int], slots: int, choices: Any) -> None:
        """While an organization waits, no other one is given two runs more than it has had since, and all are run."""
        Org.objects.filter(slug__startswith="drawn-").delete()
        waiting = {}
        for number, load in enumerate(loads):
            wait_in_line(organization(f"drawn-{number}"), load)
            waiting[f"drawn-{number}"] = load
        under_way: list[Run] = []
        had: Counter[str] = Counter()

        while any(waiting.values()) or under_way:
            run = claim() if len(under_way) < slots else None
            if run is None:
                assert under_way, "a run waits, and none is claimed"
                end(under_way.pop(choices.randrange(len(under_way))))
                continue
            under_way.append(run)
            waiting[run.org.slug] -= 1
            busy = Counter(each.org.slug for each in under_way)
            others = [slug for slug, left in waiting.items() if left and slug != run.org.slug]
            assert all(busy[run.org.slug] <= busy[slug] + 1 for slug in others)
            had[run.org.slug] += 1
        assert sum(had.values()) == sum(loads)


class TestTheLimit:
    def test_of_an_organization_holds_its_runs_back_and_no_others(self, roomy: None, settings: Any) -> None:
        settings.RENSEI_ORG_RUNS_AT_ONCE = 3
        many, few = organization("many"), organization("few")
        wait_in_line(many, 10)
        Entitlement.objects.update_or_create(org=few, defaults={"runs_at_once": 1})
        wait_in_line(few, 3)

        seen = claimed_orgs(5)

        assert Counter(seen) == {"many": 3, "few": 1, "": 1}

    def test_is_free_again_when_a_run_ends_or_its_worker_died(self, roomy: None, settings: Any) -> None:
        settings.RENSEI_ORG_RUNS_AT_ONCE = 2
        wait_in_line(organization("acme"), 10)
        first, second = claim(), claim()
        assert first
        assert second
        assert claim() is None

        end(first)
        Run.objects.filter(id=second.id).update(lease_until=database_now() - timedelta(seconds=1))

        assert claimed_orgs(3) == ["acme", "acme", ""]

    def test_of_a_workers_threads_leaves_the_others_free(self, settings: Any) -> None:
        settings.RENSEI_WORKER_THREADS_PER_ORG = 2
        wait_in_line(organization("acme"), 10)

        assert claimed_orgs(3) == ["acme", "acme", ""]
        assert claim("another-worker") is not None

    @pytest.mark.parametrize("_again", range(3))
    def test_holds_when_many_workers_claim_at_once(self, roomy: None, settings: Any, _again: int) -> None:
        settings.RENSEI_ORG_RUNS_AT_ONCE = 5
        for slug in ("first", "second"):
            wait_in_line(organization(slug), 20)
        together = threading.Barrier(8)
        got: list[str] = []

        def work(number: int) -> None:
            together.wait()
            for _ in range(6):
                run = claim(f"worker-{number}")
                if run is not None:
                    got.append(run.id)
            connections.close_all()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        while (run := claim()) is not None:
            got.append(run.id)

        assert len(set(got)) == len(got)
        assert Counter(Run.objects.filter(id__in=got).values_list("org__slug", flat=True)) == {"first": 5, "second": 5}


class TestARunThatCannotBeRead:
    def test_is_set_aside_reported_and_holds_up_no_other(self, roomy: None) -> None:
        take_counts()
        org = organization("acme")
        bad, good = wait_in_line(org, 2)
        (other,) = wait_in_line(organization("other"))
        # The number of the event that a claim writes is taken.
        RunChunk.objects.create(run_id=bad, seq=1, kind=RunChunk.Kind.STATE, data={})

        claimed = {run.id for _ in range(3) if (run := claim())}

        assert claimed == {good, other}
        assert take_counts() == {("failed_row", f"claim {bad}"): 1}
        assert Run.objects.get(id=bad).state == Run.State.RUNNING

    def test_waits_again_when_its_lease_is_over(self, roomy: None) -> None:
        (bad,) = wait_in_line(organization("acme"))
        chunk = RunChunk.objects.create(run_id=bad, seq=1, kind=RunChunk.Kind.STATE, data={})
        assert claim() is None
        chunk.delete()

        Run.objects.filter(id=bad).update(lease_until=database_now() - timedelta(seconds=1))
        claims.requeue_unsent(now=database_now())
        run = claim()

        assert run is not None
        assert run.id == bad
        take_counts()


class TestTheCost:
    def test_of_a_choice_is_the_same_for_400_and_4000_waiting_runs(self, roomy: None) -> None:
        org = organization("many")
        others = [organization(f"one-{number}") for number in range(20)]
        for other in others:
            wait_in_line(other)
        wait_in_line(org, 400)
        few = work_of_a_choice()
        wait_in_line(org, 3600)

        many = work_of_a_choice()

        # A tree of ten times as many entries is one level deeper at most.
        assert many < 1.5 * few

    def test_of_a_choice_is_the_same_for_150_and_for_500_projects(self, roomy: None) -> None:
        org = organization("many")

        def projects(first: int, last: int) -> None:
            made = [Project(org=org, slug=f"p-{number}", name="P") for number in range(first, last)]
            for project in Project.objects.bulk_create(made):
                wait_in_line(org, project=project)
            # Of the first five projects, runs are under way.
            for _ in range(5 if first == 0 else 0):
                claim()

        # With fewer, all of an index is in one page, and each of its pages counts.
        few = work_of_a_choice(before=lambda: projects(0, 150))
        many = work_of_a_choice(before=lambda: projects(150, 500))

        assert many < 1.5 * few

    def test_of_a_choice_is_the_same_after_many_runs_passed_their_deadline(self, roomy: None) -> None:
        late = wait_in_line(organization("late"), 200)
        wait_in_line(organization("other"), 2)
        few = work_of_a_choice(before=lambda: Run.objects.filter(id__in=late[:100]).update(deadline_at=long_ago()))

        many = work_of_a_choice(before=lambda: Run.objects.filter(id__in=late).update(deadline_at=long_ago()))

        assert many < 1.5 * few

    def test_of_a_claim_is_nine_statements(self, roomy: None, django_assert_num_queries: Callable[..., Any]) -> None:
        """Those that begin and end its transaction are among them."""
        wait_in_line(organization("acme"), 2)
        claim()

        with django_assert_num_queries(9):
            claim()


def long_ago() -> Any:
    return database_now() - timedelta(hours=1)


# What a choice reads. Statistics of an empty table, as another test may have left it, make the planner choose badly.
READ = ["dispatch_run", "dispatch_turn", "orgs_org", "orgs_project", "billing_entitlement"]


def work_of_a_choice(before: Callable[[], object] = lambda: None) -> int:
    """Count the work of choosing: instructions on SQLite, pages on PostgreSQL. Neither depends on a clock."""
    before()
    connection.ensure_connection()
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE" if connection.vendor == "sqlite" else f"VACUUM ANALYZE {', '.join(READ)}")
    if connection.vendor == "sqlite":
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        connection.connection.set_progress_handler(count, 10)
        assert fair_order.choose(Queue.PLAIN, owner="a-worker", now=database_now(), held_at_most=8) is not None
        connection.connection.set_progress_handler(None, 0)
        return steps
    pages = 0
    choose = fair_order._first

    def explained(sql: str, values: dict[str, Any]) -> Any:
        nonlocal pages
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", values)
            (plan,) = cursor.fetchone()
        plan = json.loads(plan) if isinstance(plan, str) else plan
        pages += plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"]
        return choose(sql, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fair_order, "_first", explained)
        assert fair_order.choose(Queue.PLAIN, owner="a-worker", now=database_now(), held_at_most=8) is not None
    return pages


class TestAWorker:
    @pytest.mark.parametrize("attackers", [["slow"], ["slow", "slower"]], ids=["one", "two"])
    def test_starts_the_runs_of_twenty_while_all_slow_ones_of_another_are_under_way(
        self, settings: Any, monkeypatch: pytest.MonkeyPatch, attackers: list[str]
    ) -> None:
        """None of the slow runs ends, so each of the twenty starts in a thread that was left free for them."""
        settings.RENSEI_WORKER_THREADS, settings.RENSEI_WORKER_THREADS_PER_ORG = 4, 3
        slow = [run_id for slug in attackers for run_id in wait_in_line(organization(slug), 400 // len(attackers))]
        release = threading.Event()
        ended = []

        def execute(claim: claims.Claim, renewal: Any) -> None:
            if claim.run.org.slug in attackers:
                release.wait(120)
            else:
                ended.append(claim.run.id)
                end(claim.run)
            connections.close_all()

        monkeypatch.setattr(worker, "execute", execute)
        ours = worker.Worker()
        thread = threading.Thread(target=ours.run)
        thread.start()
        try:
            held = Run.objects.filter(id__in=slow, state=Run.State.RUNNING)
            wait_until(lambda: held.count() == 3, seconds=60)
            others = [wait_in_line(organization(f"one-{number}"))[0] for number in range(20)]
            wait_until(lambda: len(ended) == 20, seconds=60)

            assert ended == others
            assert held.count() == 3
        finally:
            ours.stop()
            release.set()
            thread.join(timeout=60)
