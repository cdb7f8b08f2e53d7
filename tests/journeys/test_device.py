"""A new machine: it asks, its owner approves on a phone, and it carries out its first run."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from profiles.models import ModelProfile
from rensei.orgs.models import User
from tests.journeys.person import Person
from tests.journeys.test_pages import barriers, misfits

pytestmark = [pytest.mark.browser, pytest.mark.outside, pytest.mark.django_db(transaction=True)]


class Machine:
    """A machine that knows nothing but the server's address."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.token = ""

    def post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.base_url}/api/v1/{path}",
            data=json.dumps(body).encode(),
            headers={
                "Content-Type": "application/json",
                **({"Authorization": f"Bearer {self.token}"} if self.token else {}),
            },
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def fetch_token(self, asked: dict[str, Any]) -> dict[str, Any]:
        let_in: dict[str, Any] = self.post("device-codes/token", {"deviceCode": asked["deviceCode"]})
        self.token = let_in["token"]
        return let_in


class TestANewMachine:
    def test_is_let_in_on_a_phone_and_carries_out_a_run(
        self, open_browser: Callable[..., Person], ada: User, make_profile: Callable[..., ModelProfile]
    ) -> None:
        make_profile(name="mine", auth_modes=["host-session"])
        person = open_browser(viewport={"width": 390, "height": 844})
        machine = Machine(person.base_url)
        asked = machine.post("device-codes", {"hostName": "adas-laptop"})
        with pytest.raises(urllib.error.HTTPError, match="428"):
            machine.fetch_token(asked)

        person.page.goto(asked["verificationUriComplete"])
        person.type("Email", ada.email)
        person.type("Password", "correct horse battery")
        person.click("Sign in")
        person.sees_heading("Let adas-laptop in?")
        person.sees(asked["userCode"])
        assert misfits(person) == []
        assert barriers(person) == []
        person.click("Approve")
        person.sees("adas-laptop is connected. Return to its terminal.")
        let_in = machine.fetch_token(asked)

        run = machine.post("runs", {"profileId": "prof_mine", "input": "Hi."})
        lease = machine.post(f"hosts/{let_in['host']['id']}/lease", {"wait": 20})
        report = {"state": "SUCCEEDED", "sent": True, "output": {"text": "Hello from the laptop."}}
        machine.post(f"runs/{run['id']}/lease/finish", {"epoch": lease["epoch"], **report})
        person.open(f"/o/acme/runs/{run['id']}")
        assert person.reads_the_answer() == "Hello from the laptop."
        person.open("/o/acme/settings/machines")
        person.sees("adas-laptop")
