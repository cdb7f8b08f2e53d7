"""REST: why a dispatch would be refused, gate by gate."""

from collections.abc import Collection
from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from rensei.core.api import LARGE_BODY_LIMIT, CamelSerializer, read_body
from rensei.core.auth_modes import PAYER_OF, AuthMode, Payer
from rensei.core.errors import NotFound
from rensei.core.problems import documented_at
from rensei.core.views import Endpoint
from rensei.dispatch.admission import explain
from rensei.dispatch.admission.explain import Explanation, GateVerdict
from rensei.dispatch.api.runs import RunBody, dispatch_request
from rensei.dispatch.wire import TraceLineAnswer
from rensei.orgs.access import as_member, caller
from rensei.orgs.permissions import MembersRead
from rensei.orgs.scopes import READ_OR_RUNS, Scope, ScopeMissing

# The scopes that a token needs to see what these gates looked at, as at the addresses that show the same.
SHOWN_TO = {
    "entitlement": Scope.BILLING,
    "spending": Scope.BILLING,
    "quota": Scope.BILLING,
    "budget": Scope.BILLING,
    "key": Scope.READ,
    "policy": Scope.READ,
}


class ExplanationBody(RunBody):
    """A dispatch, all of it optional, and the member who would make it."""

    as_member = serializers.EmailField(
        required=False, help_text="The address of another member. For owners, admins and auditors"
    )


class ExplanationAnswer(CamelSerializer):
    """Every gate of a dispatch, in the order in which it meets them."""

    class Gate(CamelSerializer):
        class Seen(CamelSerializer):
            name = serializers.CharField()
            value = serializers.CharField()

        gate = serializers.ChoiceField(choices=list(explain.TITLES))
        title = serializers.CharField()
        verdict = serializers.ChoiceField(choices=[verdict.value for verdict in GateVerdict])
        looked_at = Seen(many=True)
        code = serializers.CharField(allow_null=True)
        detail = serializers.CharField(allow_null=True)
        fix = serializers.CharField(allow_null=True, help_text="What would mend it")
        link = serializers.CharField(allow_null=True, help_text="The code's section of the documentation")

    class Alternative(CamelSerializer):
        """The same dispatch, as if the profile listed only this mode."""

        mode = serializers.ChoiceField(choices=AuthMode.choices)
        in_profile = serializers.BooleanField()
        would_run = serializers.BooleanField()
        code = serializers.CharField(allow_null=True)
        detail = serializers.CharField(allow_null=True)

    member = serializers.EmailField()
    role = serializers.CharField()
    profile_id = serializers.CharField(allow_null=True)
    project_id = serializers.CharField(allow_null=True)
    pool = serializers.CharField(allow_null=True)
    auth_mode = serializers.ChoiceField(choices=AuthMode.choices, allow_null=True)
    payer = serializers.ChoiceField(choices=Payer.choices, allow_null=True)
    would_run = serializers.BooleanField()
    code = serializers.CharField(allow_null=True)
    detail = serializers.CharField(allow_null=True)
    gates = Gate(many=True)
    alternatives = Alternative(many=True, help_text="Empty for a dispatch that would run")
    trace = TraceLineAnswer(many=True)


class Explanations(Endpoint):
    permission_classes = [MembersRead]
    scopes = {"POST": READ_OR_RUNS}
    refusals = {"POST": (NotFound, ScopeMissing)}
    body_limit = LARGE_BODY_LIMIT
    Body = ExplanationBody

    @extend_schema(request=ExplanationBody, responses={200: ExplanationAnswer}, operation_id="explain_dispatch")
    def post(self, request: Request) -> Response:
        """
        Explain why a dispatch would be refused, gate by gate, or that it would run.

        The gates are those of the dispatch itself. Nothing is held, written or called.
        """
        asked = dispatch_request(request, whole=False, form=ExplanationBody)
        member = read_body(ExplanationBody, request).get("as_member", caller(request).user.email)
        access = caller(request)
        return Response(_answer(explain.explain(as_member(access, member), asked), scopes=access.scopes))


def _answer(explained: Explanation, *, scopes: Collection[str]) -> dict[str, Any]:
    judgement, refusal = explained.judgement, explained.refusal
    mode = judgement.decision.mode if judgement else None
    project = judgement.facts.project if judgement else None
    return {
        "member": explained.access.user.email,
        "role": explained.access.role.value,
        "profileId": judgement.facts.profile.public_id if judgement else explained.request.profile_id,
        "projectId": project.slug if project else explained.request.project_id,
        "pool": judgement.facts.pool.name if judgement else explained.request.pool,
        "authMode": mode.value if mode else None,
        "payer": PAYER_OF[mode].value if mode else None,
        "wouldRun": refusal is None,
        "code": refusal.code if refusal else None,
        "detail": refusal.detail if refusal else None,
        "gates": [
            {
                "gate": result.gate,
                "title": result.title,
                "verdict": result.verdict.value,
                "lookedAt": [seen._asdict() for seen in result.seen] if _is_shown(result.gate, scopes) else [],
                "code": result.refusal.code if result.refusal else None,
                "detail": result.refusal.detail if result.refusal else None,
                "fix": result.refusal.fix if result.refusal else None,
                "link": documented_at(result.refusal.code) if result.refusal else None,
            }
            for result in explained.gates
        ],
        "alternatives": [
            {
                "mode": other.mode.value,
                "inProfile": other.in_profile,
                "wouldRun": other.refusal is None,
                "code": other.refusal.code if other.refusal else None,
                "detail": other.refusal.detail if other.refusal else None,
            }
            for other in explained.alternatives
        ],
        "trace": judgement.decision.wire() if judgement else [],
    }


def _is_shown(gate: str, scopes: Collection[str]) -> bool:
    needed = SHOWN_TO.get(gate)
    return needed is None or needed in scopes
