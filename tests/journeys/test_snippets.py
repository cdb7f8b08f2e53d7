"""What the playground gives to copy works as it stands: in a shell, in Python, in a workflow."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect

from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.orgs.models import User
from rensei.tokens.services import create_token
from tests.journeys.person import Person

pytestmark = [
    pytest.mark.outside,
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
]

ROOT = Path(__file__).parents[2]
# Whatever a shell, Python, JSON or YAML could stumble over.
MESSAGE = 'It\'s "quoted", $HOME `date` \\ and {{ braces }}: 100 % – 日本\nsecond line'
SYSTEM = "Be 'brief'."


@pytest.fixture
def token(ada_access: Access) -> str:
    _, secret = create_token(ada_access, name="snippets")
    return str(secret.reveal())


@pytest.fixture
def copied(person: Person, ada: User, connected: Integration, make_profile: Callable[..., ModelProfile]) -> Any:
    """Fill in the playground, and read what is there to copy."""
    make_profile(name="deep", auth_modes=["byok"])
    person.sign_in(ada)
    person.follow("Playground")

    def fill(*, image: bytes | None = None) -> dict[str, str]:
        person.type("Message", MESSAGE)
        person.unfold("Advanced")
        person.type("System prompt", SYSTEM)
        person.choose("Reasoning Effort", "low")
        person.type("Max tokens", "2048")
        if image:
            attached = person.page.get_by_label("Images")
            attached.set_input_files({"name": "teal.png", "mimeType": "image/png", "buffer": image})
        texts = {}
        for name in ("curl", "CLI", "Python", "Workflow node"):
            person.click(name, role="tab")
            panel = person.page.get_by_role("tabpanel", name=name)
            expect(panel).to_contain_text("image-1.png" if image and name != "Workflow node" else "brief")
            expect(panel).to_contain_text("second line")
            # What was said last; a node has no limit of its own.
            expect(panel).to_contain_text('effort: "low"' if name == "Workflow node" else "2048")
            texts[name] = panel.locator("code").inner_text()
        return texts

    return fill


@pytest.fixture
def shell(person: Person, token: str, tmp_path: Path) -> Callable[..., str]:
    """Run something as a person would: in a folder of theirs, with their token in the environment."""

    def run(*words: str) -> str:
        environment = {**os.environ, "RENSEI_AUTH_TOKEN": token, "RENSEI_API_URL": person.base_url}
        environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        environment |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
        done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def expect_the_message(run: Run) -> None:
    body = run.input.body
    assert body["messages"][-1]["content"][-1]["text"] == MESSAGE
    assert body["system"] == SYSTEM
    assert (run.state, run.effort, run.max_tokens) == ("SUCCEEDED", "low", 2048)


class TestASnippet:
    def test_of_curl_the_command_and_python_dispatches_what_the_form_says(
        self, copied: Any, shell: Callable[..., str]
    ) -> None:
        texts = copied()

        answered = json.loads(shell("bash", "-c", texts["curl"]))
        shell("bash", "-c", texts["CLI"])
        printed = shell(sys.executable, "-c", texts["Python"])

        runs = list(Run.objects.order_by("id"))
        assert len(runs) == 3
        assert runs[0].id == answered["id"]
        assert printed.strip() == runs[2].output_text.strip()
        for run in runs:
            expect_the_message(run)

    def test_with_an_image_reads_it_from_a_file(self, copied: Any, shell: Callable[..., str], tmp_path: Path) -> None:
        # More than a shell takes as an argument.
        drawn = io.BytesIO()
        Image.frombytes("RGB", (256, 256), os.urandom(3 * 256 * 256)).save(drawn, "PNG")
        (tmp_path / "image-1.png").write_bytes(drawn.getvalue())
        texts = copied(image=drawn.getvalue())

        for name in ("curl", "CLI"):
            shell("bash", "-c", texts[name])
        shell(sys.executable, "-c", texts["Python"])

        for run in Run.objects.all():
            expect_the_message(run)
            assert run.input.body["messages"][0]["content"][0]["type"] == "image"
        assert Run.objects.count() == 3

    def test_of_a_workflow_node_is_a_workflow(self, copied: Any, shell: Callable[..., str], tmp_path: Path) -> None:
        (tmp_path / "node.yaml").write_text(copied()["Workflow node"])

        shell("rensei", "workflow", "apply", "node.yaml")
        shell("rensei", "workflow", "run", "answer")

        run = Run.objects.get()
        assert run.input.body["messages"][0]["content"][0]["text"] == MESSAGE
        assert run.input.body["system"] == SYSTEM
