"""What operators see of the audits. They are run by `manage.py audit_ledger` and every night."""

from django.contrib import admin
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from billing.differences import Difference
from rensei.dispatch.models import LedgerAudit
from rensei.orgs.admin import ReadOnlyAdmin


@admin.register(LedgerAudit)
class LedgerAuditAdmin(ReadOnlyAdmin):
    list_display = ["ran_at", "difference_count", "seconds"]
    fields = ["ran_at", "seconds", "difference_count", "differences"]
    readonly_fields = ["differences"]
    ordering = ["-ran_at"]

    @admin.display(description="First differences")
    def differences(self, audit: LedgerAudit) -> SafeString:
        return format_html_join("\n", "<div>{}</div>", ((str(Difference(**each)),) for each in audit.first_differences))
