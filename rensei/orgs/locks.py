"""The lock of an organization, under which its rows are added and changed."""

from rensei.core.errors import NotFound
from rensei.core.transactions import assert_open
from rensei.orgs.models import Org


def lock(org_id: str) -> Org:
    """
    Lock an organization until commit. Rows of others that refer to it are not blocked.

    A deletion is marked under the same lock, so what is written under it is never written behind one.

    :raises NotFound: if it is being deleted, or was
    """
    assert_open()
    org = Org.objects.select_for_update(no_key=True).get(pk=org_id)
    if org.deleting_at is not None:
        raise NotFound
    return org
