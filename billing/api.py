"""REST endpoints for an organization's usage, costs and remaining limits."""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

from django.core.validators import MinValueValidator
from django.db.models import QuerySet
from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing.ledger import ledger_csv, reports
from billing.limits import budget, quota
from billing.limits.entitlement import is_metered_enabled
from billing.models import CostEvent
from rensei.core import csv_file
from rensei.core.api import CamelSerializer, OptionalText
from rensei.core.auth_modes import AuthMode, Payer
from rensei.core.clock import database_now
from rensei.core.dollars_field import DollarsField
from rensei.core.errors import FieldError
from rensei.core.lists import CursorPages, Filters, read_filters
from rensei.core.periods import last_of, start_of
from rensei.core.views import Endpoint
from rensei.orgs import storage
from rensei.orgs.access import caller
from rensei.orgs.permissions import MembersRead
from rensei.orgs.resources import Listed
from rensei.orgs.scopes import BILLING

FIRST_DAY = date(2000, 1, 1)
LONGEST_PERIOD_DAYS = 366
DEFAULT_PERIOD_DAYS = 30


class Period(Filters):
    """The days `from` and `to`, both included. Inside they are start and end: `from` is a word of Python."""

    start = serializers.DateField(
        required=False, source="start", validators=[MinValueValidator(FIRST_DAY)], help_text="The first day, in UTC"
    )
    end = serializers.DateField(
        required=False, source="end", validators=[MinValueValidator(FIRST_DAY)], help_text="The last day, in UTC"
    )

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        fields = super().get_fields()
        return {"from": fields.pop("start"), "to": fields.pop("end"), **fields}

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "start" in attrs and "end" in attrs:
            _require_order(attrs["start"], attrs["end"])
        return attrs

    @classmethod
    def select(cls, rows: QuerySet[Any], asked: Mapping[str, Any]) -> QuerySet[Any]:
        if "start" in asked:
            rows = rows.filter(occurred_at__gte=start_of(asked["start"]))
        if "end" in asked:
            rows = rows.filter(occurred_at__lte=last_of(asked["end"]))
        return super().select(rows, asked)


class TokensAnswer(CamelSerializer):
    """Token counts by class. The classes do not overlap."""

    input_tokens = serializers.IntegerField()
    output_tokens = serializers.IntegerField()
    cache_read_tokens = serializers.IntegerField()
    cache_write_5m_tokens = serializers.IntegerField()
    cache_write_1h_tokens = serializers.IntegerField()
    web_search_requests = serializers.IntegerField()


class UsageLineAnswer(CamelSerializer):
    """The use of one day, model, mode, project or profile."""

    key = OptionalText(help_text="What the line is about; null for calls without a project or profile")
    calls = serializers.IntegerField()
    unpriced = serializers.IntegerField(help_text="Ledger lines whose amount is unknown")
    usage = TokensAnswer(source="*")
    amount_usd = DollarsField(source="known_picodollars")
    billed_usd = DollarsField(source="billed_picodollars")


class UsageReport(Endpoint):
    permission_classes = [MembersRead]
    scopes = {"GET": BILLING}

    class Filter(Period):
        group_by = serializers.ChoiceField(choices=list(reports.GROUPS), default="day")

    class Answer(Period):
        group_by = serializers.ChoiceField(choices=list(reports.GROUPS))
        total = UsageLineAnswer()
        results = UsageLineAnswer(many=True)

    def get(self, request: Request) -> Response:
        """Report what was used between two days, and what it cost."""
        access = caller(request)
        query = read_filters(self.Filter, request)
        end = query.get("end") or database_now().date()
        start = query.get("start") or end - timedelta(days=DEFAULT_PERIOD_DAYS - 1)
        _require_order(start, end)
        if (end - start).days >= LONGEST_PERIOD_DAYS:
            raise FieldError(pointer="/query/from", reason=f"Ask for at most {LONGEST_PERIOD_DAYS} days at once.")
        group_by = query["group_by"]

        lines = reports.usage_by(access.org, start=start, end=end, group_by=group_by, project=access.project)
        answer = {"start": start, "end": end, "group_by": group_by, "total": reports.total(lines), "results": lines}
        return Response(self.Answer(answer).data)


class CostEventFilter(Period):
    """Which lines of the ledger."""

    run_id = serializers.CharField(required=False)
    auth_mode = serializers.ChoiceField(choices=AuthMode.choices, required=False)
    kind = serializers.ChoiceField(choices=CostEvent.Kind.choices, required=False)
    lookups = {"run_id": "run_id", "auth_mode": "auth_mode", "kind": "kind"}


