"""REST endpoints for the monthly statements."""

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing.statements import statement_csv, statements
from rensei.core.api import CamelSerializer
from rensei.core.clock import database_now
from rensei.core.dollars_field import DollarsField
from rensei.core.errors import NotPermitted
from rensei.core.views import Endpoint
from rensei.orgs.access import caller
from rensei.orgs.models import Org
from rensei.orgs.permissions import MembersRead
from rensei.orgs.scopes import BILLING


class StatementSummaryAnswer(CamelSerializer):
    """One month of the organization. It is open until an operator closes it."""

    month = serializers.CharField(source="name", help_text="Such as 2026-03; months are in UTC")
    total_usd = DollarsField(source="total_picodollars")
    closed_at = serializers.DateTimeField(allow_null=True, help_text="Null: the statement is open and may still change")


class StatementAnswer(StatementSummaryAnswer):
    """What the organization owes for one month. The lines and the adjustments add up to the total."""

    class Line(CamelSerializer):
        """So many tokens of one class, or web searches, of one model at one price."""

        provider = serializers.CharField()
        served_model = serializers.CharField(source="served_model_id")
        token_class = serializers.ChoiceField(source="token_class", choices=[one.price for one in statements.CLASSES])
        count = serializers.IntegerField()
        unit_usd = DollarsField(source="unit_picodollars", help_text="For one token, or one search")
        amount_usd = DollarsField(source="amount_picodollars")

        def get_fields(self) -> dict[str, serializers.Field]:  # type: ignore[type-arg]
            """Name the field `class` in JSON, which is a reserved word in Python."""
            return {("class" if name == "tokenClass" else name): field for name, field in super().get_fields().items()}

    class Adjustment(CamelSerializer):
        """A correction that was written in this month, of a charge of this month or of one before."""

        id = serializers.CharField()
        occurred_at = serializers.DateTimeField()
        adjusts = serializers.CharField(source="charge_id")
        run_id = serializers.CharField()
        provider = serializers.CharField()
        served_model = serializers.CharField(source="served_model_id")
        amount_usd = DollarsField(source="amount_picodollars")

    digest = serializers.CharField(help_text="SHA-256 over a closed statement; empty while it is open")
    lines = Line(many=True)
    adjustments = Adjustment(many=True)


class StatementList(Endpoint):
    permission_classes = [MembersRead]
    scopes = {"GET": BILLING}

    class Answer(CamelSerializer):
        next = serializers.CharField(allow_null=True)
        previous = serializers.CharField(allow_null=True)
        results = StatementSummaryAnswer(many=True)

    @extend_schema(operation_id="statements_list")
    def get(self, request: Request) -> Response:
        """List what the organization owes for each month, newest first. All months are on one page."""
        found = statements.summaries(_org(request), now=database_now())
        return Response(self.Answer({"next": None, "previous": None, "results": found}).data)


class StatementDetail(Endpoint):
    permission_classes = [MembersRead]
    scopes = {"GET": BILLING}
    Answer = StatementAnswer

    def get(self, request: Request, month: str) -> Response:
        """Show the statement of one month, line by line."""
        return Response(self.Answer(statements.statement(_org(request), month, now=database_now())).data)


class StatementCsv(Endpoint):
    permission_classes = [MembersRead]
    scopes = {"GET": BILLING}

    @extend_schema(operation_id="statement_csv", tags=["statements"], responses={(200, "text/csv"): OpenApiTypes.STR})
    def get(self, request: Request, month: str) -> HttpResponse:
        """Download the statement of one month as CSV."""
        return csv_answer(_org(request), month)


def csv_answer(org: Org, month: str) -> HttpResponse:
    """Return a statement as a file download."""
    found = statements.statement(org, month, now=database_now())
    return HttpResponse(
        statement_csv.write(found),
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{org.slug}-statement-{found.name}.csv"'},
    )


def _org(request: Request) -> Org:
    """:raises NotPermitted: if the API token is limited to one project, which may not read the others' costs"""
    access = caller(request)
    if access.project is not None:
        raise NotPermitted
    return access.org
