"""A call may have parts by several models, and each part is charged."""

from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    dependencies = [("billing", "0008_sums_of_any_size")]

    operations = [
        migrations.RemoveConstraint(model_name="costevent", name="one_charge_per_attempt"),
        migrations.AddConstraint(
            model_name="costevent",
            constraint=models.UniqueConstraint(
                condition=Q(kind="charge"),
                fields=["attempt_id", "served_model_id"],
                name="one_charge_per_attempt_and_model",
            ),
        ),
    ]
