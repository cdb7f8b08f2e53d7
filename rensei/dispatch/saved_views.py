"""Saved views: a member's own names for filters and orders of the list of runs."""

from rensei.audit.record import record
from rensei.core.errors import AlreadyExists, FieldError, NotFound
from rensei.core.limits import limit
from rensei.core.transactions import durable, unique
from rensei.dispatch.models import SavedView
from rensei.orgs.access import Access
from rensei.orgs.models import Membership, OrgScopedQuerySet
from rensei.orgs.shapes import clean_name

VIEWS_MAX = limit(
    20,
    "views",
    what="Saved views of the list of runs, each member of an organization",
    told="the caller: 400 `VALIDATION_FAILED`",
)
NAME_LENGTH, QUERY_LENGTH = 60, 1000


def own_views(access: Access) -> OrgScopedQuerySet[SavedView]:
    """List the caller's views, by name."""
    return SavedView.objects.for_org(access.org).filter(membership=access.membership).order_by("name", "id")


def save_view(access: Access, *, name: str, query: str) -> SavedView:
    """
    Save the query of a list of runs under a name.

    :raises NotPermitted: if the caller has read access only
    :raises FieldError: if the name or the query is not valid, or the member has as many views as there may be
    :raises AlreadyExists: if the member has a view of this name
    """
    access.require_writer()
    name = clean_name(name, length=NAME_LENGTH)
    if not query or len(query) > QUERY_LENGTH:
        reason = f"Choose a filter or an order, of at most {QUERY_LENGTH:,} characters in the address."
        raise FieldError(pointer="/query", reason=reason)
    with durable():
        # Views of one member are saved one after another, so that they stay within the limit.
        Membership.objects.select_for_update().get(pk=access.membership.pk)
        if own_views(access).count() >= VIEWS_MAX:
            raise FieldError(pointer="/name", reason=f"You have {VIEWS_MAX} saved views. Delete one first.")
        with unique(AlreadyExists(what=f"A view named '{name}'")):
            view = SavedView.objects.create(org=access.org, membership=access.membership, name=name, query=query)
        record(access, "view.saved", object_id=view.id, name=name)
    return view


def delete_view(access: Access, view_id: str) -> SavedView:
    """
    Delete one of the caller's views.

    :raises NotFound: if the caller has no such view
    """
    access.require_writer()
    with durable():
        view = own_views(access).filter(pk=view_id.replace("\0", "")).first()
        if view is None:
            raise NotFound
        view.delete()
        record(access, "view.deleted", object_id=view_id, name=view.name)
    return view
