"""A sealed key opens for its own row, address and workspace, and nowhere else."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integrations.keys import services
from integrations.models import Integration
from integrations.vault.errors import CredentialUnreadable
from integrations.vault.framing import length_prefixed
from integrations.vault.vault import SealContext
from rensei.core.secret import Secret
from rensei.orgs.access import Access
from rensei.orgs.models import Org

# An address by number: these tests have no name service.
GATEWAY = "https://93.184.215.14/anthropic"


@pytest.fixture
def connect(access: Access, key: str) -> Any:
    def add(**fields: Any) -> Integration:
        return services.add_integration(access, provider="claude", api_key=Secret(key), **fields)

    return add


def opened() -> tuple[str, str]:
    credential = services.open_integration(Integration.objects.get())
    return credential.secret.reveal(), credential.workspace_id


class TestTheWorkspace:
    @pytest.mark.parametrize(("mine", "planted"), [("wrkspc_1", "wrkspc_2"), ("wrkspc_1", ""), ("", "wrkspc_2")])
    def test_cannot_be_changed_in_the_row(self, connect: Any, mine: str, planted: str) -> None:
        connect(workspace_id=mine)
        Integration.objects.update(workspace_id=planted)

        with pytest.raises(CredentialUnreadable):
            opened()

    @pytest.mark.parametrize(("before", "after"), [("wrkspc_1", "wrkspc_2"), ("wrkspc_1", ""), ("", "wrkspc_2")])
    def test_is_changed_by_a_manager_with_the_same_key(
        self, access: Access, connect: Any, key: str, before: str, after: str
    ) -> None:
        integration = connect(workspace_id=before)

        services.update_integration(access, integration, workspace_id=after)

        assert opened() == (key, after)
        assert Integration.objects.get().secret_version == 2

    def test_is_changed_together_with_the_address(self, access: Access, connect: Any, make_key: Any) -> None:
        integration, other = connect(workspace_id="wrkspc_1"), make_key()

        services.update_integration(
            access, integration, base_url=GATEWAY, api_key=Secret(other), workspace_id="wrkspc_2"
        )

        assert opened() == (other, "wrkspc_2")

    def test_does_not_change_under_a_key_that_is_being_replaced(
        self, access: Access, connect: Any, make_key: Any
    ) -> None:
        """Whichever comes second is told: sealed for one workspace and stored beside another, it would not open."""
        connect(workspace_id="wrkspc_1")
        first, second = Integration.objects.get(), Integration.objects.get()

        services.update_integration(access, first, workspace_id="wrkspc_2")
        with pytest.raises(services.ChangedMeanwhile):
            services.rotate_integration(access, second, api_key=Secret(make_key()), force=True)

        assert opened()[1] == "wrkspc_2"

    @given(st.lists(st.text(max_size=3), min_size=8, max_size=8), st.lists(st.text(max_size=3), min_size=8, max_size=8))
    def test_makes_no_two_places_the_same(self, one: list[str], other: list[str]) -> None:
        def bound(parts: list[str]) -> bytes:
            *_, destination, workspace = parts
            place = SealContext(
                org=Org(id=parts[0]), pool=parts[1], record_id=parts[2], field=parts[3], version=len(parts[4]),
                provider=parts[5], destination=destination, workspace=workspace,
            )  # fmt: skip
            return length_prefixed(*place.parts())

        same = [*one[:4], len(one[4]), *one[5:]] == [*other[:4], len(other[4]), *other[5:]]

        assert (bound(one) == bound(other)) == same
