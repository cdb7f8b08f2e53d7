"""A plan comes from its seed and from nothing else."""

from collections import Counter
from typing import Any

from tests.chaos import plan
from tests.chaos.plan import Kind


def draw(**changes: Any) -> plan.Plan:
    values = {"seed": 7, "runs": 500, "kills": 100, "restarts_database": True, "restarts_broker": True}
    return plan.draw(**{**values, **changes})


class TestDraw:
    def test_gives_the_same_plan_for_the_same_seed(self):
        assert draw() == draw()
        assert draw().digest == draw().digest

    def test_gives_another_plan_for_another_seed(self):
        assert draw(seed=8).digest != draw().digest

    def test_plans_as_many_runs_and_kills_as_were_asked_for(self):
        drawn = draw()

        kinds = Counter(event.kind for event in drawn.events)
        assert [run.number for run in drawn.runs] == list(range(500))
        assert kinds == {
            Kind.KILL: 100,
            Kind.FREEZE: 10,
            Kind.TERMINATE: 4,
            Kind.RESTART_DATABASE: 1,
            "restart-broker": 1,
        }

    def test_restarts_only_what_there_is(self):
        drawn = draw(restarts_database=False, restarts_broker=False)

        assert not {Kind.RESTART_DATABASE, Kind.RESTART_BROKER} & {event.kind for event in drawn.events}

    def test_draws_every_organization_mode_and_fault(self):
        drawn = draw()

        assert {run.org for run in drawn.runs} == set(plan.ORGS)
        assert {run.mode for run in drawn.runs} == set(plan.MODES)
        for fault in plan.PROMPTS:
            assert any(fault.split("{")[0] in run.prompt for run in drawn.runs), fault

    def test_refers_only_to_runs_that_were_dispatched_before(self):
        for run in draw().runs:
            assert run.cancels is None or run.cancels <= run.number
            assert run.rings_for is None or run.rings_for <= run.number

    def test_gives_a_wrong_clock_to_one_worker_only(self):
        for event in draw().events:
            assert (event.skew_hours != 0) == (event.place == plan.SKEWED)
