"""The ledger of one organization is read in the order of time; one index gives every page of it as a range."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("billing", "0005_metered_requests")]

    operations = [
        migrations.AddIndex(
            model_name="costevent",
            index=models.Index(fields=["org", "occurred_at", "id"], name="cost_by_org_in_order"),
        ),
        migrations.RemoveIndex(model_name="costevent", name="cost_by_org"),
        migrations.RemoveIndex(model_name="costevent", name="cost_by_org_and_time"),
    ]
