"""The opening of a key by a run of the queue is recorded with its attempt."""

from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from integrations.models import KeyOpening
from integrations.vault import openings
from profiles.models import ModelProfile
from rensei.dispatch.models import Run
from rensei.orgs.models import User


class TestARun:
    @pytest.mark.usefixtures("simulator", "connected")
    def test_is_named_by_the_opening_of_its_key(
        self, api_as: Callable[..., APIClient], ada: User, make_profile: Callable[..., ModelProfile], work: Any
    ) -> None:
        make_profile(auth_modes=["byok"])
        client = api_as(ada)
        sent = client.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hello."}).json()
        work()

        assert Run.objects.get().state == Run.State.SUCCEEDED
        # Written with the attempt, and by no thread.
        (one,) = KeyOpening.objects.all()
        assert (one.run_id, one.reason, one.token_id) == (sent["id"], "dispatch", Run.objects.get().token_id)
        assert openings._waiting == {}
        shown = client.get("/api/v1/integrations").json()["results"][0]
        assert shown["openedThisMonth"] == 1
        assert shown["lastOpenedAt"] is not None
