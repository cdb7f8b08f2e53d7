"""REST requests and answers for access policies."""

from rensei.core.api import CamelSerializer
from rensei.core.auth_modes import AuthMode
from rensei.core.json_fields import JSONDocument, members
from rensei.policies import services

MATRIX = {
    "type": "object",
    "description": "For a model id, a provider or `*`: which auth modes are allowed. What is left out is inherited.",
    "maxProperties": services.ROW_LIMIT,
    "propertyNames": {"pattern": r"\S", "maxLength": services.ROW_NAME_LENGTH},
    "additionalProperties": members(
        {mode.value: members({"allowed": {"type": "boolean"}}, required=True) for mode in AuthMode}
    ),
    "example": {"*": {"shared": {"allowed": False}}},
}


class PolicyBody(CamelSerializer):
    """The document of an access policy, as it is put. Its rows are checked by `policies.services.validate_matrix`."""

    matrix = JSONDocument("AccessMatrix", MATRIX)
