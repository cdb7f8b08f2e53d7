"""People who move the default at the same moment leave exactly one."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection

from catalog.services import load_catalog
from profiles.models import ModelProfile
from profiles.services import create_profile, update_profile
from rensei.audit.models import AuditEvent

NAMES = [f"profile {number}" for number in range(6)]


@pytest.mark.django_db(transaction=True)
class TestTheDefault:
    def test_ends_with_one_profile(self, acme, ada, access_of):
        load_catalog()
        access = access_of(ada)

        def create_and_take_over(name):
            try:
                profile = create_profile(
                    access,
                    name=name,
                    provider="claude",
                    model_id="claude-opus-5-5",
                    auth_modes=["byok"],
                    is_default=True,
                )
                update_profile(access, profile, is_default=True)
            finally:
                connection.close()

        with ThreadPoolExecutor(len(NAMES)) as threads:
            list(threads.map(create_and_take_over, NAMES))

        assert ModelProfile.objects.count() == len(NAMES)
        assert ModelProfile.objects.filter(is_default=True).count() == 1
        assert AuditEvent.objects.filter(action="profile.updated").count() == len(NAMES)
