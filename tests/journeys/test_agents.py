"""An agent from the Playground: a program goes into a sandbox, and what it has left is downloaded."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from integrations.models import Integration
from profiles.models import ModelProfile
from rensei import demo
from rensei.core.models import WorkerHeartbeat
from rensei.orgs.models import User
from tests.journeys.person import Person
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.outside,
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
]


class TestAMember:
    def test_gives_a_program_a_file_and_downloads_what_it_made_of_it(
        self, person: Person, mia: User, connected: Integration, make_profile: Callable[..., ModelProfile]
    ) -> None:
        make_profile(name="deep", auth_modes=["byok"])
        person.sign_in(mia)
        # What tests leave is deleted between them, with the worker's last heartbeat.
        wait_until(WorkerHeartbeat.objects.exists, what="a heartbeat of the worker")
        if not WorkerHeartbeat.objects.filter(offers_sandboxes=True).exists():
            pytest.skip("The worker of this machine starts no sandboxes.")
        person.follow("Playground")
        person.follow("Agent")
        person.type("Command", "python3 edit.py")
        person.type("Task", demo.AGENT_TASK)
        person.type("Files to keep", "notes.md")
        person.page.get_by_label("Files", exact=True).set_input_files(
            [
                {"name": "edit.py", "mimeType": "text/x-python", "buffer": demo.AGENT.read_bytes()},
                {"name": "notes.md", "mimeType": "text/markdown", "buffer": demo.NOTES.encode()},
            ]
        )
        person.click("Dispatch")

        expect(person.page).to_have_url(re.compile("/runs/run_"))
        expect(person.page.get_by_text("Succeeded", exact=True)).to_be_visible()
        expect(person.section("Output")).to_contain_text("notes.md has a title now")
        expect(person.section("Log")).to_contain_text("Asking for a summary.")
        expect(person.section("Timeline")).to_contain_text("2 calls to the model")
        with person.page.expect_download() as download:
            person.follow("Download notes.md")
        made = download.value.path().read_text()
        assert download.value.suggested_filename == "notes.md"
        assert made.startswith("# ")
        assert made.endswith(demo.NOTES)
