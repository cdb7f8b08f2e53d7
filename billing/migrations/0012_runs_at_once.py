from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("billing", "0011_shared_spending")]

    operations = [
        migrations.AddField(
            model_name="entitlement",
            name="runs_at_once",
            field=models.PositiveIntegerField(
                blank=True,
                help_text="Queued runs that workers carry out at the same time. "
                "Empty: the server's default; 0: none start",
                null=True,
            ),
        ),
    ]
