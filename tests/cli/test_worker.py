"""`rensei worker`: it takes what waits for its machine, whatever happens to it and to the server."""

import signal
import time

import pytest

from billing.models import CostEvent
from rensei.dispatch.models import Run
from tests.cli import logins
from tests.cli.ending import PATIENCE_SECONDS, end
from tests.waiting import wait_until

pytestmark = pytest.mark.outside


def state() -> str:
    return Run.objects.get().state


class TestWorker:
    def dispatch(self, machine, profile: str, text: str = "Hello") -> str:
        return machine.succeed(f"rensei dispatch --profile {profile} --input '{text}' --no-wait").strip()

    def test_carries_out_what_waits_and_ends_with_ctrl_c(self, machine, console, here):
        self.dispatch(machine, here)

        worker = machine.start("rensei worker")
        wait_until(lambda: state() == "SUCCEEDED", seconds=PATIENCE_SECONDS)
        written = end(worker)

        assert worker.returncode == 0
        assert "Stopped." in written

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_ends_the_run_under_way_before_it_stops(self, machine, here, number):
        called = logins.install_stand_in(machine, seconds=1)
        machine.succeed("rensei setup --login claude-code")
        self.dispatch(machine, here)

        worker = machine.start("rensei worker")
        wait_until(called.exists, seconds=PATIENCE_SECONDS)
        written = end(worker, number)

        assert worker.returncode == 0
        assert state() == "SUCCEEDED"
        assert "Finishing the run under way" in written

    def test_gives_a_run_up_at_a_second_ctrl_c(self, machine, here):
        called = logins.install_stand_in(machine, seconds=30)
        machine.succeed("rensei setup --login claude-code")
        self.dispatch(machine, here)

        worker = machine.start("rensei worker")
        wait_until(called.exists, seconds=PATIENCE_SECONDS)
        worker.send_signal(signal.SIGINT)
        time.sleep(1)
        end(worker)

        assert worker.returncode == 130
        assert state() == "CANCELLED"

    def test_stops_a_run_that_is_cancelled_elsewhere(self, machine, here):
        called = logins.install_stand_in(machine, seconds=30)
        machine.succeed("rensei setup --login claude-code")
        run_id = self.dispatch(machine, here)

        worker = machine.start("rensei worker")
        wait_until(called.exists, seconds=PATIENCE_SECONDS)
        machine.succeed(f"rensei run cancel {run_id}")
        wait_until(lambda: state() == "CANCELLED", seconds=PATIENCE_SECONDS)
        end(worker)

    def test_stops_working_on_a_run_that_it_lost_and_says_so(self, machine, here):
        called = logins.install_stand_in(machine, seconds=30)
        machine.succeed("rensei setup --login claude-code")
        self.dispatch(machine, here)

        worker = machine.start("rensei worker")
        wait_until(called.exists, seconds=PATIENCE_SECONDS)
        # What the reaper does to a worker that was silent for too long, and to one that comes back.
        Run.objects.update(epoch=99, lease_owner="somebody else")
        told = iter(worker.stdout.readline, "")
        assert any("LEASE_LOST" in line for line in told)
        end(worker)

    @pytest.mark.parametrize("count", [1, 4])
    def test_never_takes_the_run_of_another_worker(self, machine, console, here, simulator, count):
        workers = [machine.start("rensei worker") for _ in range(2)]
        for worker in workers:
            worker.stdout.readline()

        runs = [self.dispatch(machine, here) for _ in range(count)]
        wait_until(lambda: not Run.objects.exclude(state="SUCCEEDED").exists(), seconds=PATIENCE_SECONDS)
        written = [end(worker) for worker in workers]

        assert len([one for one in simulator.requests() if one["path"] == "/v1/messages"]) == count
        assert CostEvent.objects.count() == count
        for run in runs:
            assert len([one for one in written if f"{run}: SUCCEEDED" in one]) == 1

    def test_keeps_its_run_while_the_server_is_restarted(self, machine, here, server):
        called = logins.install_stand_in(machine, seconds=3)
        machine.succeed("rensei setup --login claude-code")
        self.dispatch(machine, here)

        worker = machine.start("rensei worker")
        wait_until(called.exists, seconds=PATIENCE_SECONDS)
        server.web.stop()
        held = state()
        server.web.start()
        server.wait_until_it_answers()
        wait_until(lambda: state() == "SUCCEEDED", seconds=PATIENCE_SECONDS)
        written = end(worker)

        assert held == "RUNNING"
        assert worker.returncode == 0, written
        assert Run.objects.get().output_text == "Slow and steady."
        assert CostEvent.objects.count() == 1

    def test_waits_for_a_server_that_is_away(self, machine, console, here, server):
        worker = machine.start("rensei worker")
        worker.stdout.readline()
        server.web.stop()
        away = worker.stdout.readline()
        server.web.start()
        server.wait_until_it_answers()
        self.dispatch(machine, here)
        wait_until(lambda: state() == "SUCCEEDED", seconds=PATIENCE_SECONDS)
        written = end(worker)

        assert "Trying again until it does" in away
        assert "The server answers again." in written
