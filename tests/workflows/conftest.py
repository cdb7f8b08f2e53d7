"""What workflow tests need: the stage of the dispatch tests, and the documentation's profile and node."""

from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import pytest

from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.orgs.models import Project
from rensei.worker import Worker
from tests.dispatch.conftest import work

__all__ = ["work"]

# Exactly as the documentation prints it.
DOCUMENTED = """\
nodeId: llm_call_1
nodeType: action/llm.inference
config:
  profileId: prof_anthropic_deep_reasoning
  systemPrompt: "You are an expert problem solver. Think deeply."
"""


@pytest.fixture
def ready(simulator: Any, connect: Callable[..., Integration], make_profile: Callable[..., ModelProfile]) -> Any:
    """A connected key and the profile `prof_deep`; gives the simulator."""
    connect()
    make_profile()
    return simulator


@pytest.fixture
def deep_reasoning(make_profile: Callable[..., ModelProfile], project: Project) -> ModelProfile:
    """The documentation's example profile."""
    return make_profile(
        name="anthropic-deep-reasoning",
        model_id="claude-opus-4-1-20250514",
        auth_modes=["byok", "metered"],
        effort="high",
        scope="project",
        project=project,
    )


@pytest.fixture
def worker(transactional_db: None) -> Iterator[Worker]:
    """A worker as the process has it, in a thread."""
    worker = Worker()
    thread = Thread(target=worker.run)
    thread.start()
    yield worker
    worker.stop()
    thread.join(timeout=40)
    assert not thread.is_alive()


def node(node_id: str, prompt: str | None = None, *, needs: list[str] | None = None, **config: Any) -> dict[str, Any]:
    """Describe a node that asks `prof_deep`."""
    asked = {"profileId": "prof_deep", **({"prompt": prompt} if prompt is not None else {}), **config}
    return {"nodeId": node_id, "nodeType": "action/llm.inference", "config": asked, "needs": needs or []}


def workflow(*nodes: dict[str, Any], name: str = "flow") -> dict[str, Any]:
    return {"name": name, "nodes": list(nodes)}
