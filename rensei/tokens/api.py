"""REST: the organization's API tokens and machines."""

from collections.abc import Sequence
from typing import Any

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from rensei.core.api import CamelSerializer
from rensei.core.dollars_field import DollarsField, LimitField
from rensei.core.errors import NotFound, named_in
from rensei.core.json_fields import NAME, Text
from rensei.core.networks import NETWORKS_MAX
from rensei.orgs.access import Access, caller
from rensei.orgs.models import Host, SpendCap
from rensei.orgs.permissions import MembersRead, MembersWrite
from rensei.orgs.resources import Changed, Listed, Removed, Resource
from rensei.orgs.row_limits import LimitReached
from rensei.orgs.scopes import GRANT, MANAGE_OR_LEASES, READ, READ_OR_LEASES, Scope
from rensei.orgs.services import find_project
from rensei.tokens import caps
from rensei.tokens.machines import register_host, revoke_host, update_host, visible_hosts
from rensei.tokens.models import ApiToken
from rensei.tokens.services import create_token, revoke_token, update_token, visible_tokens


class CapAnswer(CamelSerializer):
    """The most that the token's runs may cost in a month, to all payers. `held` is what live runs may still cost."""

    class Scope(CamelSerializer):
        type = serializers.ChoiceField(choices=SpendCap.Scope.choices)
        id = serializers.CharField()

    scope = Scope()
    window = serializers.ChoiceField(choices=SpendCap.Window.choices)
    amount_usd = DollarsField(source="amount")
    used_usd = DollarsField(source="used")
    held_usd = DollarsField(source="held")
    resets_at = serializers.DateTimeField()


class CapBody(CamelSerializer):
    """A limit in dollars for each UTC month."""

    window = serializers.ChoiceField(choices=SpendCap.Window.choices, default=SpendCap.Window.MONTH)
    amount_usd = LimitField(source="amount")


class TokenAnswer(CamelSerializer):
    id = serializers.CharField()
    name = serializers.CharField()
    hint = serializers.CharField(help_text="The last characters of the token")
    member = serializers.EmailField(source="membership.user.email")
    project_id = serializers.CharField(source="project.slug", default=None, allow_null=True)
    host_id = serializers.CharField(allow_null=True)
    scopes = serializers.ListField(child=serializers.ChoiceField(choices=Scope.choices))
    allowed_networks = serializers.ListField(child=serializers.CharField())
    made_by = serializers.CharField(
        source="made_by_id", allow_null=True, help_text="The token that made this one, with which it ends"
    )
    cap = CapAnswer(allow_null=True, help_text="Null: no cap of its own")
    created_at = serializers.DateTimeField()
    expires_at = serializers.DateTimeField(allow_null=True)
    last_used_at = serializers.DateTimeField(allow_null=True, help_text="To the minute")
    last_used_address = serializers.CharField(allow_null=True)
    revoked_at = serializers.DateTimeField(allow_null=True)


class TokenResource(Resource):
    """Tokens, each with its cap."""

    Answer = TokenAnswer

    def answers(self, access: Access, found: Sequence[ApiToken]) -> Any:
        of_tokens = caps.of_tokens([token.pk for token in found])
        for token in found:
            cap = of_tokens.get(token.pk)
            token.cap = caps.described(cap) if cap is not None else None  # type: ignore[attr-defined]
        return super().answers(access, found)