class CostEventAnswer(CamelSerializer):
    """One line of the ledger."""

    class Usage(TokensAnswer):
        thinking_tokens = serializers.IntegerField(help_text="Part of the output tokens")

    class UnitPrices(CamelSerializer):
        """What one token, one web search, or one second of a sandbox cost. Null where the line has no price."""

        input_usd = DollarsField(source="input_picodollars")
        output_usd = DollarsField(source="output_picodollars")
        cache_read_usd = DollarsField(source="cache_read_picodollars")
        cache_write_5m_usd = DollarsField(source="cache_write_5m_picodollars")
        cache_write_1h_usd = DollarsField(source="cache_write_1h_picodollars")
        web_search_usd = DollarsField(source="web_search_picodollars")
        sandbox_second_usd = DollarsField(source="sandbox_second_picodollars")

    id = serializers.CharField()
    kind = serializers.ChoiceField(choices=CostEvent.Kind.choices)
    adjusts = OptionalText(source="adjusts_id", help_text="The charge that an adjustment corrects")
    run_id = serializers.CharField()
    attempt_id = serializers.CharField(help_text="The call, or the sandbox of a line of capacity")
    profile_id = OptionalText()
    project_id = OptionalText()
    auth_mode = serializers.ChoiceField(choices=AuthMode.choices)
    payer = serializers.ChoiceField(choices=Payer.choices)
    billing_class = serializers.CharField()
    pool_id = OptionalText()
    provider = serializers.CharField()
    model = serializers.CharField(source="model_id")
    served_model = serializers.CharField(source="served_model_id")
    provider_request_id = OptionalText()
    usage = Usage(source="*")
    sandbox_seconds = serializers.IntegerField(allow_null=True, help_text="Of a line of capacity; null for a call")
    unit_prices = UnitPrices(source="*")
    amount_usd = DollarsField(source="amount_picodollars")
    billed = serializers.BooleanField()
    billed_usd = DollarsField(source="billed_picodollars")
    estimated = serializers.BooleanField()
    occurred_at = serializers.DateTimeField()


class LedgerPages(CursorPages):
    """The ledger in the order of its index, so that a page with a period reads only the rows it returns."""

    ordering = ("-occurred_at", "-id")


class CostEventList(Listed):
    permission_classes = [MembersRead]
    scopes = {"GET": BILLING}
    does = {"GET": "List the lines of the cost ledger, newest first."}
    pagination_class = LedgerPages
    Filter = CostEventFilter
    Answer = CostEventAnswer
    rows = staticmethod(reports.visible_lines)


class CostEventCsv(Endpoint):
    permission_classes = [MembersRead]
    scopes = {"GET": BILLING}

    Filter = CostEventFilter

    @extend_schema(
        operation_id="cost_events_csv", tags=["cost-events"], responses={(200, "text/csv"): OpenApiTypes.STR}
    )
    def get(self, request: Request) -> StreamingHttpResponse:
        """Download the lines of the cost ledger as CSV, all of them."""
        lines = self.Filter.narrow(reports.visible_lines(caller(request)), request)
        return csv_file.answer(request, ledger_csv.write(lines), filename="cost-events.csv")


class Entitlements(Endpoint):
    permission_classes = [MembersRead]
    scopes = {"GET": BILLING}

    class Answer(CamelSerializer):
        class SharedQuota(CamelSerializer):
            used = serializers.IntegerField()
            limit = serializers.IntegerField()
            resets_at = serializers.DateTimeField()

        class Budget(CamelSerializer):
            """The month's budget for metered runs. `held` is the most that live runs may still cost."""

            limit_usd = DollarsField(source="limit")
            used_usd = DollarsField(source="used")
            held_usd = DollarsField(source="held")
            resets_at = serializers.DateTimeField()

        class Storage(CamelSerializer):
            """What the organization stores, and may store. `held` is what live runs may still write."""

            used_bytes = serializers.IntegerField(source="used")
            held_bytes = serializers.IntegerField(source="held")
            limit_bytes = serializers.IntegerField(source="limit")

        metered_enabled = serializers.BooleanField()
        shared = SharedQuota()
        budget = Budget(allow_null=True, help_text="Null: no monthly budget is set")
        storage = Storage()

    def get(self, request: Request) -> Response:
        """Show what the organization may use of the platform's keys, and how much is left."""
        org, now = caller(request).org, database_now()
        answer = {
            "metered_enabled": is_metered_enabled(org.pk),
            "shared": quota.shared_quota(org, now),
            "budget": budget.budget_of(org, now),
            "storage": storage.read(org.pk),
        }
        return Response(self.Answer(answer).data)


def _require_order(start: date, end: date) -> None:
    if start > end:
        reason = "`from` is later than `to`, which is today where it is left out. Give the earlier day first."
        raise FieldError(pointer="/query/from", reason=reason)
