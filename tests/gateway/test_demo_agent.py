"""The agent of the demo: its program really runs in bubblewrap, and edits the file that it was given."""

from typing import Any

import pytest

from rensei import demo
from rensei.dispatch import services
from rensei.dispatch.models import Run

pytestmark = pytest.mark.django_db(transaction=True)


def test_edits_its_file(catalog: None, simulator: Any, finish: Any) -> None:
    demo.create()
    services.request_cancel(demo.first_run())
    agent = demo.agent_run()
    assert agent is not None

    run = finish(agent)

    assert (run.state, run.error, run.attempt_count) == (Run.State.SUCCEEDED, None, 2)
    edited = bytes(run.files.get(path="notes.md").content).decode()
    assert edited.startswith("# ")
    assert edited.endswith(demo.NOTES)
    assert len(edited) > len(demo.NOTES) + 50
