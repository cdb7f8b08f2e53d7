"""Access policies for dispatch: the rows that exist, and the policies above a scope."""

from catalog.models import CatalogEntry
from catalog.providers import PROVIDERS
from rensei.orgs.access import Access
from rensei.orgs.models import Org, Project
from rensei.policies import services as policies
from rensei.policies.models import AccessPolicy
from rensei.policies.resolver import Policy
from rensei.policies.services import Matrix


def set_policy(
    access: Access, *, matrix: Matrix, project: Project | None = None, expected: Matrix | None = None
) -> AccessPolicy:
    """
    Replace the policy of the organization or of a project, whose rows must name models and providers that exist.

    :raises FieldError: with each row that is wrong, or if the stored policy is not the `expected` one
    """
    access.require_manager()
    return policies.set_policy(access, matrix=matrix, project=project, known=known_rows(access.org), expected=expected)


def known_rows(org: Org | None) -> set[str]:
    """
    List the names that a row may have besides `*`: the providers, and the models that an organization can use.

    The system's policy is above every organization's, so without an organization the models of all of them count.
    """
    entries = CatalogEntry.objects.all() if org is None else CatalogEntry.objects.visible_to(org)
    return {*PROVIDERS, *entries.values_list("model_id", flat=True)}


def as_policies(stored: list[AccessPolicy]) -> list[Policy]:
    """Convert stored policies for the resolver, in the given order."""
    return [Policy(scope=policy.scope, matrix=policy.matrix) for policy in stored]
