"""A member points an app at Rensei: the texts to copy work as they are, and the page turns green by itself."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.dispatch.models import Run
from rensei.orgs.models import User
from tests.journeys.person import Person

pytestmark = [
    pytest.mark.outside,
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
]


class TestAMember:
    def test_sends_a_first_request_from_an_app(
        self,
        person: Person,
        mia: User,
        connected: Integration,
        make_profile: Callable[..., ModelProfile],
        tmp_path: Path,
    ) -> None:
        make_profile(name="deep", auth_modes=["byok"])
        person.sign_in(mia)
        person.follow("Connect your app")
        person.click("Create token")
        person.click("Python", role="tab")
        program = person.page.get_by_role("tabpanel", name="Python").locator("code").inner_text()
        arrival = person.section("3. Send a request")
        expect(arrival).to_contain_text("Waiting for your first request")

        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
        )

        assert done.returncode == 0, done.stderr
        assert "Anthropic simulator" in done.stdout
        expect(arrival).to_contain_text("Your app is connected.")
        run = Run.objects.get()
        assert (run.via, run.created_by, run.profile_id) == ("gateway", mia, "prof_deep")
        person.follow("Open the run", within=arrival)
        person.sees("Succeeded")

        person.follow("Connect your app")
        person.click("curl", role="tab")
        command = person.page.get_by_role("tabpanel", name="curl").locator("code").inner_text()
        assert "$RENSEI_AUTH_TOKEN" in command