class Tokens(TokenResource, Listed):
    permission_classes = [MembersRead]
    scopes = {"GET": READ, "POST": GRANT}
    refusals = {"POST": (NotFound, LimitReached)}
    does = {"GET": "List API tokens: the caller's own, or everyone's for those who manage or audit."}
    throttle_scope = "sensitive"
    rows = staticmethod(visible_tokens)

    class Body(CamelSerializer):
        name = Text(NAME, max_length=120)
        project_id = serializers.CharField(allow_null=True, default=None)
        scopes = serializers.ListField(
            child=serializers.ChoiceField(choices=Scope.choices), allow_empty=False, max_length=20, required=False
        )
        allowed_networks = serializers.ListField(
            child=serializers.CharField(max_length=60),
            max_length=NETWORKS_MAX,
            default=list,
            help_text="In CIDR notation",
        )
        expires_at = serializers.DateTimeField(allow_null=True, default=None)
        cap = CapBody(allow_null=True, default=None)

    class Created(TokenAnswer):
        token = serializers.CharField(help_text="Shown only now")

    def post(self, request: Request) -> Response:
        """Create an API token, which is shown once."""
        fields = self.fields(request)
        slug, cap = fields.pop("project_id"), fields.pop("cap")
        with named_in("/projectId"):
            project = find_project(caller(request), slug) if slug is not None else None
        token, secret = create_token(caller(request), project=project, cap=cap["amount"] if cap else None, **fields)
        return self.created(request, token, token=secret.reveal())


class TokenDetail(TokenResource, Changed, Removed):
    permission_classes = [MembersRead]
    scopes = {"GET": READ, "PATCH": GRANT, "DELETE": GRANT}
    does = {
        "GET": "Show one API token, without its secret.",
        "PATCH": "Set, change or remove the cap of an API token.",
        "DELETE": "Revoke an API token at once. Its row stays, so that the audit log can name it.",
    }
    throttle_scope = "sensitive"
    rows = staticmethod(visible_tokens)
    remove = staticmethod(revoke_token)

    class Body(CamelSerializer):
        cap = CapBody(allow_null=True, help_text="Null removes it")

    @staticmethod
    def change(access: Access, token: ApiToken, *, cap: dict[str, Any] | None) -> ApiToken:
        return update_token(access, token, cap=cap["amount"] if cap else None)


class HostAnswer(CamelSerializer):
    id = serializers.CharField()
    name = serializers.CharField()
    owner = serializers.EmailField(source="owner.email")
    login = serializers.ChoiceField(choices=Host.Login.choices)
    created_at = serializers.DateTimeField()
    last_seen_at = serializers.DateTimeField(allow_null=True)
    revoked_at = serializers.DateTimeField(allow_null=True)


class Hosts(Listed):
    permission_classes = [MembersWrite]
    scopes = {"GET": READ, "POST": GRANT}
    refusals = {"POST": (LimitReached,)}
    does = {"GET": "List the machines that ran `rensei setup`."}
    throttle_scope = "sensitive"
    Answer = HostAnswer
    rows = staticmethod(visible_hosts)

    class Body(CamelSerializer):
        name = Text(NAME, max_length=120)
        login = serializers.ChoiceField(choices=Host.Login.choices, default=Host.Login.NONE)
        scopes = serializers.ListField(
            child=serializers.ChoiceField(choices=Scope.choices), allow_empty=False, max_length=20, required=False
        )

    class Created(HostAnswer):
        token = serializers.CharField(help_text="Shown only now")

    def post(self, request: Request) -> Response:
        """Register a machine, and give the token that only it uses, once."""
        host, _, secret = register_host(caller(request), **self.fields(request))
        return self.created(request, host, token=secret.reveal())


class HostDetail(Changed, Removed):
    permission_classes = [MembersWrite]
    scopes = {"GET": READ_OR_LEASES, "PATCH": MANAGE_OR_LEASES, "DELETE": GRANT}
    does = {
        "GET": "Show one machine.",
        "PATCH": "Change the name or the kind of login of a machine.",
        "DELETE": "Revoke a machine and its tokens at once.",
    }
    Answer = HostAnswer
    rows = staticmethod(visible_hosts)
    change = staticmethod(update_host)
    remove = staticmethod(revoke_host)

    class Body(CamelSerializer):
        name = Text(NAME, max_length=120, required=False)
        login = serializers.ChoiceField(choices=Host.Login.choices, required=False)
